"""What the pages of experiments compute from results, on numbers made up."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from aigc_jax.errors import BadConfig
from aigc_jax.run import script
from aigc_jax.scaling.runs import Record, open_runs
from experiments import optimum
from experiments.batch_size import critical
from experiments.repeated_data import worth
from experiments.schedules import lengths
from experiments.speech import phrases, prompts

FOLDER = Path(optimum.__file__).parent
SWEEPS = sorted(path.parent.name for path in FOLDER.glob("*/sweep.py"))
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


@pytest.mark.parametrize("name", SWEEPS)
def test_results_are_of_points_of_the_sweep_beside_them(name):
  sweep = script.load_sweep(str(FOLDER / name / "sweep.py"))
  points = [json.dumps(p.values, sort_keys=True) for p in sweep.points]
  assert len(set(points)) == len(points)
  runs = open_runs([str(FOLDER / name / "results.jsonl")])
  found = {json.dumps(r.values, sort_keys=True) for r in runs}
  assert found <= set(points)
  assert all(r.status == "finished" for r in runs)


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


def test_seeds_at_some_values_alone_count_where_those_are_compared():
  base = [swept("base", -4.0, seed=s) for s in (0, 1)]
  wide = [swept("wide", -4.0, seed=s, low=1.5) for s in (0, 1)]
  at = slice(4, 5)  # their best, 2**-4
  more = (
    swept("base", -4.0, seed=7)[at] + swept("wide", -4, seed=7, low=1.2)[at]
  )
  found = arms(*base, *wide, more)
  assert [sorted(arm.optima) for arm in found] == [[0, 1], [0, 1]]
  row = optimum.tuned(found, found[0])[1]
  assert row[2] == "2" and row[5] == "-0.650"
  whole = arms(*base, *wide)
  assert optimum.rows(found, found[0]) == optimum.rows(whole, whole[0])
  assert optimum.widths(found, found[0]) == optimum.widths(whole, whole[0])


def curve(batch, rate, steps, seed=0):
  """A run that comes to a loss of 3 at this step, on a line from 4."""
  rows = [
    {"step": k * steps // 4, "eval/heldout/loss": 4 - k / 4} for k in range(6)
  ]
  values = {"data.batch": batch, "optim.learning_rate": rate}
  return record("all", seed, values | {"data.length": 8}, rows)


def test_the_critical_batch_of_a_law_is_found_again():
  runs = []
  for batch in (2, 4, 8, 16, 32):
    steps = round(4000 * (1 + 12 / batch))
    runs += [curve(batch, 0.1, 2 * steps), curve(batch, 0.2, steps)]
  found = critical.fewest(runs, 3.0)
  least, batch = critical.fitted(found[0])
  assert least == pytest.approx(4000, rel=1e-3)
  assert batch == pytest.approx(12, rel=1e-3)


def test_steps_to_a_loss_are_found_between_rows_and_are_infinite_without():
  run = curve(2, 0.1, 400)
  assert critical.steps_to(run, 3.5) == 200
  assert critical.steps_to(run, 3.375) == 250
  assert critical.steps_to(run, 1.0) == math.inf
  with pytest.raises(BadConfig, match="expected 3"):
    critical.fitted({2: 5.0})


def cells(star, seed=0):
  found = []
  for tokens in (2**16, 2**17, 2**18):
    for unique in (tokens, tokens // 2, tokens // 4, tokens // 8):
      fresh = worth.effective(unique, tokens / unique, star)
      loss = 10 - 0.5 * math.log(fresh)
      found.append(worth.Cell(tokens, unique, seed, loss))
  return found


def test_what_repeated_tokens_are_worth_follows_from_fresh_ones():
  assert worth.star_of(cells(3.0), 0) == pytest.approx(3.0, rel=1e-3)
  fresh = worth.fresh_of(cells(3.0), 0)
  assert worth.worth(10 - 0.5 * math.log(1e5), fresh) == pytest.approx(1e5)
  # Beyond the ends, too.
  assert worth.worth(10 - 0.5 * math.log(1e4), fresh) == pytest.approx(1e4)


def test_a_token_seen_once_is_worth_one_and_no_token_more():
  assert worth.effective(100, 1, 15.0) == pytest.approx(100)
  epochs = np.arange(1, 50)
  values = worth.effective(1, epochs, 15.0)
  assert (np.diff(values) > 0).all() and (values <= epochs + 1e-12).all()


def scheduled(schedule, rate, seed, loss):
  values = {
    "optim.schedule": schedule, "steps": 9, "optim.learning_rate": rate,
    "branch_step": 7,
  }  # fmt: skip
  rows = [{"step": 9, "train/loss": loss, "eval/heldout/loss": loss}]
  return record(schedule, seed, values, rows)


def test_schedules_are_compared_at_rates_that_other_seeds_chose():
  made = []
  # Seed 0 says .1 for the cosine and .2 for wsd, which the others do not like.
  for rate, cosine, wsd in (
    (0.1, (1, 4, 5), (2, 1, 1)),
    (0.2, (2, 1, 1), (1, 6, 8)),
  ):
    for seed in range(3):
      made.append(scheduled("cosine", rate, seed, cosine[seed]))
      made.append(scheduled("wsd", rate, seed, wsd[seed]))
  cells = lengths.cells_of(made)
  assert lengths.chosen(cells["wsd", 9]) == (0.2, {1: 6, 2: 8})
  steps, cosine, wsd, pairs, *means, difference, _, _ = lengths.row(cells, 9)
  assert (steps, cosine, wsd, pairs) == ("9", "0.1", "0.2", "2")
  assert (*means, difference) == ("4.500", "7.000", "+2.500")
  made.append(scheduled("constant", 0.1, 0, 3.0))
  said = lengths.spent(lengths.cells_of(made))
  assert "9 with cosines, 11 with a trunk of 9" in said


def test_a_prompt_is_written_as_it_sounds_and_its_notes_are_left_out():
  lines = [
    "; a comment: of the file",
    "vm-onefor: Press 1 for",
    "letters/at: at [@]",
    "beep: [this is a simple beep tone]",
    "silence/2: (2 seconds of silence)",
    "help: press * to pause, # to exit...",
    'menu: Dial 4 for a polite "don\'t call" menu; De-activated.',
  ]
  assert prompts.transcripts(lines) == {
    "vm-onefor": "press one for",
    "letters/at": "at",
    "help": "press star to pause pound to exit",
    "menu": "dial four for a polite don't call menu de activated",
  }


def test_no_phrase_says_what_is_held_out_be_it_across_two(tmp_path):
  heldout = ["one", "access denied"]
  texts = ["press one", "no one's there", "access", "denied", ""]
  assert phrases.without(texts, heldout) == texts[1:4]
  assert phrases.adds(["access", "denied"], heldout)
  assert not phrases.adds(["denied", "access"], heldout)
  assert not phrases.adds(["press one", "denied"], heldout)
  line = '1 n 00 @ | a thing; "an Old hat, worn"; "alone"; "x y"; "in 1984"'
  (tmp_path / "data.noun").write_text(f"  1 licence\n{line}\n")
  assert phrases.examples(tmp_path) == ["an old hat worn", "x y"]


def test_all_recordings_are_joined_once_a_round_to_clips_that_fit():
  lengths = (30_000, 9_000, 8_000, 20_000, 1_000, 39_999)
  clips = [(np.full(n, i + 1, np.int16), str(i)) for i, n in enumerate(lengths)]
  found = list(phrases.joined(clips, np.random.default_rng(0)))
  assert sorted(t for _, texts in found for t in texts) == list("012345")
  assert 3 <= len(found) < 6
  for clip, texts in found:
    assert len(clip) <= phrases.SECONDS * phrases.RATE
    for text in texts:
      assert (clip == int(text) + 1).sum() == lengths[int(text)]
    assert clip[-1] == int(texts[-1]) + 1
