"""Einsum: a parameter declared by the equation that uses it."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax import sharding

# Standard deviation of a unit normal cut at two standard deviations.
_CUT = 0.87962566103423978


def scaled_init(fan_in: int, std: float, factor: float = 1.0) -> Callable:
  """A truncated normal of deviation `std`, or fan_in**-0.5 where std is 0."""
  deviation = factor * (std or 1.0 / math.sqrt(fan_in))

  def init(key, shape, dtype=jnp.float32):
    draw = jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype)
    return draw * (deviation / _CUT)

  return init


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(equation: str, x: jax.Array, w: jax.Array) -> jax.Array:
  """einsum(equation, x, w) with operands of x's dtype, in float32.

  The backward products too have operands of x's dtype and a float32
  accumulator. Automatic differentiation would multiply a float32 cotangent by
  a bfloat16 operand, which no matrix unit takes.
  """
  return jnp.einsum(
    equation, x, w.astype(x.dtype), preferred_element_type=jnp.float32
  )


def _product_forward(equation, x, w):
  return product(equation, x, w), (x, w)


def _product_backward(equation, kept, dy):
  x, w = kept
  (a, b), out = sharding.split(equation)
  dy = dy.astype(x.dtype)
  dx = jnp.einsum(
    f"{out},{b}->{a}",
    dy, w.astype(x.dtype),
    preferred_element_type=jnp.float32,
  )  # fmt: skip
  dw = jnp.einsum(
    f"{a},{out}->{b}", x, dy, preferred_element_type=jnp.float32
  )
  return dx.astype(x.dtype), dw.astype(w.dtype)


product.defvjp(_product_forward, _product_backward)


def contract(equation: str, x: jax.Array, w: jax.Array) -> jax.Array:
  """The product, rounded to x's dtype."""
  return product(equation, x, w).astype(x.dtype)


class Einsum(nn.Module):
  """einsum(equation, x, w) [+ bias]: w's axes are its letters.

  Its sharding comes from the letters and its scale from those summed over, so
  neither can disagree with its use. The bias has the letters of w that remain.
  """

  equation: str
  shape: tuple[int, ...]
  dtype: jnp.dtype
  bias: bool = False
  std: float = 0.0
  factor: float = 1.0

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    (_, letters), out = sharding.split(self.equation)
    sizes = dict(zip(letters, self.shape, strict=True))
    fan_in = math.prod(n for a, n in sizes.items() if a not in out)
    init = scaled_init(fan_in, self.std, self.factor)
    w = self.param("w", sharding.named(init, letters), self.shape)
    y = contract(self.equation, x.astype(self.dtype), w)
    if self.bias:
      kept = "".join(a for a in letters if a in out)
      shape = tuple(sizes[a] for a in kept)
      zeros = sharding.named(nn.initializers.zeros, kept)
      y = y + self.param("bias", zeros, shape).astype(self.dtype)
    return sharding.constrain(y, out)
