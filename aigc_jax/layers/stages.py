"""Stages of convolutions that halve rows and columns, and double them again.

Functions, to be called in a module's compact method: their parameters are that
module's own.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax import sharding
from aigc_jax.layers.convolution import Convolution
from aigc_jax.layers.mlp import activate


class Convolved(nn.Module):
  """A convolution of 3 x 3, or `width`, with a bias."""

  channels: int
  dim: int
  dtype: jnp.dtype
  stride: int = 1
  width: int = 3
  std: float = 0.0
  factor: float = 1.0

  @nn.compact
  def __call__(self, x_BYXC: jax.Array) -> jax.Array:
    y = Convolution(
      self.width, self.channels, self.dim, self.dtype, self.stride, self.std,
      self.factor, name="conv",
    )(x_BYXC)  # fmt: skip
    zeros = sharding.named(nn.initializers.zeros, "D")
    return y + self.param("bias", zeros, (self.dim,)).astype(self.dtype)


def halved(
  x_BYXC: jax.Array, widths: Sequence[int], activation: str, dtype: jnp.dtype
) -> jax.Array:
  """(B, Y / 2**n, X / 2**n, widths[-1]) by n stages of two convolutions."""
  x, before = x_BYXC, x_BYXC.shape[-1]
  for i, width in enumerate(widths):
    for name, stride in (("half", 2), ("more", 1)):
      x = Convolved(before, width, dtype, stride, name=f"{name}{i}")(x)
      x, before = activate(activation, x), width
  return x


def doubled(
  x_BYXD: jax.Array,
  widths: Sequence[int],
  channels: int,
  activation: str,
  dtype: jnp.dtype,
) -> jax.Array:
  """(B, Y * 2**n, X * 2**n, channels) float32: the way back through n stages.

  `x` has widths[-1] channels, before their activation.
  """
  x, before = x_BYXD, x_BYXD.shape[-1]
  for i, width in reversed(list(enumerate(widths))):
    x = activate(activation, x)
    x = x.repeat(2, axis=1).repeat(2, axis=2)
    x = Convolved(before, width, dtype, name=f"double{i}")(x)
    x = activate(activation, x)
    before = width
    x = Convolved(before, width, dtype, name=f"more{i}")(x)
  x = activate(activation, x)
  x = Convolved(before, channels, dtype, name="pixels")(x)
  return x.astype(jnp.float32)
