"""Disks that are full, read-only or failing: nothing is lost in silence."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from aigc_jax.errors import StorageFailure
from tests.faults.harness import (
  assert_twins,
  last_step,
  result,
  saved,
  slow,
)


@pytest.fixture
def disk(tmp_path):
  """disk(options) -> the folder of a tmpfs in a mount namespace of its own."""
  keepers = []

  def mount(options: str) -> Path:
    if not shutil.which("unshare"):
      pytest.skip("NOT TESTED: a full disk needs unshare (util-linux)")
    point = tmp_path / "disk"
    point.mkdir()
    keeper = subprocess.Popen(
      [
        "unshare", "-m" if os.geteuid() == 0 else "-rm", "sh", "-c",
        f'mount -t tmpfs -o {options} none "$0" && echo ready && exec cat',
        str(point),
      ],
      stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    keepers.append(keeper)
    if keeper.stdout.readline() != b"ready\n":
      pytest.skip("NOT TESTED: a full disk needs a mount namespace")
    return Path(f"/proc/{keeper.pid}/root") / point.relative_to("/")

  yield mount
  for keeper in keepers:
    keeper.kill()
    keeper.communicate()


def fill(folder: Path) -> Path:
  """Takes all the room that is left, with one file."""
  filler = folder / "filler"
  with open(filler, "wb", buffering=0) as file:
    for size in (4096, 1):
      try:
        while True:
          file.write(b"\0" * size)
      except OSError:
        pass
  return filler


@pytest.mark.slow
def test_a_full_disk(start, disk, tmp_path, twin, record):
  """Full for a while, then full for good, then with room again."""
  folder, log = disk("size=2m"), tmp_path / "log"
  workdir = folder / "run"
  run = start(workdir, plan=slow(0.2), log=log)
  run.row(3)
  filler = fill(folder)
  run.says("checkpoint 5:")
  filler.unlink()
  freed = run.event("save_failed") and run.seconds
  assert run.event("save")["step"] == 10
  record(
    "disk full while saving", "tmpfs filled, freed after the first failure",
    "save failed and told, the next one good, no row lost, equals the twin",
    run.seconds - freed,
  )  # fmt: skip

  filler = fill(folder)
  run.done(StorageFailure.code)
  assert "4 saves in a row failed" in run.err
  assert saved(workdir) == [10]
  filler.unlink()
  stood = last_step(workdir)
  again = start(workdir, log=log)
  again.row(stood)
  seconds = again.seconds
  again.done()
  assert_twins(workdir, twin)
  record(
    "disk full and staying so", "tmpfs filled after the first save",
    "trains on to the end, then status 74; with room again equals the twin",
    seconds,
  )  # fmt: skip


@pytest.mark.slow
def test_a_directory_that_cannot_be_written(start, disk, tmp_path, record):
  run = start(disk("ro") / "run", log=tmp_path / "log")
  run.done(StorageFailure.code)
  assert "cannot be written" in run.err
  record(
    "read-only work directory", "tmpfs mounted read-only",
    "status 74 before anything is compiled", run.ended - run.began,
  )  # fmt: skip


@pytest.mark.slow
def test_metrics_that_cannot_be_written(start, workdir, twin, record):
  plan = {"raise_at": [{"site": "journal/append", "n": 0, "errno": 28}]}
  run = start(workdir, plan=plan).done()
  assert "metrics.jsonl cannot be written" in run.err
  assert result(workdir)["digest"] == result(twin)["digest"]
  record(
    "disk full for metrics only", "every row is refused (ENOSPC)",
    "warned, trained to the end, final state equals the twin's", None,
  )  # fmt: skip
