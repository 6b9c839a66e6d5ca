"""The guide's own text: a family, an objective and a task from outside."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import data, models, objectives, run, tree
from aigc_jax.data import tasks
from aigc_jax.errors import BadConfig
from aigc_jax.run import extension
from aigc_jax.trainer import faults, provenance
from tests import commands
from tests.data.texts import prose

GUIDE = commands.ROOT / "aigc_jax" / "models" / "README.md"
STEPS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Where trigram.py lies, as the guide prints it, and a text."""
  path = tmp_path_factory.mktemp("outside")
  (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
  (path / "trigram.py").write_text(code)
  (path / "text.txt").write_text(prose(0, 600))
  return path


@pytest.fixture
def extended(folder, monkeypatch):
  """This process with the file's kinds, without them afterwards."""
  kept = {name: dict(table) for name, table in extension.TABLES.items()}
  monkeypatch.setattr(provenance, "EXTENSIONS", {})
  run.extend(str(folder / "trigram.py"))
  yield
  for name, table in kept.items():
    extension.TABLES[name].clear()
    extension.TABLES[name].update(table)


def line(folder, workdir, *more) -> list[str]:
  return [
    f"--with={folder}/trigram.py", "--config=configs/text_file.py",
    f"--config.data.path={folder}/text.txt", f"--config.data.root={folder}/d",
    "--config.data.task.kind=backwards", "--config.data.tokenizer=bytes",
    "--config.data.batch=8", "--config.data.length=16",
    "--config.model=dict(kind='trigram', vocab=257, dim=32)",
    "--config.objective=dict(kind='clipped', most=20.0)",
    "--config.optim.average=0.9", f"--config.steps={STEPS}",
    "--config.optim.warmup_steps=2", "--config.log.every_steps=1",
    "--config.checkpoint.every_steps=2", "--config.data.validation=0.1",
    "--config.evaluate=dict(heldout=dict(kind='loss', every_steps=None, "
    "batches=2, data=dict(split='validation'), weights='average'))",
    f"--workdir={workdir}", *more,
  ]  # fmt: skip


def leaf_of(workdir, step: int, name: str) -> list[int]:
  """The digest of a leaf of a saved state."""
  saved = workdir / "checkpoints" / str(step) / "manifest.json"
  leaves = json.loads(saved.read_text())["leaves"]
  return next(leaf["digest"] for leaf in leaves if leaf["name"] == name)


def digest(workdir) -> list[int]:
  return json.loads((workdir / "result.json").read_text())["digest"]


@pytest.mark.slow
def test_a_family_from_outside_trains_resumes_and_is_measured(folder, tmp_path):
  whole, parted = tmp_path / "whole", tmp_path / "parted"
  done = commands.run("aigc_jax.train", *line(folder, whole))
  assert done.returncode == 0, done.stderr
  parted.mkdir()
  (parted / faults.MARK).touch()
  plan = json.dumps({"die_at": [{"site": "step", "step": 3}]})
  done = commands.run(
    "aigc_jax.train", *line(folder, parted), environ={faults.VARIABLE: plan}
  )
  assert done.returncode != 0
  done = commands.run("aigc_jax.train", *line(folder, parted))
  assert done.returncode == 0, done.stderr
  assert digest(whole) == digest(parted)
  manifest = json.loads(
    (whole / "checkpoints" / str(STEPS) / "manifest.json").read_text()
  )
  names = {leaf["name"] for leaf in manifest["leaves"]}
  assert {"stats/mean", "average/mix/w", "params/mix/w"} <= names
  # Another run begins with its stats as with its parameters.
  later = tmp_path / "later"
  done = commands.run(
    "aigc_jax.train", *line(folder, later), f"--config.init_from={whole}",
    "--config.steps=0",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  for name in ("stats/mean", "params/mix/w"):
    assert leaf_of(later, 0, name) == leaf_of(whole, STEPS, name)
  done = commands.run(
    "aigc_jax.evaluate", f"--with={folder}/trigram.py", f"--workdir={whole}",
    "--weights=average",
  )  # fmt: skip
  assert done.returncode == 0 and "loss" in done.stdout, done.stderr
  lone = commands.run("aigc_jax.evaluate", f"--workdir={whole}")
  assert lone.returncode == 78 and "'trigram' is unknown" in lone.stderr


CONFIG = dict(
  model=dict(kind="trigram", vocab=257, dim=32),
  objective=dict(kind="clipped", most=20.0, chunk=None),
)


def built(folder, **changes) -> run.Run:
  from aigc_jax.presets import skeleton

  config = run.settings.plain_of(skeleton()) | CONFIG
  config["data"] |= dict(
    path=f"{folder}/text.txt", tokenizer="bytes", batch=8, length=16,
    task=dict(kind="backwards"),
  )  # fmt: skip
  config["steps"] = 5
  config["mesh"] |= dict(data=2, fsdp=1, tensor=4)
  config["optim"] |= dict(warmup_steps=0, average=0.5)
  return run.build(run.read(config | changes))


def batch_of(r: run.Run, seed: int = 0) -> dict:
  ids = np.random.default_rng(seed).integers(0, 257, (8, 17), dtype=np.int32)
  found = {"tokens": ids[:, :-1], "targets": ids[:, 1:]}
  return found | {"weights": np.ones((8, 16), np.float32)}


def stepper(r: run.Run):
  """(batch, state=a fresh one) -> the state after a step."""
  step = jax.jit(r.step)

  def stepped(batch: dict, state=None):
    with jax.set_mesh(r.mesh):
      return step(r.init() if state is None else state, batch)[0]

  return stepped


def stepped(r: run.Run, batch: dict):
  return stepper(r)(batch)


@pytest.mark.slow
@pytest.mark.usefixtures("extended")
def test_any_number_of_microbatches_moves_the_stats_alike(folder):
  whole = stepped(built(folder), batch_of(None))
  assert np.abs(whole.stats["mean"]).max() > 0
  for parts in (2, 4):
    state = stepped(
      built(folder, compute=dict(microbatches=parts)), batch_of(None)
    )
    np.testing.assert_allclose(
      state.stats["mean"], whole.stats["mean"], rtol=1e-5, atol=1e-7
    )


@pytest.mark.slow
@pytest.mark.usefixtures("extended")
def test_a_step_without_an_update_moves_nothing(folder):
  r = built(folder)
  step = stepper(r)
  before = step(batch_of(r))
  bad = batch_of(r, 1)
  bad["weights"][0, 0] = np.nan
  after = step(bad, before)
  assert int(after.skipped) == int(before.skipped) + 1
  for name in ("params", "opt_state", "stats", "average", "average_stats"):
    jax.tree.map(
      np.testing.assert_array_equal,
      getattr(after, name), getattr(before, name),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("extended")
def test_the_average_follows_the_parameters(folder):
  r = built(folder)
  start = r.init()
  state = stepped(r, batch_of(r))
  jax.tree.map(
    lambda a, p, q: np.testing.assert_allclose(a, (p + q) / 2, rtol=1e-5),
    state.average, start.params, state.params,
  )  # fmt: skip


@pytest.mark.usefixtures("extended")
def test_what_is_frozen_has_no_moments_and_costs_no_gradient(folder):
  r, free = built(folder, frozen={"mix": None}), built(folder)
  assert set(r.state.frozen) == {"mix"} and "mix" not in r.state.params
  moments = tree.count(r.state.opt_state)
  assert moments < tree.count(free.state.opt_state)
  # The product of the features' gradient remains, that of the weights goes.
  assert r.each.flops < free.each.flops
  state = stepped(r, batch_of(r))
  same = free.init().params["mix"]
  jax.tree.map(np.testing.assert_array_equal, state.frozen["mix"], same)
  loss = r.score(state.params, batch_of(r), None, fixed=state.fixed)["loss"]
  assert jnp.isfinite(loss.value())
  with pytest.raises(BadConfig, match="no part 'mixx'; did you mean 'mix'"):
    built(folder, frozen={"mixx": None})


@pytest.mark.usefixtures("extended")
def test_a_name_that_is_there_keeps_its_meaning(tmp_path):
  path = tmp_path / "own.py"
  path.write_text("MODELS = {'decoder': print}\n")
  with pytest.raises(BadConfig, match="is there already"):
    run.extend(str(path))
  path.write_text("x = 1\n")
  with pytest.raises(BadConfig, match="defines none of MODELS"):
    run.extend(str(path))
  path.write_text("MODELS = {\n")
  with pytest.raises(BadConfig, match=r"--with=.*own.py, line 1"):
    run.extend(str(path))


def test_the_tables_are_those_that_configs_choose_from():
  assert extension.TABLES["MODELS"] is models.MODELS
  assert extension.TABLES["OBJECTIVES"] is objectives.OBJECTIVES
  assert extension.TABLES["TASKS"] is tasks.TASKS
  assert extension.TABLES["KINDS"] is data.KINDS
