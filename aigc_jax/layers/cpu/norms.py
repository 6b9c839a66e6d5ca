"""A norm's sums as products, in which nothing broadcast is written out.

The compiler would first write out, in full size, all that is broadcast in a
sum: twice the time of the whole.
"""

import jax


def row_sums(x: jax.Array, factor: jax.Array) -> jax.Array:
  """Sums of x * factor (D,) over the last axis, which becomes 1."""
  return (x @ factor)[..., None]


def column_sums(x: jax.Array, rate: jax.Array) -> jax.Array:
  """Sums of x * rate (..., 1) over all axes but the last, (D,)."""
  return (rate.reshape(1, -1) @ x.reshape(-1, x.shape[-1]))[0]
