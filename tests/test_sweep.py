"""The command: a sweep as a user gets it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aigc_jax import command, files, sweep
from aigc_jax.errors import BadConfig, WorkdirInUse
from aigc_jax.scaling.sweeps import ladder, ledger, plan
from aigc_jax.scaling.sweeps.plan import Cost
from aigc_jax.trainer.journal import rows
from aigc_jax.trainer.lock import Lock
from tests import commands
from tests.scaling import sweeping

CONFIG = """
from aigc_jax.presets import skeleton

def get_config():
  config = skeleton()
  config.steps = 6
  config.data.update(batch=8, length=16, tokenizer="bytes", sources=(),
                     path={text!r}, validation=0.2)
  config.model.update(vocab=257, layers=1, dim=16, heads=4, kv_heads=2)
  config.optim.warmup_steps = 2
  config.checkpoint.every_steps = None
  config.log.every_steps = 2
  return config
"""
SWEEP = """
from aigc_jax.scaling.space import *

def get_sweep():
  points = {points}
  return Sweep("config.py", points{more})
"""
TWO_ARMS = 'repeat(arms(plain={}, qk={"model.qk_norm": True}), seeds=2)'


@pytest.fixture
def call(monkeypatch):
  """sweep's main with flags as on a command line."""
  mine = commands.own_flags(monkeypatch)
  command.define_config(mine)
  sweep.define_flags()

  def run(*words):
    mine.unparse_flags()
    for name in mine:
      mine[name].unparse()
    left = command.parsed(mine, ["sweep", *words])
    return sweep.main(left[1:])

  return run


@pytest.fixture
def made(tmp_path):
  """A config and a sweep file; made(points) writes another one."""
  text = tmp_path / "text.txt"
  text.write_text("Some words that are to be learned.\n" * 400)
  (tmp_path / "config.py").write_text(CONFIG.format(text=str(text)))

  def write(points: str = TWO_ARMS, more: str = "") -> str:
    path = tmp_path / "sweep.py"
    path.write_text(SWEEP.format(points=points, more=more))
    return str(path)

  return write


@pytest.fixture
def unbuilt(monkeypatch):
  """Points are not built: what they cost is made up."""
  cost = Cost(parameters=100, steps=6, amount=768, flops=1e6)
  monkeypatch.setattr(plan, "cost_of", lambda config: cost)


def test_a_dry_run_shows_points_and_costs_and_writes_nothing(
  call, made, tmp_path, capsys
):
  out = tmp_path / "out"
  assert call(f"--sweep={made()}", f"--out={out}", "--dry_run") == 0
  text = capsys.readouterr().out
  rows = [line.split() for line in text.splitlines() if "-seed" in line]
  assert [row[1] for row in rows] == ["plain", "qk", "plain", "qk"]
  assert rows[1][2:4] == ["model.qk_norm=True", "seed=0"]
  assert "768" in rows[0] and "planned" in rows[0]
  # Of qk_norm are 2 x 4 more.
  parameters = [int(row[-4].replace(",", "")) for row in rows]
  assert parameters[1] - parameters[0] == 8
  assert "4 points" in text and not out.exists()


def test_times_are_predicted_from_a_bench(
  call, made, unbuilt, tmp_path, capsys
):
  bench = tmp_path / "bench.json"
  bench.write_text(json.dumps({"flops_per_second": 1e4}))
  call(f"--sweep={made()}", "--dry_run", f"--bench={bench}")
  assert capsys.readouterr().out.count("1:40") == 4
  bench.write_text("{}")
  with pytest.raises(BadConfig, match="has no flops_per_second"):
    call(f"--sweep={made()}", "--dry_run", f"--bench={bench}")


def test_what_failed_is_the_exit_status_and_the_same_line_runs_it_again(
  call, made, unbuilt, tmp_path, capsys
):
  line = sweeping.line(tmp_path, {"1": [9, 0]})
  words = (
    f"--sweep={made()}", f"--out={tmp_path / 'out'}", f"--launcher={line}",
    "--parallel=2",
  )  # fmt: skip
  assert call(*words) == 2  # of both arms, seed 1
  assert "2 done, 2 failed of 4" in capsys.readouterr().out
  assert call(*words[1:], "--status") == 2
  text = capsys.readouterr().out
  assert "| died of 9" in text and "-m aigc_jax.train --config=" in text
  assert call(*words) == 0
  assert "4 done of 4" in capsys.readouterr().out
  assert call(*words[1:]) == 0  # by what is on disk, without the sweep file
  assert call(words[1], "--status", "--json") == 0
  found = json.loads(capsys.readouterr().out.split("\n", 2)[2])
  assert [p["attempts"] for p in found["points"]] == [1, 1, 2, 2]


