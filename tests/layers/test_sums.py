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
  draw = np.random.default_rng(size)
  return draw.normal(size=(2, 3, 5, size)).astype(dtype)


def distance(x, y):
  return jnp.square(x.astype(jnp.float32) - y.astype(jnp.float32))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("size", sweep(SIZES, 384, 1))
def test_reductions_by_slices_equal_those_in_one(on_a_cpu, size, dtype):
  x, y = operands(size, dtype)
  terms = np.square(x.astype(np.float32) - y.astype(np.float32))
  terms = terms.astype(np.float64)

  @jax.jit
  def found(x, y):
    whole = sums.over_all(lambda x: distance(x, 0 * x), x)
    return sums.total(distance, x, y), sums.largest(distance, x, y), whole

  total, largest, whole = found(x, y)
  np.testing.assert_allclose(total, terms.sum(-1, keepdims=True), rtol=2e-6)
  np.testing.assert_array_equal(largest, terms.max(-1, keepdims=True))
  square = np.square(np.asarray(x, np.float64)).sum()
  np.testing.assert_allclose(whole, square, rtol=2e-6)


def test_what_is_no_number_reaches_the_result(on_a_cpu):
  x, _ = operands(384)
  x[1, 2, 300] = np.nan

  @jax.jit
  def found(x):
    reductions = sums.total, sums.largest, sums.over_all
    return [reduce(lambda x: x, x) for reduce in reductions]

  *by_row, whole = map(np.asarray, found(x))
  for rows in by_row:
    assert np.isnan(rows[1, 2, 0]) and np.isnan(rows).sum() == 1
  assert np.isnan(whole)


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
