"""Points of a sweep that go on from another one, which they wait for."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aigc_jax import files, run
from aigc_jax.errors import BadConfig
from aigc_jax.scaling.space import arms, grid, product, repeat, zipped
from aigc_jax.scaling.sweeps import branches, ledger, progress
from tests.scaling import sweeping
from tests.scaling.sweeping import attempts, carry_out, plan_of, planned
from tests.test_sweep import call, made, unbuilt

__all__ = ["call", "made", "unbuilt"]  # fixtures
ROOT = Path(__file__).parents[2]
ONE_DEVICE = "--xla_backend_optimization_level=0"
WSD = """(
    repeat(arms(trunk={"steps": 8, "optim.schedule": "constant",
      "checkpoint.every_steps": 2, "checkpoint.keep_every_steps": 2}), seeds=1)
    + product(
      arms(decay={"branch_from": "trunk", "seed": 0, "optim.schedule": "wsd"}),
      zipped({"branch_step": [4, 6, 8], "steps": [6, 9, 12],
              "optim.decay_steps": [2, 3, 4]}),
    )
  )"""


def branch_of(trunk, seed: int, step: int = 2):
  """A point of seed `seed` that is a branch of another, not built."""
  point = planned(
    seed, "decay", branch_from=branches.named(trunk.fingerprint),
    branch_step=str(step),
  )  # fmt: skip
  return branches.planned(point, trunk)


def states(found) -> list[str]:
  return [state.state for state in found]


@pytest.fixture
def out(tmp_path):
  return tmp_path / "out"


def test_a_branch_begins_once_its_trunk_has_the_step(out, tmp_path):
  trunk = planned(0)
  plan = plan_of(branch_of(trunk, 1), trunk, branch_of(trunk, 2, 4))
  index = ledger.write(plan, out)
  first, own, second = index.entries
  assert [e.trunk for e in index.entries] == [own.name, "", own.name]
  assert states(map(ledger.state_of, index.entries)) == [
    "waiting", "planned", "waiting",
  ]  # fmt: skip
  assert states(carry_out(index, sweeping.line(tmp_path))) == ["done"] * 3
  began = [ledger.said_of(e).attempts[0]["started"] for e in index.entries]
  assert began[1] < min(began[0], began[2])
  for entry in (first, second):
    (words,) = attempts(entry)
    assert words.endswith(f"--config.branch_from={own.workdir.absolute()}")
  # Only what is left of the trunk's steps is paid for.
  assert first.cost.flops == trunk.cost.flops / 2 and first.cost.steps == 4


def test_side_by_side_no_branch_begins_before_its_trunk_and_others_do(
  out, tmp_path
):
  trunk = planned(0)
  plan = plan_of(branch_of(trunk, 1), planned(3), trunk)
  index = ledger.write(plan, out)
  found = carry_out(index, sweeping.line(tmp_path), parallel=2, together=4)
  assert states(found) == ["done"] * 3
  assert [s.attempts[0]["together"] for s in found][0] == 1


def test_a_trunk_that_fails_takes_its_branches_with_it_until_it_is_run_again(
  out, tmp_path, capsys
):
  line, trunk = sweeping.line(tmp_path, {"0": [1, 0]}), planned(0)
  plan = plan_of(trunk, branch_of(trunk, 1), planned(2))
  index = ledger.write(plan, out)
  found = carry_out(index, line)
  assert states(found) == ["failed", "waiting", "done"]
  assert not attempts(index.entries[1])
  why = f"its trunk {trunk.name} is failed and has no checkpoint of step 2"
  assert f"not run, {why}" in capsys.readouterr().err
  table = progress.status_table(index.entries, found, index.metric)
  assert why in table
  assert "1 waiting, 1 done, 1 failed" in progress.summed_up(
    index.entries, index.metric
  )
  again = carry_out(index, line)
  assert states(again) == ["done"] * 3
  assert len(attempts(index.entries[1])) == 1


def test_a_branch_whose_trunk_is_not_run_here_is_told_so(
  call, made, unbuilt, out, tmp_path
):
  line = sweeping.line(tmp_path)
  flags = (f"--sweep={made(WSD)}", f"--out={out}", f"--launcher={line}")
  with pytest.raises(BadConfig, match="3 branches not run: decay"):
    call(*flags, "--arm=decay")
  assert call(*flags) == 0


def test_in_an_array_trunks_come_first_and_no_branch_waits_for_ever(
  call, made, unbuilt, out, capsys
):
  flags = (
    f"--sweep={made(WSD)}", f"--out={out}", "--launcher=slurm", "--nosubmit",
  )  # fmt: skip
  with pytest.raises(BadConfig, match="would wait for ever: its trunk"):
    call(*flags, "--arm=decay")
  assert call(*flags) == 0
  first, *others = (out / "slurm.txt").read_text().split()
  assert first.startswith("trunk") and len(others) == 3


def test_a_dry_run_shows_what_waits_and_writes_nothing(
  call, made, unbuilt, out, capsys
):
  assert call(f"--sweep={made(WSD)}", f"--out={out}", "--dry_run") == 0
  rows = [r for r in capsys.readouterr().out.splitlines() if "-seed0-" in r]
  assert len(rows) == 4 and not out.exists()
  assert ["waiting" in row for row in rows] == [False, True, True, True]
  assert "branch_from=trunk" in rows[1] and "branch_step=4" in rows[1]


def test_a_sweep_that_was_moved_knows_its_trunks(out, tmp_path):
  trunk = planned(0)
  plan = plan_of(trunk, branch_of(trunk, 1))
  before = ledger.write(plan, out).entries[1]
  stored = (before.folder / "config.json").read_bytes()
  moved = tmp_path / "moved"
  shutil.move(out, moved)
  after = ledger.write(plan, moved).entries[1]
  assert after.name == before.name
  assert (after.folder / "config.json").read_bytes() == stored
  words, _ = ledger.command_of(after)
  trunk_there = ledger.read_index(moved).entries[0].workdir.absolute()
  assert words[-1] == f"--config.branch_from={trunk_there}"


def test_a_command_with_another_trunk_is_not_run(out):
  trunk = planned(0)
  entry = ledger.write(plan_of(trunk, branch_of(trunk, 1)), out).entries[1]
  path = entry.folder / "point.json"
  found = files.read_json(path)
  found["command"][-1] = "--config.branch_from=/elsewhere"
  files.write_json(path, found)
  with pytest.raises(BadConfig, match="is not the one that trains this point"):
    ledger.command_of(entry)


def test_a_branch_belongs_to_the_trunk_of_its_seed_and_values():
  trunk = product(
    arms(trunk={"steps": 8}), grid({"optim.learning_rate": [1e-3, 1e-2]})
  )
  decay = product(
    arms(decay={"branch_from": "trunk", "steps": 9}),
    zipped({"branch_step": [4, 6]}),
    grid({"optim.learning_rate": [1e-3, 1e-2]}),
  )
  points = repeat(decay + trunk, seeds=2)
  names = [p.arm for p in points]
  found = branches.trunks_of(points, names, "x.py")
  assert len(found) == 8
  for i, k in found.items():
    assert names[i] == "decay" and names[k] == "trunk"
    for key in ("seed", "optim.learning_rate"):
      assert points[i].values[key] == points[k].values[key]


@pytest.mark.parametrize(
  "points, words",
  [
    (
      'arms(a={}, b={"branch_from": "a"})',
      "branch_step is missing: the step of the trunk",
    ),
    (
      'arms(a={"seed": 1}, b={"branch_from": "a", "branch_step": 2})',
      "0 points of that arm have its seed",
    ),
    (
      'product(arms(a={}), grid({"optim.b1": [.8, .9]})) + '
      'arms(b={"branch_from": "a", "branch_step": 2})',
      "2 points of that arm have its seed",
    ),
    (
      'arms(a={"checkpoint.every_steps": 2}, b={"branch_from": "a", '
      '"branch_step": 6, "steps": 8}, '
      'c={"branch_from": "b", "branch_step": 7})',
      "that is a branch itself: name its own trunk, 'a'",
    ),
    (
      'arms(a={"checkpoint.every_steps": 4}, b={"branch_from": "a", '
      '"branch_step": 3})',
      "it will have no checkpoint of that step",
    ),
    (
      'arms(a={"checkpoint.every_steps": 1, "checkpoint.keep": 2}, '
      'b={"branch_from": "a", "branch_step": 2})',
      "it will have no checkpoint of that step",
    ),
    (
      'arms(a={"checkpoint.every_steps": 1, "checkpoint.keep": 9}, '
      'b={"branch_from": "a", "branch_step": 2})',
      "branch_step=2 is in the warm-up of arm 'a'",
    ),
    (
      'arms(a={"checkpoint.every_steps": 1, "checkpoint.keep": 9}, '
      'b={"branch_from": "a", "branch_step": 4, "optim.learning_rate": .1})',
      "at step 0 the learning rate of arm 'a' was",
    ),
    (
      'arms(a={}, b={"branch_from": "a", "branch_step": 9})',
      "expected 1 to 6, the steps of its trunk 'a'",
    ),
  ],
)
def test_a_branch_that_cannot_be_is_refused_with_its_point(
  call, made, unbuilt, out, points, words
):
  with pytest.raises(BadConfig, match="point") as refused:
    call(f"--sweep={made(points)}", f"--out={out}")
  assert words in str(refused.value) and not out.exists()


@pytest.mark.slow
def test_a_trunk_and_decays_of_three_lengths_are_one_sweep(made, tmp_path):
  """Real training: a decay is the WSD run of its length to the bit."""
  out = tmp_path / "out"
  line = [
    sys.executable, "-m", "aigc_jax.sweep", f"--sweep={made(WSD)}",
    f"--out={out}",
  ]  # fmt: skip
  how = dict(cwd=ROOT, env=os.environ | {"XLA_FLAGS": ONE_DEVICE})
  done = subprocess.run(line, capture_output=True, text=True, **how)
  assert done.returncode == 0, done.stderr
  trunk, *decays = ledger.read_index(out).entries
  assert [run.result_in(e.workdir)["step"] for e in decays] == [6, 9, 12]
  entry = decays[1]  # of any; each has a law of its own in tests/test_branch.py
  config = ledger.config_of(entry) | {"branch_from": None, "branch_step": None}
  files.write_json(tmp_path / "alone.json", config)
  subprocess.run(
    [
      sys.executable, "-m", "aigc_jax.train",
      f"--config={tmp_path / 'alone.json'}", f"--workdir={tmp_path / 'alone'}",
    ],
    check=True, **how,
  )  # fmt: skip
  alone, ours = (
    run.result_in(d)["digest"] for d in (tmp_path / "alone", entry.workdir)
  )
  assert alone == ours
  assert ledger.state_of(trunk).state == "done"
