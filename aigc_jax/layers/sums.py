"""Sums and maxima of terms made of several arrays: over the last axis, rows,
places; and what is given to all rows or places, whose gradient is a sum."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from aigc_jax.layers.forms import are_plain, form

# Slices of the last axis in which a CPU adds up. Of more, what x itself is made
# of would be written out: its compiler makes nothing as often as 16 times in
# one loop.
FEW = 8


def total(terms: Callable, *xs: jax.Array, **how) -> jax.Array:
  """Sum of terms(*xs), float32, over the last axis, which becomes 1.

  terms: takes each number of its own from all of xs, which have that axis in
  full; what it closes over has it as 1. how: for a CPU's form.
  """

  def formula(terms, *xs, **_):
    return jnp.sum(terms(*xs), axis=-1, keepdims=True)

  return form("total", formula)(terms, *xs, **how)


def largest(terms: Callable, *xs: jax.Array) -> jax.Array:
  """Maximum of terms(*xs) over the last axis, which becomes 1; as `total`."""

  def formula(terms, *xs):
    return jnp.max(terms(*xs), axis=-1, keepdims=True)

  return form("largest", formula)(terms, *xs)


def over_all(terms: Callable, x: jax.Array) -> jax.Array:
  """Sum of terms(x), float32, over all axes; terms: as of `total`."""
  if x.ndim == 0:
    return terms(x)
  return jnp.sum(total(terms, x, slices=FEW))


def over_rows(x: jax.Array) -> jax.Array:
  """Sum over the first axis, which goes."""
  return form("over_rows", lambda x: jnp.sum(x, axis=0))(x)


def for_rows(x: jax.Array, rows: int) -> jax.Array:
  """x for each of so many rows, a new first axis: its gradient is theirs."""
  if are_plain():
    return jnp.broadcast_to(x, (rows, *x.shape))
  return _for_rows(rows, x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _for_rows(rows: int, x):
  return jnp.broadcast_to(x, (rows, *x.shape))


_for_rows.defvjp(
  lambda rows, x: (_for_rows(rows, x), None),
  lambda rows, _, dy: (over_rows(dy),),
)


def over_places(terms: Callable, *xs: jax.Array) -> jax.Array:
  """Sum of terms(*xs), float32, over axes 1 and 2 of (B, Y, X, D), which stay.

  terms: takes each number of its own from all of xs, whose rows and columns are
  those of the first or 1.
  """

  def formula(terms, *xs):
    return jnp.sum(terms(*xs), axis=(1, 2), keepdims=True)

  return form("over_places", formula)(terms, *xs)


def for_places(x_BD: jax.Array, like_BYXD: jax.Array) -> jax.Array:
  """x at each place of the other: its gradient is the sum of theirs."""
  shape = like_BYXD.shape
  if are_plain():
    return jnp.broadcast_to(x_BD[:, None, None], shape)
  return _for_places(shape, x_BD)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _for_places(shape: tuple[int, ...], x_BD):
  return jnp.broadcast_to(x_BD[:, None, None], shape)


def _for_places_backward(_, like, dy):
  total = over_places(lambda dy: dy.astype(jnp.float32), dy)
  return (total[:, 0, 0].astype(like.dtype),)


_for_places.defvjp(
  lambda shape, x: (_for_places(shape, x), jnp.zeros((0,), x.dtype)),
  _for_places_backward,
)
