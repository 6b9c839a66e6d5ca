"""Rounding by bits is the rounding of a conversion."""

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.layers.rounding import packed, rounded, unpacked


def bits(x):
  return np.asarray(x).view(np.uint16)


def test_rounding_gives_the_bits_of_a_conversion():
  rng = np.random.default_rng(0)
  x = rng.integers(0, 2**32, 2**20, np.uint32).view(np.float32)
  # Halfway between two, the largest, the smallest, zeros, infinities.
  halves = (np.arange(2**16, dtype=np.uint32) << 16) + 0x8000
  few = np.array([3.4e38, -3.4e38, 1e-45, 0.0, -0.0, np.inf, -np.inf], "f4")
  x = np.concatenate([x, halves.view(np.float32), few])
  x = x[~np.isnan(x)]
  got = jax.jit(rounded, static_argnums=1)(x, jnp.bfloat16)
  np.testing.assert_array_equal(bits(got), bits(x.astype(jnp.bfloat16)))


def test_what_is_no_number_stays_none():
  x = jnp.array([np.nan, -np.nan, 0.0]) * jnp.inf
  assert np.all(np.isnan(rounded(x, jnp.bfloat16).astype(jnp.float32)))
  assert np.all(np.isnan(rounded(jnp.sqrt(-x[2:] - 1), jnp.bfloat16)))


def test_the_gradient_of_rounding_is_one():
  def f(x):
    return jnp.sum(rounded(x, jnp.bfloat16).astype(jnp.float32) ** 2)

  x = jnp.array([0.5, 1.25, -3.0])
  np.testing.assert_array_equal(jax.grad(f)(x), 2 * x)


def test_what_was_packed_is_unpacked_with_its_bits_and_float32_is_left_alone():
  x = jnp.array([0.5, -0.0, np.inf, 3e38])
  assert packed(x) is x and unpacked(x, jnp.float32) is x
  few = x.astype(jnp.bfloat16)
  assert packed(few).dtype == jnp.uint16
  back = unpacked(packed(few), jnp.bfloat16)
  np.testing.assert_array_equal(bits(back), bits(few))