def test_one_arm_can_be_run_by_itself(call, made, unbuilt, tmp_path):
  out = tmp_path / "out"
  words = (f"--sweep={made()}", f"--out={out}", "--arm=qk",
           f"--launcher={sweeping.line(tmp_path)}")  # fmt: skip
  assert call(*words) == 0
  states = {
    e.arm: ledger.state_of(e).state for e in ledger.read_index(out).entries
  }
  assert states == {"plain": "planned", "qk": "done"}


def test_a_task_of_an_array_runs_one_point(call, made, unbuilt, tmp_path):
  out = tmp_path / "out"
  words = (f"--sweep={made()}", f"--out={out}", "--launcher=slurm",
           "--sbatch=--time=1:00:00", "--nosubmit")  # fmt: skip
  assert call(*words) == 0
  assert "#SBATCH --time=1:00:00" in (out / "slurm.sh").read_text()
  with pytest.raises(BadConfig, match="no such point; did you mean"):
    call(f"--out={out}", "--point=plain-seed0")


SPACES = {
  "unknown key": (
    'arms(a={"optim.learning_rat": 1})', "",
    r"point 1 \('a'.*learning_rat is unknown; did you mean 'learning_rate'",
  ),
  "wrong type": ('arms(a={"steps": 1.5})', "", "steps=1.5: expected a whole"),
  "no value of a config": ('grid({"seed": [{1}]})', "", "a config holds"),
  "two of equal content": (
    'arms(a={}, b={"model.qk_norm": False})', "",
    r"point 2 \('b'.*of equal content as point 1 \('a'",
  ),
  "equal once derived": (
    'grid({"model.mlp_dim": [None, 48]})', "", "of equal content",
  ),
  "no points": ("()", "", "has no points"),
  "no space": ('{"seed": 1}', "", "the points of its sweep are"),
  "baseline": (
    TWO_ARMS, ', baseline="plane"',
    "'plane' is no arm of the sweep; did you mean 'plain'",
  ),
  "config": ('grid({"config": ["x.py"]})', "", "there is no such file"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPACES)
def test_a_sweep_that_cannot_be_is_refused_before_anything_is_written(
  name, call, made, unbuilt, tmp_path
):
  points, more, message = SPACES[name]
  with pytest.raises(BadConfig, match=message):
    call(f"--sweep={made(points, more)}", f"--out={tmp_path / 'out'}")
  assert not (tmp_path / "out").exists()


def test_a_baseline_may_be_an_arm_of_a_grid(call, made, unbuilt, tmp_path):
  points = f"product({TWO_ARMS}, grid({{'optim.b1': [0.8, 0.9]}}))"
  sweep_file, out = made(points, ", baseline='plain'"), tmp_path / "out"
  words = (f"--sweep={sweep_file}", f"--out={out}",
           f"--launcher={sweeping.line(tmp_path)}")  # fmt: skip
  assert call(*words) == 0
  assert ledger.read_index(out).baseline == "plain"


def test_what_training_would_refuse_is_refused_with_its_point(
  call, made, tmp_path
):
  points = 'arms(a={}, b={"optim.kind": "lion", "optim.b1": 2.0})'
  with pytest.raises(BadConfig, match=r"point 2 \('b'.*b1"):
    call(f"--sweep={made(points)}", f"--out={tmp_path / 'out'}")


def test_flags_that_make_no_sense_are_refused(call, made, unbuilt, tmp_path):
  with pytest.raises(BadConfig, match="--out=DIR is missing"):
    call(f"--sweep={made()}")
  with pytest.raises(BadConfig, match="holds no sweep"):
    call(f"--out={tmp_path / 'new'}")
  with pytest.raises(BadConfig, match="holds other things"):
    call(f"--sweep={made()}", f"--out={tmp_path}")
  with pytest.raises(BadConfig, match="no such arm; did you mean 'plain'"):
    call(f"--sweep={made()}", f"--out={tmp_path / 'new'}", "--arm=plane")
  with pytest.raises(BadConfig, match="--parallel=-1"):
    call(f"--sweep={made()}", f"--out={tmp_path / 'new'}", "--parallel=-1")
  with pytest.raises(BadConfig, match="expected a sweep file"):
    call("--sweep=sweep.yaml", "--dry_run")
  nothing = tmp_path / "nothing.py"
  nothing.write_text("def get_sweep():\n  pass\n")
  with pytest.raises(BadConfig, match="returns nothing instead of a sweep"):
    call(f"--sweep={nothing}", "--dry_run")
  nothing.write_text("def get_sweeps():\n  pass\n")
  with pytest.raises(BadConfig, match="no get_sweep.*mean 'get_sweeps'"):
    call(f"--sweep={nothing}", "--dry_run")
  assert not (tmp_path / "new").exists()


def test_two_sweeps_do_not_work_in_one_folder(call, made, unbuilt, tmp_path):
  out = tmp_path / "out"
  out.mkdir()
  with Lock(out), pytest.raises(WorkdirInUse, match="is in use by process"):
    call(f"--sweep={made()}", f"--out={out}")


def test_a_lock_alone_makes_no_folder_that_of_a_sweep(
  call, made, unbuilt, tmp_path
):
  out = tmp_path / "out"
  out.mkdir()
  for name in ("LOCK", "config.json"):
    (out / name).touch()
  with pytest.raises(BadConfig, match=r"holds other things \(config.json\)"):
    call(f"--sweep={made()}", f"--out={out}")
  (out / "config.json").unlink()  # of one that was killed at its start
  sweep._check_out(str(out))


def test_a_ladder_meets_its_budgets_by_the_count_of_training(
  call, made, tmp_path, capsys
):
  made()
  out = tmp_path / "ladder.py"
  words = (
    "ladder", f"--config={tmp_path / 'config.py'}", "--budgets=3e8,1e9",
    "--sizes=16,2x32", f"--out={out}", "--config.data.batch=4", "--seeds=2",
  )  # fmt: skip
  assert call(*words) == 0
  assert "1x16" in capsys.readouterr().out
  found = plan.load(str(out))
  assert len(found.points) == 8 and len(found.arms) == 4
  for point in found.points:
    budget = float(point.arm.split(" at ")[1])
    each = point.cost.flops / point.cost.steps
    assert abs(point.cost.flops - budget) <= each / 2
    assert point.config["data"]["batch"] == 4
    model = point.config["model"]
    assert model["dim"] // model["heads"] == 4
    assert model["kv_heads"] * 2 == model["heads"]
    # The rule that is written there: as one over the width.
    rate = point.config["optim"]["learning_rate"]
    assert rate == pytest.approx(3e-4 * 16 / model["dim"])
  check = [sys.executable, "-m", "ruff", "format", "--check", "--config"]
  root = Path(__file__).parents[1]
  # A path of any length takes a line of its own length.
  out.write_text(out.read_text().replace(str(tmp_path), "configs"))
  done = subprocess.run([*check, root / "pyproject.toml", out])
  assert done.returncode == 0, "it reads as if written by hand"


@pytest.mark.parametrize(
  "words, message",
  [
    (["--sizes=16"], "takes --budgets"),
    (["--budgets=1e8", "--sizes=18"], "Take 16 or 24"),
    (["--budgets=1e8", "--sizes=2by16"], "'2by16' is no size"),
    (["--budgets=-1", "--sizes=16"], "'-1' is no number above 0"),
    (["--budgets=1e8,1e8", "--sizes=16"], "one is there twice"),
    (["--budgets=1e6", "--sizes=16"], r"1e\+06 FLOPs are .* steps of 1x16"),
    (["--budgets=1e8,2e8", "--sizes=16", "--pairs"], "2 budgets, 1 sizes"),
    (["--budgets=1e8", "--sizes=16", "--rule=wide"], "did you mean 'width'"),
    (
      ["--budgets=1e8", "--sizes=16", "--tokens_per_parameter=1e5,1e6"],
      "leaves no run: 1x16 at 1e.08",
    ),
  ],
)
def test_a_ladder_that_cannot_be_is_refused(
  words, message, call, made, unbuilt, tmp_path, monkeypatch
):
  made()
  out = tmp_path / "ladder.py"
  with pytest.raises(BadConfig, match=message):
    call("ladder", f"--config={tmp_path / 'config.py'}", f"--out={out}", *words)
  assert not out.exists()


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--seeds=3"], "--seeds is of `sweep ladder`"),
    (["--sizes=16"], "--sizes is of `sweep ladder`"),
    (["--json"], "--json is of --status"),
    (["--bench=x.json"], "--bench is of --dry_run"),
    (["--sbatch=--time=1"], "--sbatch is of --launcher=slurm"),
    (["ladder", "--parallel=2"], "--parallel is of sweeps"),
    (["ladder", "--dry_run"], "--dry_run is of sweeps"),
  ],
)
def test_a_flag_of_a_sweep_is_read_or_refused(
  words, message, call, made, unbuilt, tmp_path
):
  made()
  more = [f"--sweep={tmp_path / 'sweep.py'}", f"--out={tmp_path / 'out'}"]
  if words[0] == "ladder":
    more = [f"--config={tmp_path / 'config.py'}"]
  with pytest.raises(BadConfig, match=message):
    call(*words, *more)
  assert not (tmp_path / "out").exists()


