"""Where a number is best in each arm, on numbers made up."""

import math
from pathlib import Path

import pytest

from aigc_jax.errors import BadConfig
from aigc_jax.scaling.runs import Record
from experiments import optimum

RATES = [2.0**k for k in range(-8, 0)]


def record(arm, seed, values, rows, status="finished"):
  config = {"seed": seed}
  name = f"{arm}-{seed}-{values}"
  return Record(Path("x"), name, config, {}, {}, rows, arm, values, said=status)


def swept(arm, best, *, low=2.0, seed=0, wide=1.0):
  """Runs of an arm whose loss is a parabola in octaves around `best`."""
  runs = []
  for rate in RATES:
    loss = low + wide * 0.05 * (math.log2(rate) - best) ** 2
    rows = [
      {"step": 1, "train/loss": 5.0},
      {"step": 9, "train/loss": loss, "eval/heldout/loss": loss},
    ]
    name = f"{arm}, learning_rate={rate}"
    runs.append(record(name, seed, {"optim.learning_rate": rate}, rows))
  return runs


def arms(*runs):
  return optimum.arms_in(
    sum(runs, []), "optim.learning_rate", "eval/heldout/loss"
  )


def test_the_optimum_of_a_parabola_is_its_vertex():
  (arm,) = arms(swept("a", -4.3))
  found = arm.optima[0]
  assert math.log2(found.value) == pytest.approx(-4.3)
  assert found.metric == pytest.approx(2.0)
  assert not found.edge


def test_an_optimum_at_the_end_of_what_was_tried_is_said_to_be():
  (arm,) = arms(swept("a", -9.0))
  assert arm.optima[0].edge and arm.optima[0].value == RATES[0]


def test_a_shift_is_the_paired_difference_of_octaves():
  places = ((0, -4.0), (1, -4.4), (2, -3.9))
  base = [swept("base", b, seed=s) for s, b in places]
  wide = [swept("wide", b - 1.5, seed=s) for s, b in places]
  found = arms(*base, *wide)
  rows = optimum.rows(found, found[0])
  assert [row[0] for row in rows] == ["base", "wide"]
  assert rows[1][3] == "-1.50"


def test_a_diverged_run_counts_as_one_that_stayed_where_it_began():
  runs = swept("a", -4.0)
  last = runs[-1]
  rows = [last.rows[0], {"step": 2, "train/loss": None}]
  runs[-1] = record(last.arm, 0, last.values, rows, status="diverged")
  (arm,) = arms(runs)
  assert arm.curves[0][RATES[-1]] == 5.0


def test_sensitivity_is_the_mean_excess_over_the_best():
  assert optimum.sensitivity({1.0: 2.0, 2.0: 2.5, 4.0: 3.0}) == 0.5


def test_what_was_tuned_on_does_not_count():
  # The first seed prefers a rate that is no good with the others.
  found = arms(
    swept("a", -7.0, seed=0, low=1.0),
    swept("a", -4.0, seed=1), swept("a", -4.0, seed=2),
    swept("b", -4.0, seed=0), swept("b", -4.0, seed=1),
    swept("b", -4.0, seed=2),
  )  # fmt: skip
  (a, b) = optimum.tuned(found, found[1])
  assert a[1:4] == (f"{2**-7:.3g}", "2", "2.450")
  assert b[1:4] == (f"{2**-4:.3g}", "2", "2.000")
  assert a[5] == "+0.450"


def test_runs_that_do_not_set_the_number_are_refused():
  runs = [record("a", 0, {}, [{"step": 1, "train/loss": 1.0}])]
  with pytest.raises(BadConfig, match="does not set optim.learning_rate"):
    arms(runs)
