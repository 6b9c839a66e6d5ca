"""Products as the libraries of a CPU take them."""

import math

import jax
import jax.numpy as jnp

from aigc_jax import sharding
from aigc_jax.layers.cpu import onednn


def multiplied(equation: str, x: jax.Array, y: jax.Array, result) -> jax.Array:
  """einsum(equation, x, y) in float32, by oneDNN where it was chosen."""
  z = onednn.einsum(equation, x, y) if onednn.chosen() else None
  if z is not None:
    return z
  return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)


def weight_gradient(equation: str, x: jax.Array, dy: jax.Array) -> jax.Array:
  """The gradient of einsum(equation, x, w) for w, float32.

  As one product of two matrices, the left one copied transposed. The compiler's
  library takes no left operand that lies transposed: it would either do without
  it, or fuse the transposition with whatever made the operand and compute that
  again at the pace of scattered writes. So a copy of the left one is made here:
  a reshape to one dimension is what the compiler cannot take back. Either
  operand may be it, and the result is turned round where it is dy; it is the
  one that leaves fewer numbers to turn.
  """
  (a, b), out = sharding.split(equation)
  batched = any(c in a and c in out for c in b)
  if batched or onednn.chosen():
    return multiplied(f"{a},{out}->{b}", x, dy, jnp.float32)
  rows = [c for c in a if c in out]
  sizes = dict(zip(a, x.shape, strict=True)) | dict(
    zip(out, dy.shape, strict=True)
  )
  count = math.prod(sizes[c] for c in rows)
  sides = []
  for letters, value in ((a, x), (out, dy)):
    own = [c for c in letters if c not in rows]
    sides.append((own, value, letters))
  result = math.prod(sizes[c] for c in b)
  if x.size > dy.size + result:
    sides.reverse()
  (left, x, letters), (right, y, others) = sides
  # Whatever makes the operand is not made again at scattered places.
  x = jax.lax.optimization_barrier(x)
  x = jnp.einsum(f"{letters}->{''.join(left + rows)}", x).reshape(-1)
  x = jax.lax.optimization_barrier(x).reshape(-1, count)
  y = jnp.einsum(f"{others}->{''.join(rows + right)}", y).reshape(count, -1)
  dw = jnp.matmul(x, y, preferred_element_type=jnp.float32).reshape(-1)
  dw = jax.lax.optimization_barrier(dw)
  dw = dw.reshape([sizes[c] for c in left + right])
  return jnp.einsum(f"{''.join(left + right)}->{b}", dw)


def turned(x_MN: jax.Array) -> jax.Array:
  """(N, M), copied; see `weight_gradient`."""
  x_NM = jax.lax.optimization_barrier(x_MN.T.reshape(-1))
  return x_NM.reshape(x_MN.shape[::-1])
