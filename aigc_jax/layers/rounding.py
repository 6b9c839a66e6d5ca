"""Rounding to the dtype that products take their operands in."""

import jax
import jax.numpy as jnp
from jax import lax

from aigc_jax import sharding


def rounded(x: jax.Array, dtype) -> jax.Array:
  """x.astype(dtype), the same bits; float32 to bfloat16 faster on a CPU.

  The compiler's own conversion there, in one loop with what makes x, takes
  longer than exp() does. NaNs as arithmetic makes them stay NaNs here too.
  """
  bits = x.dtype == jnp.float32 and dtype == jnp.bfloat16
  if bits and sharding.platform() == "cpu":
    return _by_bits(x)
  return x.astype(dtype)


def packed(x: jax.Array) -> jax.Array:
  """On a CPU, bfloat16 as the integers of the same bits; all else as it is.

  What only moves numbers would be done by the compiler there in float32, and
  the whole array converted for it.
  """
  if x.dtype != jnp.bfloat16 or sharding.platform() != "cpu":
    return x
  return lax.bitcast_convert_type(x, jnp.uint16)


def unpacked(x: jax.Array, dtype) -> jax.Array:
  """What was `packed`, of `dtype`."""
  return x if x.dtype == dtype else lax.bitcast_convert_type(x, dtype)


@jax.custom_jvp
def _by_bits(x):
  bits = lax.bitcast_convert_type(x, jnp.uint32)
  # To the nearest, and halfway to the even one.
  bits = (bits + (jnp.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16
  return lax.bitcast_convert_type(bits.astype(jnp.uint16), jnp.bfloat16)


@_by_bits.defjvp
def _by_bits_jvp(primals, tangents):
  (x,), (dx,) = primals, tangents
  return _by_bits(x), dx.astype(jnp.bfloat16)
