"""Rounding to the dtype that products take their operands in."""

import jax
from jax import lax

from aigc_jax.layers.forms import form


def rounded(x: jax.Array, dtype) -> jax.Array:
  """x.astype(dtype)."""
  return form("rounded", lambda x, dtype: x.astype(dtype))(x, dtype)


def packed(x: jax.Array) -> jax.Array:
  """x in a dtype in which it is only moved, the cheapest that there is."""
  return form("packed", lambda x: x)(x)


def unpacked(x: jax.Array, dtype) -> jax.Array:
  """What was `packed`, of `dtype`."""
  return x if x.dtype == dtype else lax.bitcast_convert_type(x, dtype)
