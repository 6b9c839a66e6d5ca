"""StyleGAN2-like (arXiv:1912.04958): a style in every layer, noise in each.

Kept are the mapping network, weights that are modulated by a style and brought
back to one scale, noise for each place, images summed over the sizes, and a
discriminator of residual blocks. Left out are the filters of its resampling
(places are repeated, and averaged), path lengths, mixed styles, and the
deviation over a batch, by which a row's score would depend on other rows.
"""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax import sharding
from aigc_jax.layers.convolution import Convolution, as_operand, convolve
from aigc_jax.layers.einsum import Einsum, drawn
from aigc_jax.models.checks import at_least_1, in_halves
from aigc_jax.models.decoder import checked_dtype
from aigc_jax.models.gan import LEAK, Bias, Gan, Judged


def _leaky(x: jax.Array) -> jax.Array:
  """A leaky ReLU that keeps the scale of what is normal."""
  return jax.nn.leaky_relu(x, LEAK) * math.sqrt(2 / (1 + LEAK**2))


class Modulated(nn.Module):
  """A convolution whose input channels a style scales, (B, Y, X, D).

  even: whether each output channel is divided by what the scaled weights would
  make its deviation.
  """

  width: int
  channels: int
  dim: int
  latent: int
  dtype: jnp.dtype
  even: bool = True

  @nn.compact
  def __call__(self, x_BYXC: jax.Array, style_BW: jax.Array) -> jax.Array:
    style_BC = 1 + Einsum(
      "BW,WC->BC", (self.latent, self.channels), self.dtype, True, name="style"
    )(style_BW)
    shape = (self.width, self.width, self.channels, self.dim)
    std = 1.0 / math.sqrt(self.width**2 * self.channels)
    w_YXCD = self.param("w", drawn("YXCD", 0, std), shape)
    x_BYXC = (x_BYXC * style_BC[:, None, None]).astype(self.dtype)
    y_BYXD = convolve(x_BYXC, w_YXCD, 1)
    if self.even:
      w = as_operand(w_YXCD, self.dtype).astype(jnp.float32)
      square_CD = jnp.sum(w**2, (0, 1))
      size_BD = jnp.einsum(
        "BC,CD->BD", style_BC.astype(jnp.float32) ** 2, square_CD
      )
      rate_BD = jax.lax.rsqrt(size_BD + 1e-8)
      y_BYXD = (y_BYXD * rate_BD[:, None, None]).astype(self.dtype)
    return sharding.constrain(y_BYXD, "BYXD")


class Styled(nn.Module):
  """A modulated convolution, noise for each place, a bias, a leaky ReLU."""

  channels: int
  dim: int
  latent: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BYXC, style_BW, noise_BYX) -> jax.Array:
    x = Modulated(
      3, self.channels, self.dim, self.latent, self.dtype, name="conv"
    )(x_BYXC, style_BW)
    zeros = sharding.named(nn.initializers.zeros, "D")
    strength_D = self.param("strength", zeros, (self.dim,))
    x = x + (noise_BYX[..., None] * strength_D).astype(self.dtype)
    return _leaky(Bias(name="shift")(x))


class Synthesis(nn.Module):
  """Noise (B, noise_size) -> images: the code first, then a map for each layer.

  From a constant of the smallest size on, each stage doubles rows and columns.
  """

  image: tuple[int, int, int]
  widths: tuple[int, ...]
  latent: int
  mapping_layers: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, noise_BZ: jax.Array) -> jax.Array:
    sizes = _sizes(self.image, len(self.widths))
    code_BZ, rest = noise_BZ[:, : self.latent], noise_BZ[:, self.latent :]
    maps = []
    for Y, X in _maps(sizes):
      maps.append(rest[:, : Y * X].reshape(-1, Y, X))
      rest = rest[:, Y * X :]
    style_BW = Mapping(
      self.latent, self.mapping_layers, self.dtype, name="mapping"
    )(code_BZ)
    wide = self.widths[::-1]
    start = sharding.named(nn.initializers.normal(1.0), "YXD", 1.0)
    start_YXD = self.param("start", start, (*sizes[0], wide[0]))
    x = jnp.broadcast_to(start_YXD, (len(noise_BZ), *start_YXD.shape))
    x, before, image = x.astype(self.dtype), wide[0], 0.0
    for i, width in enumerate(wide):
      x, image = (_twice(x), _twice(image)) if i else (x, image)
      for k in range(2 if i else 1):
        x = self._layer(Styled, before, width, name=f"size{i}_{k}")(
          x, style_BW, maps.pop(0)
        )
        before = width
      shown = Modulated(
        1, width, self.image[-1], self.latent, self.dtype, False,
        name=f"show{i}",
      )(x, style_BW)  # fmt: skip
      image = image + Bias(name=f"shift{i}")(shown.astype(jnp.float32))
    return image

  def _layer(self, kind, before: int, width: int, name: str):
    return kind(before, width, self.latent, self.dtype, name=name)


