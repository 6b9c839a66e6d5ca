"""Sums and maxima over the last axis whose terms a CPU does not write out.

Its compiler makes a reduction by a library that reads its terms from memory, so
all of them are written first. Slices of the axis added to each other are one
loop with whatever makes the terms, and leave little for the library.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from aigc_jax import sharding

SLICES = 16  # at most, so that programs stay short
# Or what x itself is made of would be written out: the compiler makes nothing
# as often as 16 times in one loop.
FEW = 8
LANES = 16  # float32 numbers of a vector


def total(terms: Callable, *xs: jax.Array, slices: int = SLICES) -> jax.Array:
  """Sum of terms(*xs), float32, over the last axis, which becomes 1.

  terms: takes each number of its own from all of xs, which have that axis in
  full; what it closes over has it as 1.
  """
  parts = _parts(xs, slices)
  if not parts:
    return jnp.sum(terms(*xs), axis=-1, keepdims=True)
  found = functools.reduce(jnp.add, [terms(*part) for part in parts])
  # As a product: the library's sums over so short an axis take longer.
  return found @ jnp.ones((found.shape[-1], 1), jnp.float32)


def largest(terms: Callable, *xs: jax.Array) -> jax.Array:
  """Maximum of terms(*xs) over the last axis, which becomes 1; as `total`."""
  parts = _parts(xs, SLICES)
  if not parts:
    return jnp.max(terms(*xs), axis=-1, keepdims=True)
  found = functools.reduce(jnp.maximum, [terms(*part) for part in parts])
  if found.shape[-1] > 4 * LANES:
    return jnp.max(found, axis=-1, keepdims=True)
  # Held, or the terms are made again for each of its columns.
  found = lax.optimization_barrier(found)
  return functools.reduce(jnp.maximum, jnp.split(found, found.shape[-1], -1))


def over_all(terms: Callable, x: jax.Array) -> jax.Array:
  """Sum of terms(x), float32, over all axes; terms: as of `total`."""
  if x.ndim == 0:
    return terms(x)
  return jnp.sum(total(terms, x, slices=FEW))


def _parts(xs, most: int) -> list[tuple]:
  """Slices of the last axis of all, whole vectors; none where it is no gain."""
  if sharding.platform() != "cpu" or not sharding.alone():
    return []
  size = xs[0].shape[-1]
  count = next((n for n in range(most, 1, -1) if size % (n * LANES) == 0), 0)
  if not count:
    return []
  return list(zip(*(jnp.split(x, count, axis=-1) for x in xs), strict=True))
