"""Processors against plain numpy, written from their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.errors import BadConfig
from aigc_jax.sampling import logits
from aigc_jax.sampling.logits import Sampling


def some_logits(B=5, V=41, seed=0):
  return 3 * np.random.default_rng(seed).standard_normal((B, V)).astype("f4")


def softmax(z):
  e = np.exp(z - z.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


# Compiled whole: operation by operation took longer than all of the rest.
ordered = jax.jit(logits.ordered)
keep_top_k, keep_top_p, keep_min_p, penalise = map(
  jax.jit,
  (logits.keep_top_k, logits.keep_top_p, logits.keep_min_p, logits.penalise),
)
process = jax.jit(logits.process, static_argnums=2)
choose = jax.jit(logits.choose, static_argnums=2)


def kept(z):
  return np.isfinite(np.asarray(z))


def test_words_are_in_the_order_of_their_numbers():
  x = np.array([-np.inf, -3e38, -1.5, -1e-40, 0.0, 1e-40, 1.5, 3e38, np.inf])
  words = np.asarray(ordered(x.astype(np.float32)))
  assert (np.diff(words.astype(np.int64)) >= 0).all()
  zeros = np.asarray(ordered(np.array([-0.0, 0.0], np.float32)))
  assert zeros[0] == zeros[1]


@pytest.mark.parametrize("k", [1, 2, 7, 40, 41])
def test_top_k_keeps_the_k_largest(k):
  z = some_logits()
  expected = np.argsort(np.argsort(-z, -1), -1) < k
  np.testing.assert_array_equal(kept(keep_top_k(z, k)), expected)


def test_top_k_keeps_what_equals_the_kth():
  z = np.array([[2.0, 1.0, 1.0, 0.0]], np.float32)
  np.testing.assert_array_equal(
    kept(keep_top_k(z, 2)), [[True, True, True, False]]
  )


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p):
  z = some_logits()
  probs = softmax(z.astype("f8"))
  order = np.argsort(-probs, -1)
  descending = np.take_along_axis(probs, order, -1)
  before = np.cumsum(descending, -1) - descending
  expected = np.zeros(z.shape, bool)
  np.put_along_axis(expected, order, before < p, -1)
  np.testing.assert_array_equal(kept(keep_top_p(z, p)), expected)


@pytest.mark.parametrize("p", [0.01, 0.3, 1.0])
def test_min_p_keeps_what_is_likely_beside_the_likeliest(p):
  z = some_logits()
  probs = softmax(z)
  expected = probs >= p * probs.max(-1, keepdims=True)
  np.testing.assert_array_equal(kept(keep_min_p(z, p)), expected)


def test_the_penalty_divides_what_is_positive_and_multiplies_the_rest():
  z = np.array([[2.0, -2.0, 2.0, -2.0]], np.float32)
  seen = np.array([[True, True, False, False]])
  np.testing.assert_allclose(penalise(z, seen, 4.0), [[0.5, -8.0, 2.0, -2.0]])


def test_processors_act_in_their_order():
  # Of probabilities .5 .3 .2 top-k leaves .625 .375, of which top-p 0.6 takes
  # the first; the other way round top-p would take two, and top-k both.
  z = np.log(np.array([[0.5, 0.3, 0.2]], np.float32))
  how = Sampling(temperature=1.0, top_k=2, top_p=0.6)
  np.testing.assert_array_equal(kept(process(z, None, how)), [[1, 0, 0]])
  # Temperature comes before top-p: at 2 the distribution is flatter.
  how = Sampling(temperature=2.0, top_p=0.45)
  np.testing.assert_array_equal(kept(process(z, None, how)), [[1, 1, 0]])


def test_draws_follow_the_distribution():
  z = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
  how = Sampling(temperature=0.5, top_p=0.95)

  @jax.jit
  def draw(z, key):
    key_B = jax.random.split(key, 20_000)
    return logits.choose(jnp.tile(z, (20_000, 1)), None, how, key_B)

  drawn = draw(z, jax.random.key(3))
  expected = np.array([0.5, 0.3, 0.15, 0.0]) ** 2
  found = np.bincount(np.asarray(drawn), minlength=4) / 20_000
  np.testing.assert_allclose(found, expected / expected.sum(), atol=0.01)
  assert found[3] == 0


def test_greedy_takes_the_largest_and_ignores_the_rest():
  z = some_logits()
  how = Sampling(temperature=0.0, top_k=3, top_p=0.1, min_p=0.9)
  np.testing.assert_array_equal(choose(z, None, how, None), z.argmax(-1))


@pytest.mark.parametrize(
  "wrong",
  [
    dict(temperature=float("nan")),
    dict(temperature=-1.0),
    dict(temperature=float("inf")),
    dict(top_k=42),
    dict(top_k=-1),
    dict(top_p=0.0),
    dict(top_p=1.5),
    dict(top_p=float("nan")),
    dict(min_p=-0.1),
    dict(min_p=float("nan")),
    dict(repetition_penalty=0.0),
    dict(repetition_penalty=1e300),
    dict(temperature=1e300),
    dict(top_p=1e-50),
    dict(repetition_penalty=float("nan")),
  ],
)
def test_what_cannot_be_meant_is_refused_by_name(wrong):
  with pytest.raises(BadConfig, match=next(iter(wrong))):
    Sampling(**wrong).check(vocab=41)