ODD = 'a"""\n\U0001f600\\x.py'


def test_the_file_of_a_ladder_is_python_whatever_the_config_is_called():
  size = ladder.Size({"layers": 1, "dim": 8}, Cost(10, 1, 4, 50.0))
  made = ladder.Ladder(
    (ladder.Rung(size, 1e3, 20),), (), "width", 1e-3, 8, 0.1, ""
  )
  names: dict = {}
  exec(ladder.source(made, ODD, [("data.path", ODD)]), names)
  assert names["CONFIG"] == ODD and names["SHARED"] == {"data.path": ODD}
  assert len(names["get_sweep"]().points) == 1


def test_a_ladder_writes_over_nothing_that_was_changed_by_hand(tmp_path):
  out = tmp_path / "sweep.py"
  sweep.check_new(str(out), "a")
  out.write_text("a")
  sweep.check_new(str(out), "a")
  with pytest.raises(BadConfig, match="is there and says something else"):
    sweep.check_new(str(out), "b")


@pytest.mark.slow
def test_points_equal_their_lone_runs_and_a_killed_sweep_goes_on(
  made, tmp_path
):
  """Real training: killed in the middle, twice as many at once, then alone."""
  out, root = tmp_path / "out", Path(__file__).parents[1]
  line = [sys.executable, "-m", "aigc_jax.sweep", f"--sweep={made()}",
          f"--out={out}"]  # fmt: skip
  environ = os.environ | {"XLA_FLAGS": ""}
  first = subprocess.Popen(line, cwd=root, env=environ)
  until = time.monotonic() + 300
  while not list(out.glob("runs/*/result.json")) and time.monotonic() < until:
    time.sleep(0.1)
  first.send_signal(signal.SIGKILL)
  first.wait()
  done = [p.parent.name for p in out.glob("runs/*/result.json")]
  assert 1 <= len(done) < 4
  before = {name: (out / "runs" / name / "metrics.jsonl").stat().st_mtime_ns
            for name in done}  # fmt: skip
  again = subprocess.run([*line, "--parallel=2"], cwd=root, env=environ)
  assert again.returncode == 0
  for name, written in before.items():
    path = out / "runs" / name / "metrics.jsonl"
    assert path.stat().st_mtime_ns == written
  entry = ledger.read_index(out).entries[-1]
  alone = tmp_path / "alone"
  words, folder = ledger.command_of(entry)
  words = [*words[:-1], f"--workdir={alone}"]
  subprocess.run(words, cwd=folder, env=environ, check=True)
  digests = [
    files.read_json(d / "result.json")["digest"] for d in (alone, entry.workdir)
  ]
  assert digests[0] == digests[1]


