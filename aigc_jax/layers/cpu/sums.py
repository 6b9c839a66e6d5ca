"""Sums and maxima over the last axis whose terms are not written out.

The compiler makes a reduction by a library that reads its terms from memory, so
all of them are written first. Slices of the axis added to each other are one
loop with whatever makes the terms, and leave little for the library.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

SLICES = 16  # at most, so that programs stay short
ROWS = 64  # that are added one by one, likewise
LANES = 16  # float32 numbers of a vector


def total(terms: Callable, *xs: jax.Array, slices: int = SLICES) -> jax.Array:
  """Sum of terms(*xs), float32, over the last axis, which becomes 1."""
  parts = _parts(xs, slices)
  if not parts:
    return jnp.sum(terms(*xs), axis=-1, keepdims=True)
  found = functools.reduce(jnp.add, [terms(*part) for part in parts])
  # As a product: the library's sums over so short an axis take longer.
  return found @ jnp.ones((found.shape[-1], 1), jnp.float32)


def largest(terms: Callable, *xs: jax.Array) -> jax.Array:
  """Maximum of terms(*xs) over the last axis, which becomes 1."""
  parts = _parts(xs, SLICES)
  if not parts:
    return jnp.max(terms(*xs), axis=-1, keepdims=True)
  found = functools.reduce(jnp.maximum, [terms(*part) for part in parts])
  if found.shape[-1] > 4 * LANES:
    return jnp.max(found, axis=-1, keepdims=True)
  # Without the barrier the terms are made again for each of the columns.
  found = lax.optimization_barrier(found)
  return functools.reduce(jnp.maximum, jnp.split(found, found.shape[-1], -1))


def over_rows(x: jax.Array) -> jax.Array:
  """Sum over the first axis: one row added to the next, in one loop.

  The library adds up an axis that others lie within at a tenth of the pace.
  """
  if len(x) > ROWS:
    return jnp.sum(x, axis=0)
  return functools.reduce(jnp.add, x)


def over_places(terms: Callable, *xs: jax.Array) -> jax.Array:
  """Sum of terms(*xs), float32, over axes 1 and 2, which stay.

  Rows are added to each other in one loop with what makes the terms, then the
  columns of those few by a product.
  """
  B, Y, X, D = xs[0].shape
  count = next(n for n in range(min(Y, SLICES), 0, -1) if Y % n == 0)

  def rows(i: int) -> list[jax.Array]:
    size = Y // count
    return [
      x if x.shape[1] == 1 else x[:, i * size : (i + 1) * size] for x in xs
    ]

  found = functools.reduce(jnp.add, [terms(*rows(i)) for i in range(count)])
  found = lax.optimization_barrier(found.reshape(B, -1, D))
  ones = jnp.ones((B, 1, found.shape[1]), jnp.float32)
  return (ones @ found)[:, None]


def _parts(xs, most: int) -> list[tuple]:
  """Slices of the last axis of all, whole vectors; none where it is no gain."""
  size = xs[0].shape[-1]
  count = next((n for n in range(most, 1, -1) if size % (n * LANES) == 0), 0)
  if not count:
    return []
  return list(zip(*(jnp.split(x, count, axis=-1) for x in xs), strict=True))
