"""ViT: an image as patches, a stack of two-sided blocks, labels' logits.

Vision transformer, arXiv:2010.11929. With a mean over the patches in place of
the class token and fixed positions it is the simple baseline of
arXiv:2205.01580; registers are arXiv:2309.16588. Without labels it gives the
features of an image, as the towers of CLIP and SigLIP do (models/clip.py).
"""

import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax import errors
from aigc_jax.layers.attention import Attention
from aigc_jax.layers.block import Block, Dropout, Scene
from aigc_jax.layers.classifier import Classifier, Scores, classifier
from aigc_jax.layers.mlp import Mlp
from aigc_jax.layers.norm import Norm, NormFactory
from aigc_jax.layers.patches import (
  LearnedPlaces,
  Patches,
  Tokens,
  rotation_2d,
  sinusoids_2d,
)
from aigc_jax.layers.pooling import AttentionPool
from aigc_jax.layers.position import for_rows
from aigc_jax.layers.products import PRODUCTS, operand_dtype
from aigc_jax.layers.stack import Stack
from aigc_jax.layers.visible import Visible
from aigc_jax.models.checks import at_least_1, in_patches, share
from aigc_jax.models.decoder import checked_dtype
from aigc_jax.models.images import check_images, image_example

POSITIONS = ("learned", "sincos", "rotary", "none")
POOLS = ("token", "mean", "attention")
Batch = Mapping[str, jax.Array]


class Vit(nn.Module):
  """Scores of labels for "images" (B, Y, X, C) of a batch.

  Without a head, the features (B, D) that labels would be read from.
  """

  image: tuple[int, int, int]  # Y, X, C
  patch: int
  dtype: jnp.dtype
  patches: Callable[..., Patches]
  stack: Callable[..., Stack]
  norm: NormFactory
  head: Callable[..., Classifier] | None
  tokens: Callable[..., Tokens]
  learned: Callable[..., LearnedPlaces]
  pool: str
  registers: int
  position: str
  head_dim: int
  rotary_base: float
  dropout: float
  products: str = "plain"
  norm_before: bool = False
  pooling: Callable[..., AttentionPool] | None = None

  @nn.compact
  def __call__(self, batch: Batch) -> Scores | jax.Array:
    images_BYXC = batch["images"]
    check_images(images_BYXC, self.image)
    x_BTD = self.patches(name="patches")(images_BYXC)
    x_BTD = self._with_tokens(x_BTD)
    if self.norm_before:
      x_BTD = self.norm(name="norm_before")(x_BTD)
    x_BTD = Dropout(self.dropout, name="dropout")(x_BTD)
    scene = Scene(Visible(causal=False), self._turn())
    x_BTD, _ = self.stack(name="stack")(x_BTD, scene)
    x_BTD = self.norm(name="norm")(x_BTD)
    x_BD = self._pooled(x_BTD)
    return x_BD if self.head is None else self.head(name="head")(x_BD)

  def _pooled(self, x_BTD: jax.Array) -> jax.Array:
    """What is known of the whole image, (B, D)."""
    if self.pool == "token":
      return x_BTD[:, 0]
    x_BTD = x_BTD[:, self.registers :]
    if self.pool == "attention":
      return self.pooling(name="pool")(x_BTD)
    return jnp.mean(x_BTD, axis=1, dtype=jnp.float32)

  def _with_tokens(self, x_BTD: jax.Array) -> jax.Array:
    """Patches with their positions, after the class token and registers."""
    B = len(x_BTD)
    if self.pool == "token":
      x_BTD = jnp.concatenate(
        [self.tokens(count=1, name="class_token")(B), x_BTD], axis=1
      )
    place_BTD = self._places(x_BTD.shape[-1])
    if place_BTD is not None:
      x_BTD = x_BTD + for_rows(place_BTD, B)
    if self.registers:
      # Between the class token and the patches; they have no place.
      registers = self.tokens(count=self.registers, name="register_token")(B)
      first = int(self.pool == "token")
      x_BTD = jnp.concatenate(
        [x_BTD[:, :first], registers, x_BTD[:, first:]], axis=1
      )
    return x_BTD

  @property
  def _grid(self) -> tuple[int, int]:
    return self.image[0] // self.patch, self.image[1] // self.patch

  def _places(self, dim: int) -> jax.Array | None:
    """What is added to the class token and the patches, (1, T, D)."""
    if self.position == "learned":
      places = math.prod(self._grid) + (self.pool == "token")
      return self.learned(length=places, name="position")()
    if self.position == "sincos":
      fixed = sinusoids_2d(*self._grid, dim, self.dtype)
      return jnp.pad(fixed, ((0, 0), (int(self.pool == "token"), 0), (0, 0)))
    return None

  def _turn(self):
    if self.position != "rotary":
      return None
    before = self.registers + (self.pool == "token")
    return rotation_2d(*self._grid, self.head_dim, self.rotary_base, before)

  @property
  def operand_dtype(self) -> jnp.dtype:
    """Of what products multiply, other than in 8 bits."""
    return operand_dtype(self.dtype, self.products)

  def example(self) -> dict[str, jax.ShapeDtypeStruct]:
    """An abstract batch of one row."""
    return image_example(self.image)


