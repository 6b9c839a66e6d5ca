"""Stages of convolutions that halve rows and columns, and double them again."""

import dataclasses

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
  around: tuple[int, int] | None = None

  @nn.compact
  def __call__(self, x_BYXC: jax.Array) -> jax.Array:
    y = Convolution(
      self.width, self.channels, self.dim, self.dtype, self.stride, self.std,
      self.factor, self.around, name="conv",
    )(x_BYXC)  # fmt: skip
    zeros = sharding.named(nn.initializers.zeros, "D")
    return y + self.param("bias", zeros, (self.dim,)).astype(self.dtype)


@dataclasses.dataclass(frozen=True)
class Stages:
  """Stages of two convolutions each, which halve an image and double it again.

  Its methods are called in a module's compact method: what they declare is that
  module's own.
  """

  widths: tuple[int, ...]
  activation: str
  dtype: jnp.dtype

  @property
  def halvings(self) -> int:
    """How often rows and columns are halved."""
    return len(self.widths)

  def channels(self, code: int) -> int:
    """How many `up` takes, to begin with a code of so many numbers."""
    return self.widths[-1]

  def down(self, x_BYXC: jax.Array, code: int) -> jax.Array:
    """(B, Y / 2**n, X / 2**n, widths[-1]), of which a code is to be made."""
    x, before = x_BYXC, x_BYXC.shape[-1]
    for i, width in enumerate(self.widths):
      for name, stride in (("half", 2), ("more", 1)):
        x = Convolved(before, width, self.dtype, stride, name=f"{name}{i}")(x)
        x, before = activate(self.activation, x), width
    return x

  def up(self, x_BYXD: jax.Array, channels: int) -> jax.Array:
    """(B, Y * 2**n, X * 2**n, channels) float32: the way back.

    `x` has widths[-1] channels, before their activation.
    """
    x, before = x_BYXD, x_BYXD.shape[-1]
    for i, width in reversed(list(enumerate(self.widths))):
      x = activate(self.activation, x)
      x = x.repeat(2, axis=1).repeat(2, axis=2)
      x = Convolved(before, width, self.dtype, name=f"double{i}")(x)
      x = activate(self.activation, x)
      before = width
      x = Convolved(before, width, self.dtype, name=f"more{i}")(x)
    x = activate(self.activation, x)
    x = Convolved(before, channels, self.dtype, name="pixels")(x)
    return x.astype(jnp.float32)
