"""VQ-VAE: an image as a small grid of codes, and back.

arXiv:1711.00937, by the nets that the VAE has; FSQ (arXiv:2309.15505) where
codes are a grid of numbers. Codes lie in the order of reading, along the rows.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from aigc_jax import errors
from aigc_jax.layers.einsum import Einsum
from aigc_jax.layers.quantize import Codebook, Grid
from aigc_jax.layers.residual_stages import ResidualStages
from aigc_jax.layers.stages import Stages
from aigc_jax.models.checks import at_least_1
from aigc_jax.models.decoder import checked_dtype
from aigc_jax.models.images import check_images, image_example
from aigc_jax.models.nets import nets

Batch = Mapping[str, jax.Array]
QUANTIZERS = ("ema", "gradient", "fsq")
LEAST = 3  # levels of a channel of FSQ


@runtime_checkable
class Codes(Protocol):
  """A flax module that makes codes of images, and images of codes.

  image: (Y, X, C). places: rows and columns of the codes of an image. codes:
  how many there are to choose from at each place.
  """

  image: tuple[int, int, int]

  @property
  def places(self) -> tuple[int, int]: ...

  @property
  def codes(self) -> int: ...

  def encode(self, images_BYXC: jax.Array) -> jax.Array:
    """Codes (B, T) int32, from 0 to `codes` - 1, along the rows."""

  def decode(self, codes_BT: jax.Array) -> jax.Array:
    """Images (B, Y, X, C) float32."""


@struct.dataclass
class Coded:
  """What a VQ-VAE says of images, all float32 but the codes.

  commitment_B, codebook_B: as layers/quantize.py has them.
  """

  pixels_BYXC: jax.Array
  codes_BT: jax.Array
  commitment_B: jax.Array
  codebook_B: jax.Array


class Sensor(nn.Module):
  """(B, Y, X, C) -> (B, T, D), what is to be quantised."""

  stages: Stages | ResidualStages
  dim: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BYXC: jax.Array) -> jax.Array:
    x = self.stages.down(x_BYXC, self.dim)
    project = Einsum(
      "BTF,FD->BTD", (x.shape[-1], self.dim), self.dtype, True, name="code"
    )
    return project(x.reshape(len(x), -1, x.shape[-1])).astype(jnp.float32)


class Painter(nn.Module):
  """Vectors (B, T, D) of codes -> pixels (B, Y, X, C)."""

  image: tuple[int, int, int]
  stages: Stages | ResidualStages
  dim: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    Y, X, C = self.image
    small, width = 2**self.stages.halvings, self.stages.channels(self.dim)
    x = Einsum("BTD,DF->BTF", (self.dim, width), self.dtype, True, name="code")(
      x_BTD
    )
    x = x.reshape(-1, Y // small, X // small, width)
    return self.stages.up(x, C)


class Vq(nn.Module):
  """What is `Coded` of "images" (B, Y, X, C).

  A quantiser that draws new codes from the batch takes its "draw" (B, 2); rows
  of weight 0, where it has "weights" (B,), move no codebook.
  """

  image: tuple[int, int, int]  # Y, X, C
  stages: Stages | ResidualStages
  quantizer: Callable[..., nn.Module]
  dtype: jnp.dtype

  def setup(self):
    self.book = self.quantizer()
    parts = self.stages, self.book.dim, self.dtype
    self.encoder = Sensor(*parts)
    self.decoder = Painter(self.image, *parts)

  def __call__(self, batch: Batch) -> Coded:
    images_BYXC = batch["images"]
    check_images(images_BYXC, self.image, self.name)
    weights_B = batch.get("weights", jnp.ones(len(images_BYXC)))
    found = self.book(self.encoder(images_BYXC), weights_B, batch.get("draw"))
    return Coded(
      self.decoder(found.vectors_BTD),
      found.codes_BT,
      found.commitment_B,
      found.codebook_B,
    )

  def encode(self, images_BYXC: jax.Array) -> jax.Array:
    check_images(images_BYXC, self.image, self.name)
    return self.book.encode(self.encoder(images_BYXC))

  def decode(self, codes_BT: jax.Array) -> jax.Array:
    return self.decoder(self.book.vectors(codes_BT))

  def reconstruct(self, images_BYXC: jax.Array) -> jax.Array:
    """The images that their codes make."""
    return self.decode(self.encode(images_BYXC))

  @property
  def codes(self) -> int:
    return self.quantizer(parent=None).codes

  @property
  def places(self) -> tuple[int, int]:
    small = 2**self.stages.halvings
    return self.image[0] // small, self.image[1] // small

  @property
  def operand_dtype(self) -> jnp.dtype:
    """Of what products multiply."""
    return self.dtype

  def example(self) -> dict[str, jax.ShapeDtypeStruct]:
    """An abstract batch of one row."""
    found = image_example(self.image)
    if self.quantizer(parent=None).draws:
      found["draw"] = jax.ShapeDtypeStruct((1, 2), jnp.uint32)
    return found


def vq(
  *,
  image_size: int,
  channels: int,
  widths: Sequence[int],
  quantizer: str = "ema",
  codes: int | None = None,
  dim: int | None = None,
  levels: Sequence[int] = (),
  decay: float = 0.99,
  revive: float = 0.1,
  cosine: bool = False,
  blocks: int = 0,
  attention: Sequence[int] = (),
  groups: int = 32,
  activation: str = "silu",
  dtype: str = "float32",
  remat: str = "none",
  kernel: str = "auto",
  fuse_projections: bool = True,
) -> Vq:
  """A Vq from plain values; the keys of `config.model`.

  widths: of the stages, each of which halves rows and columns. quantizer: ema,
  a codebook of `codes` vectors of width `dim` that are running means (decay),
  one that comes less than `revive` times as often as an even share starts anew
  as a vector of the batch; gradient, the same moved by its loss; fsq, a grid of
  `levels` by channel, whose codes and dim follow. cosine: vectors have length
  one. blocks, attention, groups: of residual nets, as of a vae. Raises
  BadConfig where they cannot go together.
  """
  at_least_1(image_size=image_size, channels=channels)
  kind = checked_dtype(dtype)
  errors.choose(quantizer, dict.fromkeys(QUANTIZERS), "model.quantizer")
  return Vq(
    image=(image_size, image_size, channels),
    stages=nets(
      image_size=image_size, widths=widths, blocks=blocks, attention=attention,
      groups=groups, activation=activation, dtype=kind, remat=remat,
      kernel=kernel, fused=fuse_projections,
    ),
    quantizer=_grid(levels, codes, dim)
    if quantizer == "fsq"
    else _codebook(quantizer, codes, dim, levels, decay, revive, cosine),
    dtype=kind,
  )  # fmt: skip


def _grid(levels, codes: int | None, dim: int | None) -> Callable[..., Grid]:
  if not levels or any(n < LEAST for n in levels):
    raise errors.BadConfig(
      f"model.levels={tuple(levels)}: fsq has one number from {LEAST} for each "
      "channel, such as (8, 5, 5, 5) for 1,000 codes"
    )
  follow = dict(codes=math.prod(levels), dim=len(levels))
  for name, given in dict(codes=codes, dim=dim).items():
    if given not in (None, follow[name]):
      raise errors.BadConfig(
        f"model.{name}={given}, and model.levels={tuple(levels)} makes "
        f"{follow[name]}: --config.model.{name}=None follows it"
      )
  return functools.partial(Grid, tuple(levels))


def _codebook(
  quantizer: str, codes, dim, levels, decay: float, revive: float, cosine: bool
) -> Callable[..., Codebook]:
  if levels:
    raise errors.BadConfig(
      f"model.levels={tuple(levels)} is of model.quantizer='fsq', and here it "
      f"is {quantizer!r}: leave it empty"
    )
  for name, value in dict(codes=codes, dim=dim).items():
    if value is None:
      raise errors.BadConfig(
        f"model.{name}=None: model.quantizer={quantizer!r} takes a number, "
        f"such as --config.model.{name}={512 if name == 'codes' else 64}"
      )
  at_least_1(codes=codes, dim=dim)
  for name, value in dict(decay=decay, revive=revive).items():
    if not 0 <= value < 1:
      raise errors.BadConfig(f"model.{name}={value}: expected 0 to below 1")
  moved = quantizer == "ema"
  return functools.partial(
    Codebook, codes, dim, decay if moved else None, revive if moved else 0.0,
    cosine,
  )  # fmt: skip
