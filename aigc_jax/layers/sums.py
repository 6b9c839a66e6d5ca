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
LANES = 16  # float32 numbers of a vector


def total(terms: Callable, *xs: jax.Array) -> jax.Array:
  """Sum of terms(*xs), float32, over the last axis, which becomes 1.

  terms: takes each number of its own from all of xs, which have that axis in
  full; what it closes over has it as 1.
  """
  slices = _slices(xs)
  if not slices:
    return jnp.sum(terms(*xs), axis=-1, keepdims=True)
  found = functools.reduce(jnp.add, [terms(*some) for some in slices])
  # As a product: the library's sums over so short an axis take longer.
  return found @ jnp.ones((found.shape[-1], 1), jnp.float32)


def largest(terms: Callable, *xs: jax.Array) -> jax.Array:
  """Maximum of terms(*xs) over the last axis, which becomes 1; as `total`."""
  slices = _slices(xs)
  if not slices:
    return jnp.max(terms(*xs), axis=-1, keepdims=True)
  found = functools.reduce(jnp.maximum, [terms(*some) for some in slices])
  if found.shape[-1] > 4 * LANES:
    return jnp.max(found, axis=-1, keepdims=True)
  # Held, or the terms are made again for each of its columns.
  found = lax.optimization_barrier(found)
  return functools.reduce(jnp.maximum, jnp.split(found, found.shape[-1], -1))


def _slices(xs) -> list[tuple]:
  """Of the last axis of all, whole vectors each; none where it is no gain."""
  size = xs[0].shape[-1]
  count = next((n for n in range(SLICES, 1, -1) if size % (n * LANES) == 0), 1)
  if count == 1 or sharding.platform() != "cpu" or not sharding.alone():
    return []
  return list(zip(*(jnp.split(x, count, axis=-1) for x in xs), strict=True))
