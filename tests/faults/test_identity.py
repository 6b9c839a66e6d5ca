"""A run goes on from its own checkpoints, as what it was, or says so."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from aigc_jax.errors import BadConfig, StorageFailure
from aigc_jax.trainer import identity
from tests import commands
from tests.faults.conftest import MANY
from tests.faults.harness import (
  ROOT,
  XLA,
  assert_twins,
  events,
  forge,
  rows,
  saved,
)


def about(workdir) -> dict:
  return json.loads((workdir / "run.json").read_text())


@pytest.fixture(scope="session")
def stranger(tmp_path_factory, start):
  """Another run of the same config, its checkpoints alike in all but bits."""
  workdir = tmp_path_factory.mktemp("stranger") / "run"
  flags = ("--config.seed=4", "--config.steps=14")
  start(workdir, *MANY, *flags).done()
  return workdir


@pytest.mark.slow
def test_every_checkpoint_and_record_has_the_identity_of_the_run(midway, twin):
  ids = {about(x)["run"]["id"] for x in (midway, twin)}
  assert len(ids) == 2
  for step in saved(midway):
    path = midway / "checkpoints" / str(step) / "manifest.json"
    assert json.loads(path.read_text())["run"] == about(midway)["run"]["id"]


@pytest.mark.slow
def test_a_checkpoint_of_another_run_is_not_gone_on_from(
  start, copy, stranger, record
):
  folder = copy / "checkpoints"
  shutil.copytree(stranger / "checkpoints" / "14", folder / "14")
  before = rows(copy)
  run = start(copy).done(BadConfig.code)
  assert f"{folder}/14 is a checkpoint of another run" in run.err
  for name in (about(copy)["run"]["id"], about(stranger)["run"]["id"]):
    assert name in run.err
  assert "--config.init_from=DIR" in run.err and "Traceback" not in run.err
  assert saved(copy)[-1] == 14 and rows(copy) == before
  record(
    "a checkpoint of another run", "copied into the work directory",
    "status 78, names both runs and the ways out, nothing changed",
    None,
  )  # fmt: skip
  start(copy, "--allow_change=run").done()
  (change,) = [e for e in events(copy, "change") if e["key"] == "run"]
  assert change["step"] == 14
  assert change["old"] == about(stranger)["run"]["id"]
  last = json.loads((folder / "20" / "manifest.json").read_text())
  assert last["run"] == about(copy)["run"]["id"]


@pytest.mark.slow
def test_checkpoints_without_a_config_are_not_gone_on_from(start, copy, record):
  (copy / "config.json").unlink()
  run = start(copy).done(BadConfig.code)
  assert "no config.json that says of what" in run.err
  assert "--print_config >" in run.err and saved(copy)[-1] == 12
  record(
    "config.json is gone", "deleted beside the checkpoints",
    "status 78, names the way out", None,
  )  # fmt: skip


@pytest.mark.slow
def test_a_run_whose_checkpoints_are_gone_never_begins_again(
  start, copy, twin, record
):
  kept = shutil.move(copy / "checkpoints", copy.parent / "kept")
  before = rows(copy)
  for _ in range(2):
    run = start(copy).done(StorageFailure.code)
    assert "events.jsonl tells of one of step" in run.err
  assert rows(copy) == before and not saved(copy)
  record(
    "checkpoints/ is gone", "moved away under a run that has rows",
    "status 74 every time, never a silent restart; put back, it equals the "
    "twin", None,
  )  # fmt: skip
  shutil.rmtree(copy / "checkpoints", ignore_errors=True)
  shutil.move(kept, copy / "checkpoints")
  start(copy).done()
  assert_twins(copy, twin)


@pytest.mark.slow
def test_a_finished_run_whose_files_are_gone_is_not_finished(
  start, twin, workdir, record
):
  shutil.copytree(twin, workdir)
  assert "is finished" in start(workdir).done().out
  shutil.rmtree(workdir / "checkpoints" / "20")
  run = start(workdir).done()
  assert "the checkpoint of step 20 is gone" in run.err
  assert events(workdir, "restart")[-1]["step"] == 15
  assert_twins(workdir, twin)
  shutil.rmtree(workdir / "checkpoints")
  run = start(workdir).done(StorageFailure.code)
  assert "result.json says that the run was finished" in run.err
  assert "is finished" not in run.out
  record(
    "checkpoints of a finished run are gone", "the last, then all deleted",
    "goes on from the one before and equals the twin; then status 74",
    None,
  )  # fmt: skip


def settle(workdir) -> None:
  """What the fixture copied becomes a run that began where it lies."""
  content = about(workdir)
  path, inode = identity.place_of(workdir)
  content["run"]["place"] = {"path": path, "inode": inode}
  (workdir / "run.json").write_text(json.dumps(content))


@pytest.mark.slow
def test_a_copied_work_directory_and_its_original_become_two_runs(
  start, copy, twin, record
):
  other = copy.with_name("copied")
  settle(copy)
  shutil.copytree(copy, other)
  start(copy).done()
  run = start(other).done()
  assert f"a copy of {copy}: from step 12 on they are two runs" in run.out
  assert events(other, "copied")[0]["origin"] == str(copy)
  for workdir in (copy, other):
    assert_twins(workdir, twin)
  shutil.rmtree(other / "checkpoints" / "20")
  shutil.copytree(copy / "checkpoints" / "20", other / "checkpoints" / "20")
  found = use("generate", other, "--prompt=a", "--max_tokens=2")
  assert found.returncode == BadConfig.code, found.stderr
  assert "20 was saved by another copy of this run" in found.stderr
  older = use("generate", other, "--prompt=a", "--max_tokens=2", "--step=12")
  assert older.returncode == 0, older.stderr
  record(
    "a copied work directory", "cp -r, both go on, then a checkpoint of the "
    "one is put into the other", "told and journalled; each equals the twin; "
    "the foreign one: status 78 by name", None,
  )  # fmt: skip


@pytest.mark.slow
def test_a_moved_work_directory_goes_on_without_a_word(start, copy, twin):
  settle(copy)
  moved = copy.rename(copy.with_name("moved"))
  run = start(moved).done()
  assert "copy" not in run.out + run.err and not events(moved, "copied")
  assert_twins(moved, twin)


@pytest.mark.slow
def test_rows_that_are_gone_are_told_and_journalled(start, copy, twin, record):
  path = copy / "metrics.jsonl"
  lines = path.read_text().splitlines(keepends=True)
  gone = next(i for i, x in enumerate(lines) if json.loads(x)["step"] == 7)
  path.write_text("".join(lines[:gone] + lines[gone + 1 :]))
  run = start(copy).done()
  (told,) = events(copy, "rows_gone")
  assert "of training, step 7" in told["reason"]
  assert "metrics.jsonl is not what it was when step 12" in run.err
  assert len(rows(copy)) == len(rows(twin)) - 1
  path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
  again = start(copy).done()
  assert "is finished" in again.out and "metrics.jsonl is not" in again.err
  record(
    "metrics.jsonl damaged", "a row is deleted from its middle",
    "told by its step and journalled, goes on, also where it is finished",
    None,
  )  # fmt: skip


def strip(workdir) -> None:
  """Makes a work directory as programs before identities left it."""
  content = about(workdir)
  del content["run"]
  (workdir / "run.json").write_text(json.dumps(content))

  def older(content):
    del content["run"]
    for name in ("model", "numerics", "hlo_sha256"):
      content["meta"].pop(name, None)

  for step in saved(workdir):
    forge(workdir / "checkpoints" / str(step), older)


@pytest.mark.slow
def test_a_run_from_before_identities_goes_on_and_gets_one(
  start, copy, stranger, twin, record
):
  strip(copy)
  run = start(copy).done()
  assert "is from before runs had an identity" in run.err
  (told,) = events(copy, "identity")
  assert about(copy)["run"]["id"] == told["run"]
  assert about(copy)["run"]["since"] == 12
  assert_twins(copy, twin)
  strip_one = copy / "checkpoints" / "99"
  shutil.copytree(stranger / "checkpoints" / "14", strip_one)
  forge(strip_one, lambda content: content.update(step=99))
  forge(strip_one, lambda content: content.pop("run"))
  again = start(copy, "--rewind=99").done(BadConfig.code)
  assert "no whole checkpoint of step 99 of this run" in again.err
  record(
    "a run of a program without identities", "none in run.json, none in the "
    "manifests", "told, gets one, goes on, equals the twin", None,
  )  # fmt: skip


def use(command: str, workdir, *flags) -> subprocess.CompletedProcess:
  """A command that reads a run."""
  environ = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
  line = (f"aigc_jax.{command}", f"--workdir={workdir}", *flags)
  return commands.run(*line, environ=environ)


def edit(workdir, key: str, value) -> None:
  path = workdir / "config.json"
  config = json.loads(path.read_text())
  config["model"][key] = value
  path.write_text(json.dumps(config))


@pytest.mark.slow
def test_an_edited_config_is_not_the_model_of_the_checkpoints(
  start, copy, record
):
  key, value = "rotary_base", 5e5
  edit(copy, key, value)
  found = use("generate", copy, "--prompt=a", "--max_tokens=2")
  assert found.returncode == BadConfig.code, found.stderr
  assert "config.json is not of the model that step 12" in found.stderr
  assert "model.rotary_base=500000.0, there it is 10000.0" in found.stderr
  # A line that agrees with the edited config is no way around it.
  run = start(copy, f"--config.model.{key}={value}").done(BadConfig.code)
  assert "is of another model than the config" in run.err
  assert "--allow_change=model.rotary_base" in run.err
  record(
    "config.json edited", "another rotary base",
    "status 78 from train and generate, names the key", None,
  )  # fmt: skip
  allow = f"--allow_change=model.{key}"
  plan = {"die_at": [{"site": "save/begin", "step": 15}]}
  start(copy, f"--config.model.{key}={value}", allow, plan=plan).done(-9)
  # The same line goes on, though no checkpoint is of the new model yet.
  start(copy, f"--config.model.{key}={value}", allow).done()
  assert use("generate", copy, "--prompt=a", "--max_tokens=2").returncode == 0


NUMBERS = {
  "JAX_DEFAULT_PRNG_IMPL": ("rbg", "numerics.jax_default_prng_impl"),
  "JAX_THREEFRY_PARTITIONABLE": (
    "0", "numerics.jax_threefry_partitionable",
  ),
  "XLA_FLAGS": (
    f"{XLA} --xla_cpu_enable_fast_math=true",
    "numerics.XLA_FLAGS.xla_cpu_enable_fast_math",
  ),
}  # fmt: skip


@pytest.mark.slow
def test_what_changes_bits_is_told_and_journalled(start, copy, record):
  environ = {name: value for name, (value, _) in NUMBERS.items()}
  # What JAX reads while it is imported is read by a fresh process alone.
  run = start(copy, environ=environ, fresh=True).done()
  changed = [e["key"] for e in events(copy, "change")]
  for _, key in NUMBERS.values():
    assert any(name.startswith(key) for name in changed), changed
    assert key in run.err
  assert "not the program of step 12 any more" in run.err
  assert "hlo_sha256" in changed
  record(
    "other environment on resume",
    "JAX_DEFAULT_PRNG_IMPL, JAX_THREEFRY_PARTITIONABLE, XLA_FLAGS",
    "goes on; each, and the changed program, said and journalled", None,
  )  # fmt: skip


@pytest.mark.slow
def test_the_same_line_is_the_same_program(start, copy):
  run = start(copy).done()
  changed = {event["key"] for event in events(copy, "change")}
  assert changed == {"checkpoint.every_steps", "checkpoint.keep"}  # see MANY
  assert "not the program" not in run.err


@pytest.mark.slow
def test_64_bits_for_another_program_change_no_bit_of_a_run(
  start, workdir, twin, record
):
  run = start(workdir, environ={"JAX_ENABLE_X64": "1"}, fresh=True).done()
  assert "goes on as with JAX_ENABLE_X64=False" in run.err
  assert_twins(workdir, twin)
  record(
    "JAX_ENABLE_X64=1 in the environment", "set for another program",
    "told, goes on in 32 bits, equals the twin", None,
  )  # fmt: skip
