"""The texts, the compilation cache, the twin, and what becomes of all runs.

AIGC_JAX_RECORD=FILE.jsonl records the outcome of every scenario.
"""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from aigc_jax.trainer import faults
from tests.faults import harness


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
  """A folder with the two sources."""
  folder = tmp_path_factory.mktemp("text")
  write_texts(folder)
  return folder


def write_texts(folder: Path) -> None:
  draw = random.Random(5)
  for name, letters in (("plain", "etaoinshrdlu"), ("rhymes", "aeioumn")):
    words = ["".join(draw.choices(letters, k=4)) for _ in range(200)]
    lines = (" ".join(draw.choices(words, k=8)) for _ in range(400))
    (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def compiled(tmp_path_factory) -> Path:
  """The compilation cache of all the runs."""
  return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="session")
def all_runs():
  """Whatever was started; none of it outlives the tests."""
  started: list[harness.Run] = []
  yield started
  for run in started:
    run.end()


@pytest.fixture(scope="session")
def start(text, compiled, all_runs):
  """start(workdir, *flags, ...) -> Run."""

  def begin(workdir, *flags, **changes) -> harness.Run:
    settings = dict(text=text, compiled=compiled) | changes
    run = harness.Run(workdir, *flags, **settings)
    all_runs.append(run)
    return run

  return begin


@pytest.fixture(autouse=True)
def end_of_test(all_runs):
  """No process outlives its test."""
  before = len(all_runs)
  yield
  for run in all_runs[before:]:
    run.end()


MANY = ("--config.checkpoint.every_steps=2", "--config.checkpoint.keep=30")
SECRETS = {
  "HF_TOKEN": "hf_abcdefghijklmnopqrstuvwxyz",
  "JAX_SECRET_TOKEN": "abc123secret",
}


@pytest.fixture(scope="session")
def twin(tmp_path_factory, start) -> Path:
  """The run that nothing ever happened to."""
  workdir = tmp_path_factory.mktemp("twin") / "run"
  start(workdir, environ=SECRETS, fresh=True).done()
  return workdir


@pytest.fixture(scope="session")
def midway(tmp_path_factory, start, twin) -> Path:
  """A run killed at step 14, a checkpoint at every second; to be copied."""
  workdir = tmp_path_factory.mktemp("midway") / "run"
  plan = {"die_at": [{"site": "save/begin", "step": 14}]}
  start(workdir, *MANY, plan=plan).done(-signal.SIGKILL)
  (workdir / faults.MARK).unlink()
  assert harness.saved(workdir) == [2, 4, 6, 8, 10, 12]
  return workdir


@pytest.fixture
def workdir(tmp_path) -> Path:
  return tmp_path / "run"


@pytest.fixture
def copy(midway, workdir) -> Path:
  """A work directory of one's own that stands midway."""
  shutil.copytree(midway, workdir)
  return workdir


@pytest.fixture
def record(request):
  """record(fault, how, outcome, seconds): one line for the table."""
  path = os.environ.get("AIGC_JAX_RECORD")
  found: list[dict] = []

  def note(fault: str, how: str, outcome: str, seconds: float | None = None):
    rounded = None if seconds is None else round(seconds, 2)
    found.append(
      dict(
        test=request.node.name, fault=fault, how=how, outcome=outcome,
        seconds_to_recover=rounded,
      )
    )  # fmt: skip

  yield note
  if path and found:
    with open(path, "a") as file:
      for row in found:
        row["time"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        file.write(json.dumps(row) + "\n")
