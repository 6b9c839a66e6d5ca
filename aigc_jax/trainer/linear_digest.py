"""The digest of old checkpoints, to read them; nothing is saved with it.

It adds up every element's bits times an odd number of its place. That is linear
in the bits: of two changes one may undo the other (the signs of a whole matrix,
say), so that what it proves is less than `tree.digest` does.
"""

import zlib

import jax
import jax.numpy as jnp
from jax import lax

from aigc_jax import tree

VERSION = 1
# Odd 32-bit constants (the golden ratio and a square root): one for each lane.
LANES = ((0x9E3779B1, 0x7F4A7C15), (0x85EBCA77, 0xC2B2AE3D))


def digest_leaf(x: jax.Array, name: str) -> jax.Array:
  """The digest of one leaf, uint32 (2,); runs under jit."""
  words = tree.bits(jnp.asarray(x))
  salt = zlib.crc32(name.encode())
  index = jnp.zeros(words.shape, jnp.uint32)
  stride = 1
  for axis in reversed(range(words.ndim)):
    iota = lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    index += iota * jnp.uint32(stride % 2**32)
    stride *= words.shape[axis]
  sums = []
  for factor, offset in LANES:
    odd = (index * jnp.uint32(factor)) ^ jnp.uint32((salt * factor) % 2**32)
    mixed = (words ^ jnp.uint32(offset)) * (odd | jnp.uint32(1))
    sums.append(jnp.sum(mixed, dtype=jnp.uint32))
  return jnp.stack(sums)
