"""Residual blocks over rows and columns: group norm, convolution, attention.

The blocks of diffusion's U-Nets (arXiv:2006.11239), with what arXiv:2105.05233
made of them, and of the autoencoders that came after.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax import sharding
from aigc_jax.layers import sums
from aigc_jax.layers.attention import Attention
from aigc_jax.layers.block import Dropout
from aigc_jax.layers.einsum import Einsum
from aigc_jax.layers.forms import are_counted
from aigc_jax.layers.group_norm import GroupNorm
from aigc_jax.layers.mlp import activate
from aigc_jax.layers.rounding import rounded
from aigc_jax.layers.stack import REMAT
from aigc_jax.layers.stages import Convolved
from aigc_jax.layers.visible import Visible


def smaller(x_BYXD: jax.Array) -> jax.Array:
  """The mean of each 2 x 2 places."""
  B, Y, X, D = x_BYXD.shape
  x = x_BYXD.astype(jnp.float32).reshape(B, Y // 2, 2, X // 2, 2, D)
  return rounded(jnp.mean(x, axis=(2, 4)), x_BYXD.dtype)


def larger(x_BYXD: jax.Array) -> jax.Array:
  """Each place as 2 x 2."""
  return x_BYXD.repeat(2, axis=1).repeat(2, axis=2)


def convolved(
  before: int, dim: int, dtype: jnp.dtype, std: float = 0.0, **how
) -> Convolved:
  """A convolution that keeps the variance: by fan-in where std is 0."""
  width = how.get("width", 3)
  std = std or 1.0 / math.sqrt(width**2 * before)
  return Convolved(before, dim, dtype, std=std, **how)


def rematted(make: functools.partial, remat: str) -> Callable:
  """`make`, computed again for the backward pass where `remat` says so."""
  if remat == "none" or are_counted():
    return make
  again = nn.remat(make.func, policy=REMAT[remat], prevent_cse=False)
  return functools.partial(again, *make.args, **make.keywords)


class ResidualBlock(nn.Module):
  """x + convolution(norm(convolution(norm x) + condition)), (B, Y, X, dim).

  scale_shift: the condition scales and shifts what is normalised instead. size:
  half or double rows and columns, or "" for as they were. The second
  convolution begins as zeros, so that a block begins as its shortcut.
  """

  before: int
  dim: int
  norm: Callable[..., GroupNorm]
  dtype: jnp.dtype
  std: float = 0.0
  dropout: float = 0.0
  scale_shift: bool = False
  size: str = ""

  @nn.compact
  def __call__(
    self, x_BYXC: jax.Array, condition_BC: jax.Array | None = None
  ) -> jax.Array:
    conv = functools.partial(convolved, dtype=self.dtype, std=self.std)
    resized = {"": lambda x: x, "half": smaller, "double": larger}[self.size]
    h = activate("silu", self.norm(name="norm_in")(x_BYXC))
    x_BYXC = resized(x_BYXC)
    h = conv(self.before, self.dim, name="conv_in")(resized(h))
    norm = self.norm(name="norm_out")
    if condition_BC is None:
      h = norm(h)
    else:
      h = self._conditioned(h, condition_BC, norm)
    h = Dropout(self.dropout, name="dropout")(activate("silu", h))
    h = conv(self.dim, self.dim, factor=0.0, name="conv_out")(h)
    if self.before != self.dim:
      x_BYXC = conv(self.before, self.dim, width=1, name="shortcut")(x_BYXC)
    return sharding.constrain(x_BYXC + h, "BYXD")

  def _conditioned(self, h_BYXD, condition_BC, norm: GroupNorm) -> jax.Array:
    """The normalised h with what the condition makes of it."""
    parts = 2 if self.scale_shift else 1
    shape = (condition_BC.shape[-1], parts, self.dim)
    told_BJD = Einsum(
      "BC,CJD->BJD", shape, self.dtype, True, self.std, name="condition"
    )(activate("silu", condition_BC))
    told = [sums.for_places(told_BJD[:, j], h_BYXD) for j in range(parts)]
    if not self.scale_shift:
      return norm(h_BYXD + told[0])
    scale, shift = (a.astype(jnp.float32) for a in told)
    y = norm(h_BYXD).astype(jnp.float32) * (1 + scale) + shift
    return rounded(y, h_BYXD.dtype)


class PlacesAttention(nn.Module):
  """x + what each place reads of all others, then of a memory, if any."""

  norm: Callable[..., GroupNorm]
  attention: Callable[..., Attention]
  cross: Callable[..., Attention] | None = None

  @nn.compact
  def __call__(
    self,
    x_BYXD: jax.Array,
    memory_BSD: jax.Array | None = None,
    memory_visible: Visible | None = None,
  ) -> jax.Array:
    x_BYXD = self._read(x_BYXD, "attention", Visible(causal=False))
    if self.cross is not None:
      x_BYXD = self._read(
        x_BYXD, "cross_attention", memory_visible, memory_BSD=memory_BSD
      )
    return sharding.constrain(x_BYXD, "BYXD")

  def _read(self, x_BYXD: jax.Array, name: str, visible, **memory) -> jax.Array:
    make = self.cross if memory else self.attention
    h_BYXD = self.norm(name=f"norm_{name}")(x_BYXD)
    h_BTD = h_BYXD.reshape(len(x_BYXD), -1, x_BYXD.shape[-1])
    h_BTD, _ = make(name=name)(h_BTD, visible, None, **memory)
    return x_BYXD + h_BTD.reshape(x_BYXD.shape)


class Resized(nn.Module):
  """Half or double rows and columns, by a convolution of 3 x 3.

  around: zeros before and after them; None is one on each side.
  """

  dim: int
  size: str
  dtype: jnp.dtype
  std: float = 0.0
  around: tuple[int, int] | None = None

  @nn.compact
  def __call__(self, x_BYXD: jax.Array) -> jax.Array:
    stride = 2 if self.size == "half" else 1
    x_BYXD = larger(x_BYXD) if self.size == "double" else x_BYXD
    return convolved(
      self.dim, self.dim, self.dtype, self.std, stride=stride,
      around=self.around, name="conv",
    )(x_BYXD)  # fmt: skip
