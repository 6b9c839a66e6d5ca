"""Sums and maxima over the last axis of terms made of several arrays."""

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
