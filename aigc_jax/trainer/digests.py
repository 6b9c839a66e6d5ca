"""The digests of a state's leaves, of the version a checkpoint has."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax import sharding, tree
from aigc_jax.trainer import linear_digest

# By the version that a manifest states.
LEAF = {linear_digest.VERSION: linear_digest.digest_leaf, 2: tree.digest_leaf}
VERSION = 2  # of all that is saved


def of(state, version: int = VERSION) -> jax.Array:
  """The digest of each leaf, uint32 (leaves, 2); runs under jit."""
  return jnp.stack([LEAF[version](x, n) for n, x in tree.flat(state).items()])


def total(rows) -> list[int]:
  """The digest of a tree from those of its leaves, equal to tree.digest."""
  rows = np.asarray(rows, np.uint64)
  return [int(x) for x in rows.sum(axis=0) % 2**32]


def summary(state, finite: tuple[str, ...]):
  """(digests of all leaves, whether those named by `finite` are); under jit.

  Patterns of names, as tree.match takes them.
  """
  found = jnp.array(True)
  for name, x in tree.flat(state).items():
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    if floating and tree.match(finite, name):
      found &= jnp.isfinite(x).all()
  return of(state), found


def whole(function: Callable, state, **fixed):
  """function(state, **fixed) under jit, its result whole on every process."""
  meshes = [
    x.sharding.mesh
    for x in jax.tree.leaves(state)
    if isinstance(getattr(x, "sharding", None), jax.sharding.NamedSharding)
  ]
  mesh = meshes[0] if meshes else None
  return _compiled(function, mesh, tuple(fixed.items()))(state)


@functools.lru_cache(maxsize=16)
def _compiled(function: Callable, mesh, fixed: tuple):
  where = sharding.replicated(mesh) if mesh else None
  return jax.jit(
    functools.partial(function, **dict(fixed)), out_shardings=where
  )
