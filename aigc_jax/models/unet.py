"""U-Net: what to take from a noisy image, from large to small and back again.

The network of denoising diffusion, arXiv:2006.11239, at its own parameter
count, with what arXiv:2105.05233 made of it: norms that the condition scales,
heads of one width, blocks that halve and double.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax import errors, sharding
from aigc_jax.layers.attention import Attention
from aigc_jax.layers.group_norm import GroupNorm
from aigc_jax.layers.mlp import activate
from aigc_jax.layers.residual import (
  PlacesAttention,
  ResidualBlock,
  Resized,
  convolved,
  rematted,
)
from aigc_jax.layers.stack import REMAT
from aigc_jax.models.checks import at_least_1, attending, in_stages, share
from aigc_jax.models.condition import Asked, Condition, reader
from aigc_jax.models.decoder import checked_dtype
from aigc_jax.models.denoiser import Denoiser
from aigc_jax.models.images import check_images

Batch = Mapping[str, jax.Array]
RESAMPLES = ("convolution", "block")


class Unet(Denoiser):
  """A prediction for each pixel of "images" (B, Y, X, C) at "time" (B,).

  Returns (B, Y, X, C) float32, with `sigma` (B, Y, X, 2 C); "labels", "tokens"
  and "time" are as of a Dit.
  """

  image: tuple[int, int, int]  # Y, X, C
  classes: int
  widths: tuple[int, ...]
  blocks: int
  attends: tuple[bool, ...]  # of each stage
  by_blocks: bool  # whether a residual block resizes, not a convolution
  sigma: bool
  dtype: jnp.dtype
  std: float
  remat: str
  norm: Callable[..., GroupNorm]
  residual: Callable[..., ResidualBlock]
  attention: Callable[..., Callable[..., PlacesAttention]]  # of a width
  condition: Callable[..., Condition]
  text_length: int = 0
  features: int = 0

  @nn.compact
  def __call__(self, batch: Batch) -> jax.Array:
    check_images(batch["images"], self.image)
    asked = self.condition(name="condition")(batch)
    first, last = self.widths[0], len(self.widths) - 1
    x = convolved(
      self.image[-1], first, self.dtype, self.std, name="pixels_in"
    )(batch["images"])
    # What the way back reads beside what comes from below.
    before, aside = first, [(x, first)]
    for i, width in enumerate(self.widths):
      for j in range(self.blocks):
        x = self._block(x, asked, before, width, f"down{i}_{j}", i)
        before = width
        aside.append((x, width))
      if i < last:
        x = self._resized(x, asked, width, "half", f"half{i}")
        aside.append((x, width))
    x = self._block(x, asked, before, before, "middle0", None, True)
    x = self._block(x, asked, before, before, "middle1", None)
    for i, width in reversed(list(enumerate(self.widths))):
      for j in range(self.blocks + 1):
        other, more = aside.pop()
        x = jnp.concatenate([x, other], axis=-1)
        x = self._block(x, asked, before + more, width, f"up{i}_{j}", i)
        before = width
      if i:
        x = self._resized(x, asked, width, "double", f"double{i}")
    x = activate("silu", self.norm(name="norm")(x))
    out = self.image[-1] * (2 if self.sigma else 1)
    x = convolved(
      before, out, self.dtype, self.std, factor=0.0, name="pixels_out"
    )(x)
    return sharding.constrain(x.astype(jnp.float32), "BYXC")

  def _block(
    self, x, asked: Asked, before: int, dim: int, name: str, stage: int | None,
    attends: bool = False,
  ) -> jax.Array:  # fmt: skip
    """A residual block, and attention where the stage has it."""
    if stage is not None:
      attends = self.attends[stage]
    x = rematted(self.residual, self.remat)(before, dim, name=name)(
      x, asked.condition_BD
    )
    if not attends:
      return x
    places = rematted(self.attention(dim), self.remat)
    visible = asked.visible(x.shape[1] * x.shape[2])
    return places(name=f"{name}_read")(x, asked.memory_BSD, visible)

  def _resized(self, x, asked: Asked, dim: int, size: str, name: str):
    if not self.by_blocks:
      return Resized(dim, size, self.dtype, self.std, name=name)(x)
    block = rematted(self.residual, self.remat)
    return block(dim, dim, size=size, name=name)(x, asked.condition_BD)

  @property
  def operand_dtype(self) -> jnp.dtype:
    """Of what products multiply."""
    return self.dtype


def unet(
  *,
  classes: int,
  image_size: int,
  channels: int,
  widths: Sequence[int],
  blocks: int,
  attention: Sequence[int],
  head_dim: int | None = None,
  scale_shift: bool = False,
  resample: str = "convolution",
  sigma: bool = False,
  groups: int = 32,
  norm_eps: float = 1e-6,
  init_std: float | None = None,
  dropout: float = 0.0,
  dtype: str = "float32",
  remat: str = "none",
  kernel: str = "auto",
  fuse_projections: bool = True,
  vocab: int | None = None,
  text_length: int | None = None,
  text_layers: int | None = None,
  text_dim: int | None = None,
  text_heads: int | None = None,
  text_mlp_dim: int | None = None,
  text_end: int | None = None,
) -> Unet:
  """A Unet from plain values; the keys of `config.model`.

  classes: labels that it is told, 0 for none. widths: of the stages, from the
  largest rows and columns on; each but the last is followed by one of half the
  size. blocks: of a stage, on the way down; on the way up it has one more.
  attention: rows of the stages whose places read each other, as (16,).
  head_dim: None for one head. scale_shift: whether the condition scales and
  shifts what is normalised (arXiv:2105.05233). resample: convolution or block,
  by what rows and columns are halved and doubled. sigma: whether the variance
  is predicted too. groups: of channels that are normalised together. init_std:
  None is by fan-in. vocab, text_*: as of a dit; captions are read wherever
  places read each other. Raises BadConfig where they cannot go together.
  """
  at_least_1(
    image_size=image_size, channels=channels, blocks=blocks, groups=groups
  )
  share(dropout=dropout)
  errors.choose(resample, dict.fromkeys(RESAMPLES), "model.resample")
  errors.choose(remat, REMAT, "compute.remat")
  in_stages(image_size, widths, groups)
  attends = attending(image_size, widths, attention)
  for i, width in enumerate(widths):
    own = attends[i] or i + 1 == len(widths)  # the middle reads too
    if own and head_dim is not None and (head_dim < 1 or width % head_dim):
      raise errors.BadConfig(
        f"model.widths[{i}]={width} is not divisible by "
        f"model.head_dim={head_dim}"
      )
  kind, std = checked_dtype(dtype), init_std or 0.0
  reads = reader(
    classes=classes, vocab=vocab, text_length=text_length,
    text_layers=text_layers, text_dim=text_dim, text_heads=text_heads,
    text_mlp_dim=text_mlp_dim, text_end=text_end, norm_eps=norm_eps, dtype=kind,
    std=std, dropout=dropout, remat=remat, kernel=kernel,
    fused=fuse_projections,
  )  # fmt: skip
  norm = functools.partial(GroupNorm, groups, norm_eps)

  def places(dim: int) -> Callable[..., PlacesAttention]:
    heads = dim // (head_dim or dim)
    own = functools.partial(
      Attention, dim, heads, heads, dim // heads, kind, bias=True,
      out_bias=True, kernel=kernel, std=std, out_factor=0.0,
      fused=fuse_projections,
    )  # fmt: skip
    cross = None
    if reads is not None:
      cross = functools.partial(own, cross=True, memory_dim=text_dim)
    return functools.partial(PlacesAttention, norm, own, cross)

  return Unet(
    image=(image_size, image_size, channels),
    classes=classes,
    widths=tuple(widths),
    blocks=blocks,
    attends=attends,
    by_blocks=resample == "block",
    sigma=sigma,
    dtype=kind,
    std=std,
    remat=remat,
    norm=norm,
    residual=functools.partial(
      ResidualBlock, norm=norm, dtype=kind, std=std, dropout=dropout,
      scale_shift=scale_shift,
    ),
    attention=places,
    condition=functools.partial(
      Condition, classes, 4 * widths[0], kind, std, waves=widths[0],
      reader=reads,
    ),
    text_length=text_length or 0,
    features=text_dim if text_layers == 0 else 0,
  )  # fmt: skip
