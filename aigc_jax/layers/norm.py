"""Layer norm (arXiv:1607.06450) and RMS norm (arXiv:1910.07467)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from aigc_jax import sharding


def normalise(x, scale, bias, *, eps: float, centre: bool, offset: float):
  """The last axis at mean zero (where `centre`) and mean square one.

  Statistics in float32. The backward pass keeps the input alone: left to
  automatic differentiation it would keep three float32 copies.
  """

  def formula(x, scale, bias):
    y = x.astype(jnp.float32)
    if centre:
      y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    y = y * (scale.astype(jnp.float32) + offset)
    if bias is not None:
      y = y + bias.astype(jnp.float32)
    return y.astype(x.dtype)

  return jax.checkpoint(formula, prevent_cse=False)(x, scale, bias)


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