@pytest.mark.slow
def test_points_that_train_together_are_as_they_are_alone(made, tmp_path):
  """Real training: three points as one program, and each by itself."""
  root, environ = Path(__file__).parents[1], os.environ | {"XLA_FLAGS": ""}
  made()
  config = tmp_path / "config.py"  # with a save in the middle, of all at once
  config.write_text(
    config.read_text().replace("every_steps = None", "every_steps = 3")
  )
  points = (
    'arms(a={"seed": 1}, b={"optim.learning_rate": 3e-3, "optim.b1": 0.8}, '
    'c={"optim.weight_decay": 0.2})'
  )
  outs = {words: tmp_path / name for name, words in
          (("joint", "--together=3"), ("alone", "--together=1"))}  # fmt: skip
  for words, out in outs.items():
    line = [sys.executable, "-m", "aigc_jax.sweep", f"--sweep={made(points)}",
            f"--out={out}", words]  # fmt: skip
    assert subprocess.run(line, cwd=root, env=environ).returncode == 0
  joint, alone = (ledger.read_index(out).entries for out in outs.values())
  together = [ledger.state_of(e).attempts[0]["together"] for e in joint]
  assert together == [3, 3, 3]
  for one, other in zip(joint, alone, strict=True):
    a, b = (rows(e.workdir / "metrics.jsonl") for e in (one, other))
    assert [row["step"] for row in a] == [row["step"] for row in b]
    for x, y in zip(a, b, strict=True):
      assert x.get("data/batch_hash") == y.get("data/batch_hash")
      for key in ("train/loss", "eval/heldout/loss", "optim/learning_rate"):
        if key in y:
          assert x[key] == pytest.approx(y[key], rel=2e-5), (one.name, key)
    assert (one.workdir / "checkpoints" / "6").is_dir()
  # Said of the joint ones as of any run: the same line finds them finished.
  words, folder = ledger.command_of(joint[0])
  again = subprocess.run(
    words, cwd=folder, env=environ, capture_output=True, text=True
  )
  assert again.returncode == 0 and "is finished (6 steps)" in again.stdout
