"""Peers that draw or look at images: models of diffusers and of timm.

Each is made of a config of ours, has as many parameters, and is given a loss of
the same kind.
"""

import types
from collections.abc import Callable

import diffusers
import numpy as np
import torch
from ml_collections import ConfigDict
from torch import nn
from torch.nn import functional as F

POOL = 4  # batches


class Peer(nn.Module):
  """A model and loss(model, **batch), called as those of transformers are."""

  def __init__(self, model: nn.Module, loss: Callable):
    super().__init__()
    self.model, self.loss = model, loss

  def forward(self, **batch):
    return types.SimpleNamespace(loss=self.loss(self.model, **batch))


def _batches(config: ConfigDict, labels: int) -> list[dict]:
  draw, data = np.random.default_rng(0), config.data
  shape = (data.batch, data.channels, data.image_size, data.image_size)
  return [
    dict(
      images=torch.from_numpy(draw.uniform(-1, 1, shape).astype(np.float32)),
      labels=torch.from_numpy(draw.integers(0, labels, data.batch)),
    )
    for _ in range(POOL)
  ]


def _denoises(config: ConfigDict) -> Callable:
  """Flow matching: of noisy images, noise less images; some without label."""
  classes, dropout = config.model.classes, config.objective.label_dropout

  def loss(model, images, labels):
    noise, time = torch.randn_like(images), torch.rand(len(images))
    t = time[:, None, None, None]
    dropped = torch.rand(len(images)) < dropout
    labels = torch.where(dropped, classes, labels)
    found = model(
      (1 - t) * images + t * noise, 1000 * time, class_labels=labels
    )
    return F.mse_loss(found.sample, noise - images)

  return loss


def dit_of(config: ConfigDict) -> nn.Module:
  """DiT, whose blocks share what makes the condition, as published.

  diffusers has one for each block; it is computed anew in each of them here
  too.
  """
  m = config.model
  model = diffusers.DiTTransformer2DModel(
    num_attention_heads=m.heads, attention_head_dim=m.dim // m.heads,
    in_channels=m.channels, num_layers=m.layers, sample_size=m.image_size,
    patch_size=m.patch, num_embeds_ada_norm=m.classes, norm_eps=m.norm_eps,
  )  # fmt: skip
  first, *others = model.transformer_blocks
  for block in others:
    block.norm1.emb = first.norm1.emb
  return model


def dit(config: ConfigDict) -> tuple[Peer, list[dict]]:
  model = Peer(dit_of(config), _denoises(config))
  return model, _batches(config, config.model.classes)


def unet(config: ConfigDict) -> tuple[Peer, list[dict]]:
  m = config.model
  rows = [m.image_size >> i for i in range(len(m.widths))]
  reads = ["Attn" if n in tuple(m.attention) else "" for n in rows]
  model = diffusers.UNet2DModel(
    sample_size=m.image_size, in_channels=m.channels, out_channels=m.channels,
    block_out_channels=tuple(m.widths), layers_per_block=m.blocks,
    norm_num_groups=m.groups, attn_norm_num_groups=m.groups,
    norm_eps=m.norm_eps, attention_head_dim=m.head_dim,
    num_class_embeds=m.classes + 1, resnet_time_scale_shift="scale_shift",
    down_block_types=tuple(f"{x}DownBlock2D" for x in reads),
    up_block_types=tuple(f"{x}UpBlock2D" for x in reads[::-1]),
  )  # fmt: skip
  return Peer(model, _denoises(config)), _batches(config, m.classes)


def vae_sd(config: ConfigDict) -> tuple[Peer, list[dict]]:
  m, beta, stages = (
    config.model,
    config.objective.beta,
    len(config.model.widths),
  )
  model = diffusers.AutoencoderKL(
    in_channels=m.channels, out_channels=m.channels,
    block_out_channels=tuple(m.widths), layers_per_block=m.blocks,
    down_block_types=("DownEncoderBlock2D",) * stages,
    up_block_types=("UpDecoderBlock2D",) * stages, latent_channels=m.latent,
    norm_num_groups=m.groups, sample_size=m.image_size,
  )  # fmt: skip

  def loss(model, images, labels):
    code = model.encode(images).latent_dist
    apart = F.l1_loss(model.decode(code.sample()).sample, images)
    return apart + beta * code.kl().mean() / images[0].numel()

  return Peer(model, loss), _batches(config, 1)


def vit_timm(config: ConfigDict) -> tuple[Peer, list[dict]]:
  import timm  # which needs torchvision, as the others do not

  m = config.model
  model = timm.models.VisionTransformer(
    img_size=m.image_size, patch_size=m.patch, num_classes=m.classes,
    embed_dim=m.dim, depth=m.layers, num_heads=m.heads,
    mlp_ratio=m.mlp_dim / m.dim,
  )  # fmt: skip
  smoothing = config.objective.smoothing

  def loss(model, images, labels):
    return F.cross_entropy(model(images), labels, label_smoothing=smoothing)

  return Peer(model, loss), _batches(config, m.classes)


PEERS = {"dit": dit, "unet": unet, "vae_sd": vae_sd, "vit_timm": vit_timm}
