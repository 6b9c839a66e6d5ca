"""A branch goes on from another run, and is the run its config describes."""

import json

import jax
import pytest

from aigc_jax import run, sharding
from aigc_jax.errors import BadConfig
from aigc_jax.run import branch
from aigc_jax.timing import switches
from configs import bench
from tests import commands

CONFIG = "configs/text_file.py"
SMALL = (
  "--config.data.batch=2", "--config.data.length=16", "--config.model.dim=16",
  "--config.model.heads=2", "--config.model.layers=1",
  "--config.model.mlp_dim=24", "--config.objective.chunk=None",
  "--config.log.every_steps=1", "--config.checkpoint.every_steps=4",
  "--config.checkpoint.keep=9", "--config.data.validation=0.2",
  "--config.optim.warmup_steps=2", "--config.model.dropout=0.1",
)  # fmt: skip
STABLE = ("--config.optim.schedule=constant", "--config.steps=8")
DECAY = (
  "--config.optim.schedule=wsd", "--config.optim.decay_steps=3",
  "--config.steps=8",
)  # fmt: skip


@pytest.fixture(scope="module")
def train(tmp_path_factory):
  """train(name, *flags): the finished command; its work directory is name."""
  folder = tmp_path_factory.mktemp("branches")
  text = "".join(f"line {i} of a text\n" for i in range(400))
  (folder / "text.txt").write_text(text)

  def run(name, *flags):
    return commands.run(
      "aigc_jax.train", f"--config={CONFIG}", f"--workdir={folder / name}",
      f"--config.data.path={folder}/text.txt",
      f"--config.data.root={folder}/stores", *SMALL, *flags,
      environ={"XLA_FLAGS": "--xla_backend_optimization_level=0"},
    )  # fmt: skip

  run.folder = folder
  done = run("trunk", *STABLE)
  assert done.returncode == 0, done.stderr
  return run


def told(folder):
  """What the rows say of learning, and the digest at the end."""
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  rows = [
    {k: x for k, x in json.loads(line).items() if "second" not in k}
    for line in lines
  ]
  return rows, json.loads((folder / "result.json").read_text())["digest"]


def learnt(folder):
  rows, digest = told(folder)
  losses = {r["step"]: r["train/loss"] for r in rows if "train/loss" in r}
  rates = {r["step"]: r.get("optim/lr") for r in rows}
  batches = {r["step"]: r.get("batch_hash") for r in rows}
  return losses, rates, batches, digest


def from_trunk(step):
  return ("--config.branch_from={}/trunk", f"--config.branch_step={step}")


def branched(train, name, step, *flags):
  where = f"--config.branch_from={train.folder / 'trunk'}"
  return train(name, where, f"--config.branch_step={step}", *flags)


def test_rows_of_later_steps_stay_with_the_trunk(tmp_path):
  path = tmp_path / "metrics.jsonl"
  kept = '{"step": 3}\n{"event": "x"}\n'
  path.write_text(kept + '{"step": 5}\n{"step": 4, "half')
  assert "".join(branch._lines_until(path, 4)) == kept


def test_a_step_without_a_trunk_is_refused(tmp_path):
  config = {"branch_from": None, "branch_step": 4}
  with pytest.raises(BadConfig, match="branch_step=4 without branch_from=DIR"):
    branch.check(tmp_path, config)


RISING = {"optim.schedule": "constant", "optim.warmup_steps": 4, "steps": 9}


@pytest.mark.parametrize(
  "step, change, words",
  [
    (4, {}, "is in the warm-up of"),
    (0, {}, "is in the warm-up of"),
    (5, {}, None),
    (8, {"optim.schedule": "wsd", "optim.decay_steps": 1}, None),
    (8, {"optim.schedule": "wsd", "optim.decay_steps": 3}, "at step 7 the"),
    (5, {"optim.learning_rate": 0.5}, "at step 0 the learning rate"),
  ],
)
def test_rates_of_before_the_branch_are_those_of_the_trunk(
  step, change, words, tmp_path
):
  trunk = switches.changed(run.read(bench.get_config("tiny")), RISING)
  (tmp_path / "config.json").write_text(json.dumps(trunk))
  config = switches.changed(trunk, change)
  mesh = sharding.mesh_of(jax.devices()[0])

  def check():
    branch.check_schedule(config, mesh, tmp_path, step)

  if words is None:
    return check()
  with pytest.raises(BadConfig, match=words):
    check()


@pytest.mark.slow
def test_a_branch_is_the_run_its_config_would_have_been(train):
  done = branched(train, "decay", 4, *DECAY)
  assert done.returncode == 0, done.stderr
  assert "continuing from step 4" in done.stdout
  done = train("whole", *DECAY)
  assert done.returncode == 0, done.stderr
  found, whole = (learnt(train.folder / x) for x in ("decay", "whole"))
  assert found == whole
  trunk = learnt(train.folder / "trunk")
  assert trunk[0][4] == found[0][4] and trunk[-1] != found[-1]


@pytest.mark.slow
def test_a_branch_of_an_equal_config_is_the_trunk(train):
  done = branched(train, "same", 4, *STABLE)
  assert done.returncode == 0, done.stderr
  found, trunk = (learnt(train.folder / x) for x in ("same", "trunk"))
  assert found == trunk


@pytest.mark.slow
def test_a_copy_that_was_not_finished_is_made_anew(train):
  folder = train.folder / "half"
  (folder / "checkpoints" / "4").mkdir(parents=True)
  (folder / "metrics.jsonl").write_text('{"step": 3}\n')
  mark = {"from": str(train.folder / "trunk"), "step": 4}
  (folder / "branch.json").write_text(json.dumps(mark))
  done = branched(train, "half", 4, *STABLE)
  assert done.returncode == 0, done.stderr
  assert learnt(folder) == learnt(train.folder / "trunk")


@pytest.mark.slow
def test_what_cannot_be_branched_from_is_refused_by_name(train):
  cosine = ("--config.optim.schedule=cosine", "--config.steps=8")
  cases = [
    (("no", 4, *cosine), "at step 3 the learning rate of"),
    (("no", 5, *STABLE), "no whole checkpoint of step 5"),
    (("no", 4, *STABLE, "--config.model.dim=32"), "does not fit the config"),
    (("no", 4, *STABLE, "--config.optim.b2=0.5"), "another config"),
  ]
  for (name, step, *flags), words in cases:
    done = branched(train, name, step, *flags)
    assert done.returncode == 78 and words in done.stderr, done.stderr
  assert not (train.folder / "no" / "result.json").exists()
  done = train("trunk", *STABLE, f"--config.branch_from={train.folder}/other")
  assert done.returncode == 78 and "no branch" in done.stderr, done.stderr