def vit(
  *,
  classes: int | None,
  image_size: int,
  channels: int,
  patch: int,
  layers: int,
  dim: int,
  heads: int,
  mlp_dim: int | None,
  activation: str,
  norm_eps: float,
  position: str,
  pool: str,
  registers: int,
  rotary_base: float,
  init_std: float | None,
  dropout: float,
  dtype: str,
  remat: str,
  unroll: int | None,
  kernel: str,
  fuse_projections: bool = True,
  products: str = "plain",
  norm_before: bool = False,
  patch_bias: bool = True,
) -> Vit:
  """A Vit from plain values; the keys of `config.model`.

  position: learned, sincos (fixed, of both directions), rotary (of both
  directions), none. pool: what the labels are read from, a class token, the
  mean over the patches, or what a learned query reads of them by attention
  (arXiv:2106.04560). classes: None gives features and no labels. mlp_dim: None
  is 4 dim. init_std: None is by fan-in. norm_before: a norm before the first
  block too. patch_bias: of the patches' projection. Raises BadConfig where
  they cannot go together.
  """
  if classes is not None:
    at_least_1(classes=classes)
  at_least_1(
    image_size=image_size, channels=channels, patch=patch,
    layers=layers, dim=dim, heads=heads,
  )  # fmt: skip
  mlp_dim = 4 * dim if mlp_dim is None else mlp_dim
  at_least_1(mlp_dim=mlp_dim)
  share(dropout=dropout)
  errors.choose(position, dict.fromkeys(POSITIONS), "model.position")
  errors.choose(pool, dict.fromkeys(POOLS), "model.pool")
  errors.choose(products, PRODUCTS, "compute.products")
  in_patches(image_size, patch)
  if dim % heads:
    raise errors.BadConfig(
      f"model.dim={dim} is not divisible by model.heads={heads}"
    )
  head_dim = dim // heads
  of_four = {"sincos": ("dim", dim), "rotary": ("dim / heads", head_dim)}
  what, width = of_four.get(position, ("dim", 4))
  if width % 4:
    raise errors.BadConfig(
      f"model.position={position!r} needs a multiple of 4 for model.{what}, "
      f"which is {width}"
    )
  if not isinstance(registers, int) or registers < 0:
    raise errors.BadConfig(f"model.registers={registers}: expected 0 or more")
  kind, std = checked_dtype(dtype), init_std or 0.0
  norm = functools.partial(Norm, True, norm_eps, 0.0, True)
  # Each block adds twice to the residual stream (GPT-2, section 2.3).
  out_factor = 1.0 / math.sqrt(2 * layers)
  attention = functools.partial(
    Attention, dim, heads, heads, head_dim, kind, bias=True, out_bias=True,
    kernel=kernel, std=std, out_factor=out_factor, fused=fuse_projections,
    products=products,
  )  # fmt: skip
  mlp = functools.partial(
    Mlp, dim, mlp_dim, activation, False, kind, True, std, out_factor,
    fuse_projections, products,
  )  # fmt: skip
  block = functools.partial(Block, norm, attention, mlp, dropout=dropout)
  tokens = functools.partial(Tokens, dim, kind, std)
  pooling = None
  if pool == "attention":
    reads = functools.partial(attention, cross=True, out_factor=1.0)
    pooling = functools.partial(AttentionPool, tokens, reads, norm, mlp)
  return Vit(
    image=(image_size, image_size, channels),
    patch=patch,
    dtype=kind,
    patches=functools.partial(
      Patches, patch, channels, dim, kind, std, products, patch_bias
    ),
    stack=functools.partial(
      Stack, layers, block, remat=remat, unroll=unroll or 0
    ),
    norm=norm,
    head=None
    if classes is None
    else functools.partial(
      classifier, dim, classes, dtype=kind, std=std, products=products
    ),
    tokens=tokens,
    learned=functools.partial(LearnedPlaces, dim, kind, std),
    pool=pool,
    registers=registers,
    position=position,
    head_dim=head_dim,
    rotary_base=rotary_base,
    dropout=dropout,
    products=products,
    norm_before=norm_before,
    pooling=pooling,
  )
