"""Products of matrices with operands of 8 bits, each tensor with one scale.

The formats of arXiv:2209.05433: E4M3 for what the forward product multiplies,
E5M2, of larger range, for gradients. A scale is that of the tensor at hand, so
there is no state. It is one number for all rows of a batch: what a row gives
depends a little on the others, and on what comes later in the row.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

FORWARD, GRADIENT = jnp.float8_e4m3fn, jnp.float8_e5m2
LEAST = 1e-30  # a largest magnitude below this is not scaled: it becomes 0


class Scaled(NamedTuple):
  """`small * scale` stands for a tensor; one float32 scale for all of it."""

  small: jax.Array
  scale: jax.Array


def quantise(x: jax.Array, kind) -> Scaled:
  """x with its largest magnitude at the largest that `kind` has.

  One value that is not finite makes the scale so, and with it all of every
  product: it cannot be lost where a format has no infinity.
  """
  x = x.astype(jnp.float32)
  largest = jnp.max(jnp.abs(x))
  most = float(jnp.finfo(kind).max)
  scale = jnp.where(largest < LEAST, 1.0, largest / most)
  return Scaled((x / scale).astype(kind), scale)


def dot(equation: str, x: Scaled, y: Scaled) -> jax.Array:
  """einsum(equation, x, y) in float32; letters of both x and y come first.

  A product of the small ones, then of both scales: the form that the compiler
  for GPUs turns into one call of an 8-bit product. Converted back first, the
  operands would be multiplied in the wider type.
  """
  inputs, out = equation.split("->")
  a, b = inputs.split(",")
  summed = [c for c in a if c in b and c not in out]
  shared = [c for c in a if c in b and c in out]
  product = jax.lax.dot_general(
    x.small,
    y.small,
    tuple(
      tuple(tuple(map(letters.index, which)) for letters in (a, b))
      for which in (summed, shared)
    ),
    preferred_element_type=jnp.float32,
  )
  left = [c for letters in (a, b) for c in letters if c not in summed + shared]
  laid = tuple(map((shared + left).index, out))
  return jnp.transpose(product * (x.scale * y.scale), laid)
