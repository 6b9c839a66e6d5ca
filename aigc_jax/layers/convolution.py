"""Convolution over rows and columns, and the largest of neighbours."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from aigc_jax import sharding
from aigc_jax.layers.einsum import drawn
from aigc_jax.layers.forms import are_counted, form
from aigc_jax.layers.products import Rounded

NAMES = ("NHWC", "HWIO", "NHWC")  # of lax, for BYXC, YXCD, BYXD


class Convolution(nn.Module):
  """A square kernel over (B, Y, X, C), padded by half of its width; no bias.

  around: how many zeros stand before and after rows and columns instead. Its
  deviation is `std`, or where that is 0 that of arXiv:1502.01852 for the
  backward pass, by which a ReLU behind it keeps the gradient's variance; times
  `factor`.
  """

  width: int
  channels: int
  dim: int
  dtype: jnp.dtype
  stride: int = 1
  std: float = 0.0
  factor: float = 1.0
  around: tuple[int, int] | None = None

  @nn.compact
  def __call__(self, x_BYXC: jax.Array) -> jax.Array:
    """(B, Y / stride, X / stride, D), rounded up; one less of an even width."""
    shape = (self.width, self.width, self.channels, self.dim)
    std = self.std or math.sqrt(2.0 / (self.width**2 * self.dim))
    w_YXCD = self.param("w", drawn("YXCD", 0, std, self.factor), shape)
    y_BYXD = convolve(
      x_BYXC.astype(self.dtype), w_YXCD, self.stride, self.around
    )
    return sharding.constrain(y_BYXD, "BYXD")


class Doubled(nn.Module):
  """A convolution of 4 x 4 the other way: twice the rows and columns; no bias.

  Known as a transposed one, of stride 2: each place adds to 4 x 4 places, two
  apart from those of its neighbour. Its deviation is `std`, or where that is 0
  the one by which a ReLU before it keeps the variance.
  """

  channels: int
  dim: int
  dtype: jnp.dtype
  std: float = 0.0

  @nn.compact
  def __call__(self, x_BYXC: jax.Array) -> jax.Array:
    """(B, 2 Y, 2 X, D)."""
    # Four of the sixteen weights of a channel meet in a place.
    std = self.std or math.sqrt(2.0 / (4 * self.channels))
    w_YXCD = self.param(
      "w", drawn("YXCD", 0, std), (4, 4, self.channels, self.dim)
    )
    y_BYXD = double(x_BYXC.astype(self.dtype), w_YXCD)
    return sharding.constrain(y_BYXD, "BYXD")


def double(x_BYXC: jax.Array, w_YXCD: jax.Array | Rounded) -> jax.Array:
  """`Doubled`: row y of x adds w[i] to row 2 y + i - 1."""
  w_YXCD = as_operand(w_YXCD, x_BYXC.dtype)
  if are_counted():
    return _doubled_counted(x_BYXC, w_YXCD)
  return lax.conv_general_dilated(
    x_BYXC, w_YXCD[::-1, ::-1], (1, 1), [(2, 2)] * 2, lhs_dilation=(2, 2),
    dimension_numbers=NAMES,
  )  # fmt: skip


def as_operand(w: jax.Array | Rounded, dtype: jnp.dtype) -> jax.Array:
  """Weights as products of this dtype take them."""
  return (_copy(*w) if isinstance(w, Rounded) else w).astype(dtype)


def convolve(
  x_BYXC: jax.Array,
  w_YXCD: jax.Array | Rounded,
  stride: int,
  around: tuple[int, int] | None = None,
) -> jax.Array:
  """Products of x's dtype, summed in float32 and rounded to it.

  around: zeros before and after rows and columns; None is half of the kernel's
  width, rounded down where it is even.
  """
  w_YXCD = as_operand(w_YXCD, x_BYXC.dtype)
  around = around or ((w_YXCD.shape[0] - 1) // 2,) * 2
  if are_counted():
    return _counted(x_BYXC, w_YXCD, stride, around)
  return form("convolve", _as_it_is)(_convolved, x_BYXC, w_YXCD, stride, around)


def _as_it_is(formula: Callable, *args) -> jax.Array:
  return formula(*args)


def _convolved(
  x_BYXC: jax.Array, w_YXCD: jax.Array, stride: int, around: tuple[int, int]
) -> jax.Array:
  return lax.conv_general_dilated(
    x_BYXC, w_YXCD, (stride, stride), [around] * 2, dimension_numbers=NAMES
  )


@jax.custom_vjp
def _copy(full: jax.Array, copy: jax.Array) -> jax.Array:
  """The copy, whose gradient is the original's."""
  return copy


def _copy_forward(full, copy):
  return copy, jnp.zeros((0,), full.dtype)


def _copy_backward(like, dcopy):
  return dcopy.astype(like.dtype), None


_copy.defvjp(_copy_forward, _copy_backward)


def _counted(
  x_BYXC: jax.Array, w_YXCD: jax.Array, stride: int, around: tuple[int, int]
) -> jax.Array:
  """What has the multiplications of a convolution, and no other sense.

  For `flops.count`. A convolution's own gradient for what it reads would be
  counted with the zeros that a stride puts into it.
  """
  # What the zeros around do not make up for.
  lost = w_YXCD.shape[0] - 1 - sum(around)
  x_BYXC = x_BYXC[:, lost::stride, lost::stride]
  read = (*x_BYXC.shape[:3], *w_YXCD.shape[:2], x_BYXC.shape[-1])
  x_BYXHWC = jnp.broadcast_to(x_BYXC[:, :, :, None, None], read)
  return jnp.einsum("BYXHWC,HWCD->BYXD", x_BYXHWC, w_YXCD)


def _doubled_counted(x_BYXC: jax.Array, w_YXCD: jax.Array) -> jax.Array:
  """The same of `double`: each place is multiplied with all the weights."""
  y_BYXHWD = jnp.einsum("BYXC,HWCD->BYXHWD", x_BYXC, w_YXCD)
  y_BYXD = y_BYXHWD.sum((3, 4))
  return y_BYXD.repeat(2, axis=1).repeat(2, axis=2)


def largest_of_neighbours(x_BYXC: jax.Array) -> jax.Array:
  """The largest of 3 x 3 places, at every other place."""
  return form("largest_of_neighbours", _as_it_is)(_largest, x_BYXC)


def _largest(x_BYXC: jax.Array) -> jax.Array:
  around = ((0, 0), (1, 1), (1, 1), (0, 0))
  return lax.reduce_window(
    x_BYXC, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), around
  )
