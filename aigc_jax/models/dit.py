"""DiT: what to take from a noisy image, by a stack of adaptive blocks.

Diffusion transformer, arXiv:2212.09748, with adaLN-Zero.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax import errors, sharding
from aigc_jax.layers.adaptive import AdaptiveBlock, Modulation, modulated
from aigc_jax.layers.attention import Attention
from aigc_jax.layers.block import Scene
from aigc_jax.layers.einsum import Einsum
from aigc_jax.layers.mlp import Mlp
from aigc_jax.layers.patches import Patches, sinusoids_2d
from aigc_jax.layers.position import for_rows
from aigc_jax.layers.products import (
  PRODUCTS,
  beside_blocks,
  operand_dtype,
)
from aigc_jax.layers.stack import Stack
from aigc_jax.layers.visible import Visible
from aigc_jax.models.checks import at_least_1, in_patches, share
from aigc_jax.models.condition import Condition, reader
from aigc_jax.models.decoder import checked_dtype
from aigc_jax.models.denoiser import Denoiser
from aigc_jax.models.images import check_images

Batch = Mapping[str, jax.Array]


class Dit(Denoiser):
  """A prediction for each pixel of "images" (B, Y, X, C) at "time" (B,).

  Returns (B, Y, X, C) float32, with `sigma` (B, Y, X, 2 C): the second half is
  of the variance (arXiv:2102.09672). "labels" (B,) from 0; from `classes` on
  they are none. With a text_length above 0 captions instead, "tokens" (B, S),
  read by cross attention in each block (arXiv:2310.00426). "time" goes from 0,
  the image, to 1, the noise.
  """

  image: tuple[int, int, int]  # Y, X, C
  classes: int
  patch: int
  dim: int
  sigma: bool
  dtype: jnp.dtype
  norm_eps: float
  patches: Callable[..., Patches]
  condition: Callable[..., Condition]
  modulation: Callable[..., Modulation]
  stack: Callable[..., Stack]
  products: str = "plain"
  text_length: int = 0
  features: int = 0

  @nn.compact
  def __call__(self, batch: Batch) -> jax.Array:
    images_BYXC = batch["images"]
    check_images(images_BYXC, self.image)
    Y, X, C = self.image
    P, D = self.patch, self.dim
    x_BTD = self.patches(name="patches")(images_BYXC)
    places = sinusoids_2d(Y // P, X // P, D, self.dtype)
    x_BTD = x_BTD + for_rows(places, len(x_BTD))
    asked = self.condition(name="condition")(batch)
    scene = Scene(
      Visible(causal=False),
      memory_BSD=asked.memory_BSD,
      memory_visible=asked.visible(x_BTD.shape[1]),
      condition_BD=asked.condition_BD,
    )
    x_BTD, _ = self.stack(name="stack")(x_BTD, scene)
    shift, scale = self.modulation(parts=2, name="modulation")(
      asked.condition_BD
    )
    x_BTD = modulated(x_BTD, shift, scale, self.norm_eps)
    out = C * (2 if self.sigma else 1)
    project = Einsum(
      "BTD,DYXC->BTYXC", (D, P, P, out), self.dtype, True, factor=0.0,
      products=beside_blocks(self.products), name="projection",
    )  # fmt: skip
    cut = project(x_BTD).reshape(-1, Y // P, X // P, P, P, out)
    whole_BYXC = cut.swapaxes(2, 3).reshape(-1, Y, X, out)
    return sharding.constrain(whole_BYXC.astype(jnp.float32), "BYXC")

  @property
  def operand_dtype(self) -> jnp.dtype:
    """Of what products multiply, other than in 8 bits."""
    return operand_dtype(self.dtype, self.products)


def dit(
  *,
  classes: int,
  image_size: int,
  channels: int,
  patch: int,
  layers: int,
  dim: int,
  heads: int,
  mlp_dim: int | None,
  sigma: bool,
  activation: str = "gelu_tanh",
  norm_eps: float = 1e-6,
  init_std: float | None = None,
  dropout: float = 0.0,
  dtype: str = "float32",
  remat: str = "none",
  unroll: int | None = 1,
  kernel: str = "auto",
  fuse_projections: bool = True,
  products: str = "plain",
  vocab: int | None = None,
  text_length: int | None = None,
  text_layers: int | None = None,
  text_dim: int | None = None,
  text_heads: int | None = None,
  text_mlp_dim: int | None = None,
  text_end: int | None = None,
) -> Dit:
  """A Dit from plain values; the keys of `config.model`.

  classes: labels that it is told, 0 for none. sigma: whether the variance is
  predicted too. mlp_dim: None is 4 dim. init_std: None is by fan-in;
  projections that begin as zeros do so anyway. vocab, text_*: of the captions
  that it reads, None for no captions; text_end: the id that ends one.
  text_layers=0: another model reads them (models/prompted.py), whose features
  have text_dim numbers. Raises BadConfig where they cannot go together.
  """
  at_least_1(
    image_size=image_size, channels=channels, patch=patch, layers=layers,
    dim=dim, heads=heads,
  )  # fmt: skip
  mlp_dim = 4 * dim if mlp_dim is None else mlp_dim
  at_least_1(mlp_dim=mlp_dim)
  share(dropout=dropout)
  errors.choose(products, PRODUCTS, "compute.products")
  in_patches(image_size, patch)
  if dim % heads or dim % 4:
    raise errors.BadConfig(
      f"model.dim={dim} must be divisible by model.heads={heads}, and by 4 for "
      "the positions of rows and columns"
    )
  kind, std = checked_dtype(dtype), init_std or 0.0
  small = beside_blocks(products)
  reads = reader(
    classes=classes, vocab=vocab, text_length=text_length,
    text_layers=text_layers, text_dim=text_dim, text_heads=text_heads,
    text_mlp_dim=text_mlp_dim, text_end=text_end, norm_eps=norm_eps, dtype=kind,
    std=std, dropout=dropout, remat=remat, kernel=kernel,
    fused=fuse_projections,
  )  # fmt: skip
  modulation = functools.partial(Modulation, dim, dtype=kind, products=small)
  attention = functools.partial(
    Attention, dim, heads, heads, dim // heads, kind, bias=True, out_bias=True,
    kernel=kernel, std=std, fused=fuse_projections, products=products,
  )  # fmt: skip
  mlp = functools.partial(
    Mlp, dim, mlp_dim, activation, False, kind, True, std, 1.0,
    fuse_projections, products,
  )  # fmt: skip
  cross = None
  if reads is not None:  # begins as adding nothing
    cross = functools.partial(
      attention, cross=True, memory_dim=text_dim, out_factor=0.0
    )
  block = functools.partial(
    AdaptiveBlock, modulation, attention, mlp, norm_eps, dropout, cross
  )
  return Dit(
    image=(image_size, image_size, channels),
    classes=classes,
    patch=patch,
    dim=dim,
    sigma=sigma,
    dtype=kind,
    norm_eps=norm_eps,
    patches=functools.partial(
      Patches, patch, channels, dim, kind, std, products
    ),
    condition=functools.partial(
      Condition, classes, dim, kind, std, small, reader=reads
    ),
    modulation=modulation,
    stack=functools.partial(
      Stack, layers, block, remat=remat, unroll=unroll or 0
    ),
    products=products,
    text_length=text_length or 0,
    features=text_dim if text_layers == 0 else 0,
  )
