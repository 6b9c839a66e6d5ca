"""Trees by path, and the digest that no flipped bit escapes."""

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax import tree

TREE = {
  "a": jnp.arange(12, dtype=jnp.float32).reshape(4, 3),
  "b": {"c": jnp.arange(5, dtype=jnp.int32), "d": jnp.ones((2,), jnp.bfloat16)},
  "e": jnp.array([True, False]),
  "f": jnp.zeros(()),
}


def test_names_are_paths_in_leaf_order():
  assert tree.names(TREE) == ["a", "b/c", "b/d", "e", "f"]
  assert tree.count(TREE) == 12 + 5 + 2 + 2 + 1
  assert tree.nbytes(TREE) == 48 + 20 + 4 + 2 + 4


def test_any_flipped_bit_changes_both_words_of_the_digest():
  digest = jax.jit(tree.digest)
  whole = np.asarray(digest(TREE))
  raw = np.asarray(TREE["a"]).view(np.uint32)
  for at in ((0, 0), (1, 2), (3, 1)):
    for bit in (0, 13, 22, 31):
      flipped = raw.copy()
      flipped[at] ^= np.uint32(1 << bit)
      other = digest(TREE | {"a": jnp.asarray(flipped.view(np.float32))})
      assert (np.asarray(other) != whole).all()


def test_the_digest_sees_names_and_the_order_of_elements():
  x, digest = jnp.arange(6.0), jax.jit(tree.digest)
  values = [
    tuple(np.asarray(digest(t)))
    for t in ({"a": x}, {"b": x}, {"a": x[::-1]}, {"a": x.reshape(2, 3) + 1})
  ]
  assert len(set(values)) == len(values)
