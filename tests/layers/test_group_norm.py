"""Group norm is its formula, in value and gradients, on any device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import sharding
from aigc_jax.layers import sums
from aigc_jax.layers.forms import plain_formulas
from aigc_jax.layers.group_norm import GroupNorm

SHAPE = (3, 6, 5, 8)  # B, Y, X, D
GROUPS, EPS = 4, 1e-3


def draw(seed, shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def formula(x, scale, bias):
  """As arXiv:1803.08494 has it, by means over what belongs together."""
  B, Y, X, D = x.shape
  x = x.reshape(B, Y, X, GROUPS, D // GROUPS)
  over = dict(axis=(1, 2, 4), keepdims=True)
  x = (x - x.mean(**over)) / jnp.sqrt(x.var(**over) + EPS)
  return x.reshape(B, Y, X, D) * scale + bias


def with_gradients(f, args, dy):
  y, back = jax.vjp(f, *args)
  return y, *back(dy.astype(y.dtype))


by_formula = jax.jit(functools.partial(with_gradients, formula))


@pytest.fixture(params=["one CPU", "several devices"])
def where(request, monkeypatch):
  monkeypatch.setattr(sharding, "platform", lambda: "cpu")
  alone = request.param == "one CPU"
  monkeypatch.setattr(sharding, "alone", lambda: alone)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_group_norm_and_its_gradients_are_those_of_the_formula(where, dtype):
  # A mean far from zero: a variance from sums of squares would lose its digits.
  x = (3 * draw(0, SHAPE) + 50).astype(dtype)
  scale, bias, dy = 1 + draw(1, (8,)), draw(2, (8,)), draw(3, SHAPE)
  norm = GroupNorm(GROUPS, EPS)

  def ours(x, scale, bias):
    return norm.apply({"params": dict(scale=scale, bias=bias)}, x)

  found = jax.jit(lambda *a: with_gradients(ours, a, dy))(x, scale, bias)
  assert found[0].dtype == found[1].dtype == dtype
  dy = dy.astype(dtype).astype(jnp.float32)
  exact = (x.astype(jnp.float32), scale, bias)
  wanted = by_formula(exact, dy)
  close = dict(rtol=1e-4, atol=3e-5)
  if dtype == jnp.bfloat16:
    close = dict(rtol=1e-2, atol=1e-2)
  for a, b in zip(found, wanted, strict=True):
    np.testing.assert_allclose(np.asarray(a, np.float32), b, **close)


def test_among_plain_formulas_it_can_be_differentiated_forwards(where):
  x = draw(0, SHAPE)
  norm = GroupNorm(GROUPS, EPS)
  ones, zeros = np.ones(8, np.float32), np.zeros(8, np.float32)
  params = {"params": dict(scale=ones, bias=zeros)}

  @jax.jit
  def both(x):
    _, found = jax.jvp(lambda x: norm.apply(params, x), (x,), (x,))
    return found, jax.jvp(lambda x: formula(x, ones, zeros), (x,), (x,))[1]

  with plain_formulas():
    found, wanted = both(x)
  np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_the_gradient_of_what_all_places_get_is_the_sum_of_theirs(where):
  told, like, dy = draw(0, (3, 8)), draw(1, SHAPE), draw(2, SHAPE)

  @jax.jit
  def both(told, dy):
    y, back = jax.vjp(lambda told: sums.for_places(told, like), told)
    return y, back(dy)

  y, gradient = both(told, dy)
  np.testing.assert_array_equal(y, np.broadcast_to(told[:, None, None], SHAPE))
  np.testing.assert_allclose(gradient[0], dy.sum((1, 2)), rtol=1e-5, atol=1e-5)
