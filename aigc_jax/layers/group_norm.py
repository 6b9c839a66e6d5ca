"""Group norm (arXiv:1803.08494) of rows and columns, and its gradient."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax import sharding
from aigc_jax.layers import sums
from aigc_jax.layers.forms import are_plain
from aigc_jax.layers.rounding import rounded


class GroupNorm(nn.Module):
  """scale * normalised x + bias.

  Mean zero and mean square one over all places and the channels of a group;
  statistics in float32.
  """

  groups: int
  eps: float

  @nn.compact
  def __call__(self, x_BYXD: jax.Array) -> jax.Array:
    D = x_BYXD.shape[-1]
    start = nn.initializers.ones, nn.initializers.zeros
    scale_D, bias_D = (
      self.param(name, sharding.named(init, "D"), (D,))
      for name, init in zip(("scale", "bias"), start, strict=True)
    )
    how = How(self.groups, self.eps)
    if are_plain():
      return _formula(how, x_BYXD, scale_D, bias_D)[0]
    return _normalised(how, x_BYXD, scale_D, bias_D)


class How(NamedTuple):
  """What does not depend on data; constant under jit."""

  groups: int
  eps: float


def _formula(how: How, x_BYXD, scale_D, bias_D):
  """(y, the mean and one over the deviation of each channel (B, 1, 1, D))."""
  mean = _over_groups(how, sums.over_places(_float32, x_BYXD), x_BYXD)

  def square(x, mean):
    return (_float32(x) - mean) ** 2

  found = sums.over_places(square, x_BYXD, mean)
  rate = jax.lax.rsqrt(_over_groups(how, found, x_BYXD) + how.eps)
  y = (_float32(x_BYXD) - mean) * rate * _float32(scale_D) + _float32(bias_D)
  return rounded(y, x_BYXD.dtype), mean, rate


def _over_groups(how: How, sum_BYXD, x_BYXD):
  """Means of x's groups, at each of their channels, from sums over places."""
  B, Y, X, D = x_BYXD.shape
  size = D // how.groups
  total = jnp.sum(sum_BYXD.reshape(B, 1, 1, how.groups, size), -1)
  return jnp.repeat(total / (Y * X * size), size, axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalised(how: How, x_BYXD, scale_D, bias_D):
  return _formula(how, x_BYXD, scale_D, bias_D)[0]


def _forward(how: How, x, scale, bias):
  y, mean, rate = _formula(how, x, scale, bias)
  return y, (x, scale, bias, mean, rate)


def _backward(how: How, kept, dy):
  x, scale, bias, mean, rate = kept

  def along(dy, x, mean):
    return _float32(dy) * (_float32(x) - mean)

  # Of each channel of each image.
  dy_sum = sums.over_places(_float32, dy)
  along_sum = sums.over_places(along, dy, x, mean) * rate
  factor = _float32(scale)
  # The gradient g = dy * scale of what is normalised loses its mean, and what
  # lies along it.
  mean_g = _over_groups(how, dy_sum * factor, x)
  mean_along = _over_groups(how, along_sum * factor, x)
  centred = (_float32(x) - mean) * rate
  dx = (_float32(dy) * factor - mean_g - centred * mean_along) * rate
  dscale = jnp.sum(along_sum, axis=(0, 1, 2)).astype(scale.dtype)
  dbias = jnp.sum(dy_sum, axis=(0, 1, 2)).astype(bias.dtype)
  return rounded(dx, x.dtype), dscale, dbias


_normalised.defvjp(_forward, _backward)


def _float32(x):
  return x.astype(jnp.float32)
