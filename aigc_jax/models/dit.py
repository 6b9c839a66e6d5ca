"""DiT: what to take from a noisy image, by a stack of adaptive blocks.

Diffusion transformer, arXiv:2212.09748, with adaLN-Zero.
"""

import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax import errors, sharding
from aigc_jax.layers.adaptive import AdaptiveBlock, Modulation, modulated
from aigc_jax.layers.attention import Attention
from aigc_jax.layers.block import Scene
from aigc_jax.layers.einsum import Einsum
from aigc_jax.layers.embed import Embed
from aigc_jax.layers.mlp import Mlp, activate
from aigc_jax.layers.patches import Patches, sinusoids_2d
from aigc_jax.layers.position import for_rows
from aigc_jax.layers.products import PRODUCTS, operand_dtype
from aigc_jax.layers.stack import Stack
from aigc_jax.layers.visible import Visible
from aigc_jax.models.checks import at_least_1, in_patches, share
from aigc_jax.models.decoder import checked_dtype
from aigc_jax.models.images import check_images, image_example

Batch = Mapping[str, jax.Array]
WAVES = 256  # that a time is written in
LONGEST = 10_000.0  # over the shortest of them
TIMES = 1000.0  # in which published models count what is 0 to 1 here


def waves_of(time_B: jax.Array) -> jax.Array:
  """Cosines, then sines, of a time from 0 to 1: (B, WAVES) float32."""
  half = WAVES // 2
  rates = jnp.exp(-math.log(LONGEST) * jnp.arange(half) / half)
  radians = TIMES * time_B.astype(jnp.float32)[:, None] * rates
  return jnp.concatenate([jnp.cos(radians), jnp.sin(radians)], axis=-1)


class Condition(nn.Module):
  """One vector (B, D) of a time and a label; from `classes` on it is none."""

  classes: int
  dim: int
  dtype: jnp.dtype
  std: float = 0.0
  products: str = "plain"

  @nn.compact
  def __call__(self, time_B: jax.Array, labels_B: jax.Array) -> jax.Array:
    D = self.dim
    keys = dict(
      dtype=self.dtype, bias=True, std=self.std, products=self.products
    )
    up = Einsum("BC,CF->BF", (WAVES, D), name="time_up", **keys)
    down = Einsum("BF,FD->BD", (D, D), name="time_down", **keys)
    of_time_BD = down(activate("silu", up(waves_of(time_B))))
    embed = Embed(self.classes + 1, D, self.dtype, self.std, name="embed_label")
    of_label_B1D, _ = embed(jnp.minimum(labels_B, self.classes)[:, None])
    return sharding.constrain(of_time_BD + of_label_B1D[:, 0], "BD")


class Dit(nn.Module):
  """A prediction for each pixel of "images" (B, Y, X, C) at "time" (B,).

  Returns (B, Y, X, C) float32, with `sigma` (B, Y, X, 2 C): the second half is
  of the variance (arXiv:2102.09672). "labels" (B,) from 0; from `classes` on
  they are none. "time" goes from 0, the image, to 1, the noise.
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

  gradual = True  # noise becomes an image step by step

  @nn.compact
  def __call__(self, batch: Batch) -> jax.Array:
    images_BYXC = batch["images"]
    check_images(images_BYXC, self.image)
    Y, X, C = self.image
    P, D = self.patch, self.dim
    x_BTD = self.patches(name="patches")(images_BYXC)
    places = sinusoids_2d(Y // P, X // P, D, self.dtype)
    x_BTD = x_BTD + for_rows(places, len(x_BTD))
    condition_BD = self.condition(name="condition")(
      batch["time"], batch["labels"]
    )
    scene = Scene(Visible(causal=False), condition_BD=condition_BD)
    x_BTD, _ = self.stack(name="stack")(x_BTD, scene)
    shift, scale = self.modulation(parts=2, name="modulation")(condition_BD)
    x_BTD = modulated(x_BTD, shift, scale, self.norm_eps)
    out = C * (2 if self.sigma else 1)
    project = Einsum(
      "BTD,DYXC->BTYXC", (D, P, P, out), self.dtype, True, factor=0.0,
      products=_no_fp8(self.products), name="projection",
    )  # fmt: skip
    cut = project(x_BTD).reshape(-1, Y // P, X // P, P, P, out)
    whole_BYXC = cut.swapaxes(2, 3).reshape(-1, Y, X, out)
    return sharding.constrain(whole_BYXC.astype(jnp.float32), "BYXC")

  @property
  def noise(self) -> tuple[int, ...]:
    """Shape of the noise that an image begins as."""
    return self.image

  def draw(
    self, noise: jax.Array, time_B: jax.Array, labels_B: jax.Array
  ) -> jax.Array:
    """What the objective trained this to predict, (B, Y, X, C)."""
    found = self({"images": noise, "time": time_B, "labels": labels_B})
    return found[..., : self.image[-1]]

  @property
  def operand_dtype(self) -> jnp.dtype:
    """Of what products multiply, other than in 8 bits."""
    return operand_dtype(self.dtype, self.products)

  def example(self) -> dict[str, jax.ShapeDtypeStruct]:
    """An abstract batch of one row."""
    return image_example(self.image) | {
      "time": jax.ShapeDtypeStruct((1,), jnp.float32),
      "labels": jax.ShapeDtypeStruct((1,), jnp.int32),
    }


def _no_fp8(products: str) -> str:
  """Eight bits are for the blocks."""
  return "plain" if products == "fp8" else products


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
) -> Dit:
  """A Dit from plain values; the keys of `config.model`.

  sigma: whether the variance is predicted too. mlp_dim: None is 4 dim.
  init_std: None is by fan-in; projections that begin as zeros do so anyway.
  Raises BadConfig where they cannot go together.
  """
  at_least_1(
    classes=classes, image_size=image_size, channels=channels, patch=patch,
    layers=layers, dim=dim, heads=heads,
  )  # fmt: skip
  mlp_dim = 4 * dim if mlp_dim is None else mlp_dim
  at_least_1(mlp_dim=mlp_dim)
  share(dropout=dropout)
  errors.choose(products, PRODUCTS, "model.products")
  in_patches(image_size, patch)
  if dim % heads or dim % 4:
    raise errors.BadConfig(
      f"model.dim={dim} must be divisible by model.heads={heads}, and by 4 for "
      "the positions of rows and columns"
    )
  kind, std = checked_dtype(dtype), init_std or 0.0
  small = _no_fp8(products)
  modulation = functools.partial(Modulation, dim, dtype=kind, products=small)
  attention = functools.partial(
    Attention, dim, heads, heads, dim // heads, kind, bias=True, out_bias=True,
    kernel=kernel, std=std, fused=fuse_projections, products=products,
  )  # fmt: skip
  mlp = functools.partial(
    Mlp, dim, mlp_dim, activation, False, kind, True, std, 1.0,
    fuse_projections, products,
  )  # fmt: skip
  block = functools.partial(
    AdaptiveBlock, modulation, attention, mlp, norm_eps, dropout
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
    condition=functools.partial(Condition, classes, dim, kind, std, small),
    modulation=modulation,
    stack=functools.partial(
      Stack, layers, block, remat=remat, unroll=unroll or 0
    ),
    products=products,
  )
