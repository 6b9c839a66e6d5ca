"""Pytrees by path: names, match, mask, count, cast, digest."""

import fnmatch
import math
import zlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Tree = Any

# Odd 32-bit constants (the golden ratio and a square root): one per lane.
LANES = ((0x9E3779B1, 0x7F4A7C15), (0x85EBCA77, 0xC2B2AE3D))


def names(tree: Tree) -> list[str]:
  """The path of each leaf, "stack/attention/query/w", in leaf order."""
  paths, _ = jax.tree_util.tree_flatten_with_path(tree)
  return [name_of(path) for path, _ in paths]


def name_of(path: tuple) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")


def flat(tree: Tree) -> dict[str, Any]:
  """{path: leaf}, in leaf order."""
  paths, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {name_of(path): leaf for path, leaf in paths}


def match(patterns: Iterable[str], name: str) -> bool:
  """Whether any shell pattern ("*/norm*/scale") matches the whole path."""
  return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def mask(tree: Tree, patterns: Iterable[str]) -> Tree:
  """The same tree with True where the path matches a pattern."""
  patterns = tuple(patterns)
  return jax.tree_util.tree_map_with_path(
    lambda path, _: match(patterns, name_of(path)), tree
  )


def count(tree: Tree) -> int:
  """How many numbers the tree holds; works on abstract trees."""
  return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def nbytes(tree: Tree) -> int:
  """How many bytes the tree holds; works on abstract trees."""
  return sum(
    math.prod(x.shape) * jnp.dtype(x.dtype).itemsize
    for x in jax.tree.leaves(tree)
  )


def cast(tree: Tree, dtype) -> Tree:
  """Floating-point leaves in `dtype`, the others as they are."""

  def convert(x):
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    return x.astype(dtype) if floating else x

  return jax.tree.map(convert, tree)


def digest(tree: Tree) -> jax.Array:
  """Two uint32 words that any single changed bit of the tree changes.

  A sum, modulo 2**32, of every element's bits times an odd number made of its
  global index and its leaf's name. Integer sums commute, so the value is the
  same on every mesh; an odd factor makes no bit flip vanish. Runs under jit.
  """
  total = jnp.zeros((len(LANES),), jnp.uint32)
  for name, x in flat(tree).items():
    total += digest_leaf(x, zlib.crc32(name.encode()))
  return total


def digest_leaf(x: jax.Array, salt: int) -> jax.Array:
  words = _words(jnp.asarray(x))
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


def _words(x: jax.Array) -> jax.Array:
  """Each element's bits as one uint32."""
  if x.dtype == jnp.bool_:
    return x.astype(jnp.uint32)
  if x.dtype.itemsize > 4:
    raise TypeError(f"digest has no 64-bit words, got {x.dtype}")
  unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
  return lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
