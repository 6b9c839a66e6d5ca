"""Reductions by slices: the same numbers, and no terms in memory."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import sharding
from aigc_jax.layers import sums
from tests.sweep import sweep

# 384: 12 slices; 2048: 16, and wide; 48: 3; 100, 16 and 1: none.
SIZES = (384, 2048, 48, 100, 16, 1)


@pytest.fixture
def on_a_cpu(monkeypatch):
  monkeypatch.setattr(sharding, "platform", lambda: "cpu")
  monkeypatch.setattr(sharding, "alone", lambda: True)


def operands(size: int, dtype=jnp.float32):
  x, y = jax.random.normal(jax.random.key(size), (2, 3, 5, size), dtype)
  return x, y


def distance(x, y):
  return jnp.square(x.astype(jnp.float32) - y.astype(jnp.float32))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("size", sweep(SIZES, 384, 1))
def test_reductions_by_slices_equal_those_in_one(on_a_cpu, size, dtype):
  x, y = operands(size, dtype)
  terms = np.asarray(distance(x, y), np.float64)
  total = jax.jit(lambda x, y: sums.total(distance, x, y))(x, y)
  largest = jax.jit(lambda x, y: sums.largest(distance, x, y))(x, y)
  whole = jax.jit(lambda x: sums.over_all(lambda x: distance(x, 0 * x), x))(x)
  np.testing.assert_allclose(total, terms.sum(-1, keepdims=True), rtol=2e-6)
  np.testing.assert_array_equal(largest, terms.max(-1, keepdims=True))
  square = np.square(np.asarray(x, np.float64)).sum()
  np.testing.assert_allclose(whole, square, rtol=2e-6)


def test_what_is_no_number_reaches_the_result(on_a_cpu):
  x, _ = operands(384)
  x = x.at[1, 2, 300].set(jnp.nan)
  for reduce in (sums.total, sums.largest):
    found = reduce(lambda x: x, x)
    assert jnp.isnan(found[1, 2, 0]) and jnp.isnan(found).sum() == 1
  assert jnp.isnan(sums.over_all(lambda x: x, x))


def test_a_single_number_is_its_own_sum():
  assert sums.over_all(jnp.square, jnp.float32(3)) == 9


def test_several_devices_reduce_in_one(monkeypatch):
  monkeypatch.setattr(sharding, "platform", lambda: "cpu")
  monkeypatch.setattr(sharding, "alone", lambda: False)
  x, y = operands(384)
  text = str(jax.make_jaxpr(lambda x, y: sums.total(distance, x, y))(x, y))
  assert "reduce_sum" in text and "split" not in text


def test_terms_are_made_where_they_are_added(on_a_cpu):
  """No array as large as the operands is written for a sum over all."""
  x, _ = operands(512)

  def norm(x, scale):
    scaled = x * scale
    return sums.over_all(jnp.square, scaled), scaled + 1.0

  text = jax.jit(norm).lower(x, jnp.float32(2)).compile().as_text()
  entry = text[text.index("ENTRY") :]
  assert len(re.findall(r"= f32\[3,5,512\]\S* fusion\(", entry)) == 1
