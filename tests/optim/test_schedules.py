"""Schedules against closed formulas, at their corners and in between."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.errors import BadConfig
from aigc_jax.optim import schedules

PEAK = 0.3
RUN = dict(
  learning_rate=PEAK,
  warmup_steps=4,
  decay_steps=None,
  final_fraction=0.1,
  steps=24,
)


def rates(kind, **changes):
  """The rate at every step of the run and for 10 steps beyond."""
  schedule = schedules.build(kind=kind, **{**RUN, **changes})
  return np.asarray(jax.vmap(schedule)(jnp.arange(34)))


@pytest.mark.parametrize("kind", schedules.SCHEDULES)
def test_warms_up_in_equal_steps_from_above_zero_to_the_peak(kind):
  expected = [PEAK * (s + 1) / 5 for s in range(5)]
  np.testing.assert_allclose(rates(kind)[:5], expected, rtol=1e-6)


@pytest.mark.parametrize("kind", schedules.SCHEDULES)
def test_without_warmup_starts_at_the_peak(kind):
  assert rates(kind, warmup_steps=0)[0] == np.float32(PEAK)


@pytest.mark.parametrize("kind", schedules.SCHEDULES)
def test_is_a_pure_float32_function_of_the_step(kind):
  schedule = schedules.build(kind=kind, **RUN)
  compiled = jax.jit(schedule)(jnp.int32(9))
  assert compiled.dtype == jnp.float32 and compiled.shape == ()
  np.testing.assert_allclose(compiled, schedule(9), rtol=1e-6)


@pytest.mark.parametrize("kind", schedules.SCHEDULES)
def test_never_rises_after_the_warmup_nor_falls_below_the_floor(kind):
  after = rates(kind)[4:]
  assert np.all(np.diff(after) <= 1e-7)
  assert after.min() >= PEAK * 0.1 * (1 - 1e-6)


def formula(kind, s):
  """The factor of the peak at step s >= 4 of RUN."""
  x = min(1, (s - 4) / 20)
  tail = min(1, max(0, (s - 19) / 5))  # a fifth of 24 steps, rounded: 5
  return {
    "constant": 1.0,
    "cosine": 0.1 + 0.9 * (1 + math.cos(math.pi * x)) / 2,
    "linear": 1 - 0.9 * x,
    "rsqrt": max(0.1, math.sqrt(4 / s)),
    "wsd": 1 - 0.9 * tail,
    "wsd_cosine": 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * tail)),
    "wsd_sqrt": 1 - 0.9 * math.sqrt(tail),
  }[kind]


@pytest.mark.parametrize("kind", schedules.SCHEDULES)
def test_closed_formula(kind):
  expected = [PEAK * formula(kind, s) for s in range(4, 34)]
  np.testing.assert_allclose(rates(kind)[4:], expected, rtol=2e-6)


@pytest.mark.parametrize("kind", ["cosine", "linear", *schedules.AT_THE_END])
def test_decays_for_decay_steps_and_stays(kind):
  got = rates(kind, decay_steps=8)
  start = 24 - 8 if kind in schedules.AT_THE_END else 4
  assert got[start] == np.float32(PEAK)
  assert got[start + 1] < np.float32(PEAK)
  assert got[start + 7] > PEAK * 0.1 * 1.01
  np.testing.assert_allclose(got[start + 8 :], PEAK * 0.1, rtol=1e-5)


def test_stable_part_of_wsd_is_exactly_the_peak():
  assert np.all(rates("wsd")[4:20] == np.float32(PEAK))


def test_rsqrt_has_a_floor():
  schedule = schedules.build(kind="rsqrt", **RUN)
  np.testing.assert_allclose(schedule(4 * 10**6), PEAK * 0.1, rtol=1e-6)


@pytest.mark.parametrize("kind", schedules.SCHEDULES)
def test_a_run_shorter_than_its_warmup_stays_in_it(kind):
  got = rates(kind, warmup_steps=50, steps=10)
  np.testing.assert_allclose(
    got, [PEAK * (s + 1) / 51 for s in range(34)], rtol=1e-6
  )


@pytest.mark.parametrize(
  "changes, words",
  [
    (dict(kind="cosin"), "did you mean 'cosine'"),
    (dict(kind="constant", decay_steps=5), "optim.decay_steps=5"),
    (dict(kind="cosine", decay_steps=0), "optim.decay_steps=0"),
    (dict(kind="cosine", warmup_steps=-1), "optim.warmup_steps=-1"),
    (dict(kind="cosine", final_fraction=1.5), "optim.final_fraction=1.5"),
    (dict(kind="cosine", learning_rate=0.0), "optim.learning_rate=0.0"),
  ],
)
def test_refuses_what_cannot_be(changes, words):
  with pytest.raises(BadConfig, match=words):
    schedules.build(**{**RUN, **changes})


@pytest.mark.parametrize(
  ("given", "way"),
  [
    (dict(warmup_steps=100), "--config.optim.warmup_steps=2 "),
    (
      dict(warmup_steps=None, warmup_fraction=1.0),
      "--config.optim.warmup_fraction=0.1 ",
    ),
  ],
)
def test_a_warm_up_without_an_end_is_told_with_a_way_out(given, way, caplog):
  schedules.build(kind="cosine", **RUN | dict(steps=20) | given)
  assert "a run of 20 steps never leaves the warm-up" in caplog.text
  assert way in caplog.text
