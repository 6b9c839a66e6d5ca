"""Pytrees by path: names, match, mask, count, cast, digest."""

import fnmatch
import hashlib
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Tree = Any

# One for each lane of a digest: shift, factor, shift, factor, shift of a
# function in which each bit of what goes in flips each bit of what comes out
# about half of the time. Those of MurmurHash3 (fmix32) and of Wellons'
# lowbias32 (nullprogram.com/blog/2018/07/31).
MIXERS = (
  (16, 0x85EBCA6B, 13, 0xC2B2AE35, 16),
  (16, 0x7FEB352D, 15, 0x846CA68B, 16),
)


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


def split(tree: Tree, prefixes: Iterable[str]) -> tuple[Tree, Tree]:
  """(what lies below none of the paths, what lies below one); nested dicts."""
  prefixes = tuple(prefixes)

  def below(name: str) -> bool:
    return any(name == p or name.startswith(f"{p}/") for p in prefixes)

  def part(tree: Tree, at: str, wanted: bool) -> Tree:
    found = {}
    for key, value in tree.items():
      name = f"{at}{key}"
      if below(name):
        if wanted:
          found[key] = value
      elif isinstance(value, dict):
        inner = part(value, f"{name}/", wanted)
        if inner:
          found[key] = inner
      elif not wanted:
        found[key] = value
    return found

  return part(tree, "", False), part(tree, "", True)


def joined(tree: Tree, other: Tree | None) -> Tree:
  """What `split` parted, as one tree again."""
  if other is None:
    return tree
  found = dict(tree)
  for key, value in other.items():
    found[key] = joined(found[key], value) if key in found else value
  return found


def count(tree: Tree) -> int:
  """How many numbers the tree holds; works on abstract trees."""
  return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def nbytes(tree: Tree) -> int:
  """How many bytes the tree holds; works on abstract trees."""
  return sum(
    math.prod(x.shape) * jnp.dtype(x.dtype).itemsize
    for x in jax.tree.leaves(tree)
  )


def bits(x: jax.Array) -> jax.Array:
  """Each element's bits as one uint32; TypeError for 64-bit elements."""
  if x.dtype == jnp.bool_:
    return x.astype(jnp.uint32)
  if x.dtype.itemsize > 4:
    raise TypeError(f"digest has no 64-bit words, got {x.dtype}")
  unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
  return lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def digest(tree: Tree) -> jax.Array:
  """Two uint32 words that a change of the tree changes; runs under jit.

  The sum of its leaves' digests, modulo 2**32. Integer sums commute, so the
  value is the same on every mesh.
  """
  total = jnp.zeros((len(MIXERS),), jnp.uint32)
  for name, x in flat(tree).items():
    total += digest_leaf(x, name)
  return total


def digest_leaf(x: jax.Array, name: str = "") -> jax.Array:
  """Two uint32 words made of a leaf's bits, order, shape, dtype and name.

  In each lane every element's bits are mixed with a key of its place, and the
  results are added up. Mixed is nonlinear, so that no pattern of changes (two
  flipped bits, a sign everywhere, rows exchanged) cancels in the sum but by
  chance: once in 2**64. One change alone always shows, in both words. NaNs and
  zeros count by their bits.
  """
  x = jnp.asarray(x)
  words, places, salts = bits(x), _places(x.shape), _salts(x, name)
  lanes = tuple(
    _mix(words ^ _mix(place ^ salt, mixer), mixer)
    for mixer, place, salt in zip(MIXERS, places, salts, strict=True)
  )
  # Both lanes in one reduction, which reads the leaf once.
  sums = lax.reduce(
    lanes,
    (jnp.uint32(0), jnp.uint32(0)),
    lambda a, b: (a[0] + b[0], a[1] + b[1]),
    tuple(range(x.ndim)),
  )
  return jnp.stack(sums) + jnp.stack(salts)  # what is empty has them alone


def _mix(x: jax.Array, mixer: tuple[int, ...]) -> jax.Array:
  """A permutation of uint32 in which all bits depend on all."""
  first, factor, second, other, third = mixer
  x = (x ^ (x >> first)) * jnp.uint32(factor)
  x = (x ^ (x >> second)) * jnp.uint32(other)
  return x ^ (x >> third)


def _places(shape: tuple[int, ...]) -> list[jax.Array]:
  """The index of each element in each lane; of more than 2**32 elements, no
  two have the same in both."""
  places = []
  for mixer in MIXERS:
    place, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
      step = (stride + (stride >> 32) * mixer[1]) % 2**32
      place += lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(step)
      stride *= shape[axis]
    places.append(place)
  return places


def _salts(x: jax.Array, name: str) -> tuple[jax.Array, ...]:
  """A word for each lane made of name, shape and dtype."""
  text = f"{name}\n{x.shape}\n{x.dtype}"
  words = hashlib.sha256(text.encode()).digest()
  return tuple(
    jnp.uint32(int.from_bytes(words[4 * i : 4 * i + 4], "little"))
    for i in range(len(MIXERS))
  )
