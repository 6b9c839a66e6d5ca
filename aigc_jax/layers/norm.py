"""Layer norm (arXiv:1607.06450) and RMS norm (arXiv:1910.07467)."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from aigc_jax import sharding
from aigc_jax.layers import sums
from aigc_jax.layers.forms import are_plain, form
from aigc_jax.layers.rounding import rounded


def normalise(x, scale, bias, *, eps: float, centre: bool, offset: float):
  """The last axis at mean zero (where `centre`) and mean square one.

  Statistics in float32. The backward pass keeps the input and two numbers for
  each row of it: left to automatic differentiation it would keep three float32
  copies.
  """
  how = How(eps, centre, offset)
  if are_plain():
    return _formula(how, x, scale, bias)[0]
  return _normalised(how, x, scale, bias)


class How(NamedTuple):
  """What does not depend on data; constant under jit."""

  eps: float
  centre: bool
  offset: float


def _formula(how: How, x, scale, bias):
  """(y, mean or None, one over the deviation)."""
  D, mean = x.shape[-1], None
  if how.centre:
    mean = sums.total(lambda x: x.astype(jnp.float32), x) / D

  def centred(x):
    y = x.astype(jnp.float32)
    return y if mean is None else y - mean

  square = sums.total(lambda x: centred(x) ** 2, x) / D
  rate = lax.rsqrt(square + how.eps)
  y = centred(x) * rate * (scale.astype(jnp.float32) + how.offset)
  if bias is not None:
    y = y + bias.astype(jnp.float32)
  return rounded(y, x.dtype), mean, rate


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalised(how: How, x, scale, bias):
  return _formula(how, x, scale, bias)[0]


def _normalised_forward(how: How, x, scale, bias):
  y, mean, rate = _formula(how, x, scale, bias)
  return y, (x, scale, bias, mean, rate)


def _normalised_backward(how: How, kept, dy):
  x, scale, bias, mean, rate = kept
  if sharding.platform() != "cpu" or not sharding.alone():
    # Without the barrier XLA recomputes the mean inside the sums below, which
    # then read a float32 array of the size of x (experiments/speed).
    mean, rate = lax.optimization_barrier((mean, rate))
  row_sums = form("row_sums", _row_sums)
  column_sums = form("column_sums", _column_sums)
  D = x.shape[-1]
  factor = scale.astype(jnp.float32) + how.offset
  dy = dy.astype(jnp.float32)
  y = x.astype(jnp.float32)
  if how.centre:
    y = y - mean
  # Of y * rate, the gradient is g = dy * factor; it loses what lies along y,
  # and its mean where y is centred.
  along = row_sums(dy * y, factor) * (rate * rate / D)
  dx = dy * factor - y * along
  if how.centre:
    dx = dx - row_sums(dy, factor) / D
  dx = rounded(dx * rate, x.dtype)
  dscale = column_sums(dy * y, rate).astype(scale.dtype)
  if bias is None:
    return dx, dscale, None
  dbias = column_sums(dy, jnp.ones_like(rate)).astype(bias.dtype)
  return dx, dscale, dbias


_normalised.defvjp(_normalised_forward, _normalised_backward)


def _row_sums(x, factor):
  """Sums of x * factor (D,) over the last axis, which becomes 1."""
  return jnp.sum(x * factor, axis=-1, keepdims=True)


def _column_sums(x, rate):
  """Sums of x * rate (..., 1) over all axes but the last, (D,)."""
  return jnp.sum(x * rate, axis=tuple(range(x.ndim - 1)))


class Norm(nn.Module):
  """scale * normalised x [+ bias], over an axis named by `letter`.

  With offset=1 the scale is stored as its difference from one (Gemma).
  """

  centre: bool
  eps: float
  offset: float = 0.0
  bias: bool = False
  letter: str = "D"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (x.shape[-1],)
    start = nn.initializers.constant(1.0 - self.offset)
    scale = self.param("scale", sharding.named(start, self.letter), shape)
    bias = None
    if self.bias:
      zeros = sharding.named(nn.initializers.zeros, self.letter)
      bias = self.param("bias", zeros, shape)
    return normalise(
      x, scale, bias, eps=self.eps, centre=self.centre, offset=self.offset
    )


CENTRE = {"rms": False, "layer": True}

NormFactory = Callable[..., Norm]