class Mapping(nn.Module):
  """A code (B, Z), brought to length sqrt(Z), to a style (B, W), W = Z."""

  latent: int
  layers: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-8)
    for i in range(self.layers):
      shape = (self.latent, self.latent)
      x = Einsum("BZ,ZW->BW", shape, self.dtype, True, name=f"layer{i}")(x)
      x = _leaky(x)
    return x


class Judge(nn.Module):
  """Images -> Judged, by residual blocks that halve rows and columns."""

  image: tuple[int, int, int]
  widths: tuple[int, ...]
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, images_BYXC: jax.Array) -> Judged:
    (Y, X), *_ = _sizes(self.image, len(self.widths))
    x = self._convolved(images_BYXC, self.image[-1], self.widths[0], 1, "read")
    x, before = _leaky(x), self.widths[0]
    for i, width in enumerate(self.widths[1:]):
      skipped = _halved(self._convolved(x, before, width, 1, f"skip{i}", False))
      x = _leaky(self._convolved(x, before, before, 3, f"more{i}"))
      x = _leaky(self._convolved(x, before, width, 3, f"half{i}"))
      x, before = (_halved(x) + skipped) / math.sqrt(2), width
    x = _leaky(self._convolved(x, before, before, 3, "last"))
    score = Einsum(
      "BYXD,YXDZ->BZ", (Y, X, before, 1), self.dtype, True, name="score"
    )(x)
    return Judged(score.astype(jnp.float32))

  def _convolved(
    self, x, before: int, width: int, size: int, name: str, bias: bool = True
  ) -> jax.Array:
    std = 1.0 / math.sqrt(size**2 * before)
    x = Convolution(size, before, width, self.dtype, 1, std, name=name)(x)
    return Bias(name=f"{name}_shift")(x) if bias else x


def _sizes(image: tuple[int, int, int], stages: int) -> list[tuple[int, int]]:
  """(rows, columns) of the stages, the smallest first."""
  Y, X, _ = image
  return [(Y >> i, X >> i) for i in reversed(range(stages))]


def _maps(sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
  """The sizes of the maps of noise, one for each layer."""
  return [sizes[0], *(size for size in sizes[1:] for _ in range(2))]


def _twice(x_BYXC: jax.Array) -> jax.Array:
  """Twice the rows and columns, each place four times."""
  return x_BYXC.repeat(2, axis=1).repeat(2, axis=2)


def _halved(x_BYXC: jax.Array) -> jax.Array:
  """Half the rows and columns, means of four places."""
  B, Y, X, C = x_BYXC.shape
  return x_BYXC.reshape(B, Y // 2, 2, X // 2, 2, C).mean((2, 4))


def stylegan(
  *,
  image_size: int,
  channels: int,
  widths: Sequence[int],
  latent: int,
  mapping_layers: int = 8,
  dtype: str = "float32",
) -> Gan:
  """A StyleGAN2-like Gan from plain values; the keys of `config.model`.

  widths: of the stages, from the largest rows and columns to the smallest, each
  half of those before, the same of both players. latent: numbers of a code, and
  of a style. Nothing couples rows; wants objective.r1. Raises BadConfig where
  they cannot go together.
  """
  at_least_1(
    image_size=image_size, channels=channels, latent=latent,
    mapping_layers=mapping_layers,
  )  # fmt: skip
  in_halves(image_size, widths)
  kind, widths = checked_dtype(dtype), tuple(widths)
  image = (image_size, image_size, channels)
  places = sum(Y * X for Y, X in _maps(_sizes(image, len(widths))))
  return Gan(
    image=image,
    noise=(latent + places,),
    dtype=kind,
    make_generator=partial(
      Synthesis, image, widths, latent, mapping_layers, kind
    ),
    make_discriminator=partial(Judge, image, widths, kind),
  )
