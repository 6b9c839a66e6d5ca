"""Checkpoints that are not what was saved are set aside, never used."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest

from aigc_jax.errors import BadConfig, StorageFailure
from aigc_jax.trainer import manifest
from tests.faults.conftest import MANY
from tests.faults.harness import (
  assert_twins,
  events,
  forge,
  last_step,
  rows,
  saved,
)


def data_file(step: Path) -> Path:
  """The largest file of a checkpoint: the numbers themselves."""
  return max(step.rglob("arrays/**/*"), key=lambda p: p.stat().st_size)


def flip(path: Path, bit: int) -> None:
  """Flips one bit of a file."""
  content = bytearray(path.read_bytes())
  content[bit // 8] ^= 1 << bit % 8
  path.write_bytes(content)


def set_aside(workdir: Path) -> set[int]:
  found = (workdir / "checkpoints").glob("*.corrupt-*")
  return {int(path.name.partition(".")[0]) for path in found}


def recovered(start, workdir, twin) -> float:
  """Runs it to its end; seconds until it stood again where it was."""
  stood = last_step(workdir)
  run = start(workdir)
  run.row(stood)
  seconds = run.seconds
  run.done()
  assert_twins(workdir, twin)
  return seconds


@pytest.mark.slow
def test_damaged_checkpoints_and_rubbish(start, copy, twin, record):
  folder = copy / "checkpoints"
  os.truncate(data_file(folder / "12"), 1000)
  data_file(folder / "10").unlink()
  damaged = data_file(folder / "8")
  flip(damaged, random.randrange(8 * damaged.stat().st_size))
  (folder / "6" / manifest.NAME).write_text("{")
  (folder / "99").mkdir()  # empty
  (folder / "42").mkdir()
  (folder / "42" / "junk").write_text("junk")
  (folder / "50").write_text("no folder")
  shutil.copytree(folder / "2", folder / "16.saving")
  (folder / "18.orbax-checkpoint-tmp-0").mkdir()
  canary = evil_code(copy)

  seconds = recovered(start, copy, twin)
  told = {row["step"] for row in events(copy, "corrupt")}
  assert told == {6, 10, 12, 42} | ({8} & told)
  assert set_aside(copy) == told
  kept = {path.name for path in folder.iterdir()}
  assert not {"16.saving", "18.orbax-checkpoint-tmp-0"} & kept
  assert not canary.exists()
  record(
    "newest checkpoint truncated, next without a file, next with a flipped "
    "bit, next with a broken manifest; rubbish and leftovers around",
    "files of a killed run edited",
    "each set aside and told, leftovers removed, equals the twin", seconds,
  )  # fmt: skip
  record(
    "Python files planted in the work directory",
    "config.py, sitecustomize.py, jax.py, numpy.py beside the checkpoints",
    "never imported, equals the twin", seconds,
  )  # fmt: skip


def evil_code(workdir: Path) -> Path:
  """Plants Python files that would write a canary; the canary."""
  canary = workdir.with_name("canary")
  for name in ("config", "sitecustomize", "jax", "numpy"):
    code = f"open({str(canary)!r}, 'w').write({name!r})\n"
    (workdir / f"{name}.py").write_text(code)
  return canary


@pytest.mark.slow
def test_no_valid_checkpoint_is_no_fresh_start(start, copy, record):
  folder = copy / "checkpoints"
  for step in saved(copy):
    if step % 4:
      (folder / str(step) / manifest.NAME).unlink()
    else:
      os.truncate(data_file(folder / str(step)), 0)
  before = rows(copy)
  first = start(copy).done(StorageFailure.code)
  assert "no checkpoint is valid" in first.err
  start(copy).done(StorageFailure.code)
  assert rows(copy) == before
  assert saved(copy) == []
  assert len(set_aside(copy)) == 6
  record(
    "no valid checkpoint left", "all of them damaged",
    "status 74 every time, all set aside, never a silent restart", None,
  )  # fmt: skip


@pytest.mark.slow
def test_flipped_bits(start, tmp_path, twin, record):
  """Twenty random places; each flip is found, or has no effect at all."""
  base = tmp_path / "base"
  plan = {"die_at": [{"site": "evaluate", "step": 20}]}
  one = "--config.checkpoint.every_steps=1"
  start(base, one, MANY[1], plan=plan).done(-9)
  (base / "FAULTS_ALLOWED").unlink()
  draw, found, harmless = random.Random(0), 0, 0
  while found + harmless < 20:
    workdir = tmp_path / f"{found + harmless}"
    shutil.copytree(base, workdir)
    folder = workdir / "checkpoints"
    flipped = {}
    for step in saved(workdir)[1:]:
      files = [p for p in (folder / str(step)).rglob("*") if p.is_file()]
      sizes = [p.stat().st_size for p in files]
      (path,) = draw.choices(files, sizes)
      flipped[step] = path.relative_to(folder)
      flip(path, draw.randrange(8 * path.stat().st_size))
    recovered(start, workdir, twin)
    told = {row["step"] for row in events(workdir, "corrupt")}
    found += len(told)
    # The one it went on from has a flip without effect: it equals the twin.
    used = events(workdir, "restart")[-1]["step"]
    harmless += used in flipped
  record(
    "bit rot", f"one bit flipped in each of {found + harmless} checkpoints",
    f"{found} found and set aside, {harmless} without effect; none went wrong",
    None,
  )  # fmt: skip


def files_of(workdir: Path, step: int) -> list[Path]:
  """The files of a checkpoint, in order, relative to its work directory."""
  found = (workdir / "checkpoints" / str(step)).rglob("*")
  return sorted(path.relative_to(workdir) for path in found if path.is_file())


@pytest.mark.slow
@pytest.mark.parametrize("how", ["truncated", "deleted"])
def test_every_file_of_a_checkpoint(start, midway, tmp_path, twin, record, how):
  """Another file in each of all checkpoints but the oldest, and so on."""
  oldest, *steps = saved(midway)
  files = {step: files_of(midway, step) for step in steps}
  count, worst, turn = max(map(len, files.values())), 0.0, 0
  while turn < count:
    workdir, damaged = tmp_path / str(turn), set()
    shutil.copytree(midway, workdir)
    for step in reversed(steps):
      if turn < len(files[step]):
        path = workdir / files[step][turn]
        if how == "deleted":
          path.unlink()
        else:
          os.truncate(path, path.stat().st_size // 2)
        damaged.add(step)
      turn += 1
    worst = max(worst, recovered(start, workdir, twin))
    whole = [step for step in saved(midway) if step not in damaged]
    newest = max(whole)
    assert set_aside(workdir) == {step for step in steps if step > newest}
    assert events(workdir, "restart")[-1]["step"] == newest
  record(
    "damaged checkpoints", f"each of their {count} files {how} in turn",
    "set aside and told, the one before is used, equals the twin", worst,
  )  # fmt: skip


@pytest.mark.slow
def test_hostile_manifests(start, copy, twin, record):
  folder = copy / "checkpoints"
  os.truncate(folder / "12" / manifest.NAME, 1 << 30)  # a gigabyte, sparse
  (folder / "10" / manifest.NAME).write_text("[" * 100_000)
  text = (folder / "8" / manifest.NAME).read_text()
  (folder / "8" / manifest.NAME).write_text('{"step": NaN,' + text[1:])
  forge(
    folder / "6",
    lambda content: content["files"].update({"../../../../etc/passwd": 1}),
  )
  forge(folder / "4", lambda content: content.update(leaves=[{"name": 1}]))
  seconds = recovered(start, copy, twin)
  assert set_aside(copy) == {4, 6, 8, 10, 12}
  record(
    "hostile manifests",
    "a gigabyte, 100,000 levels, NaN, a path outside, entries of wrong types",
    "each refused unread and set aside, equals the twin", seconds,
  )  # fmt: skip


@pytest.mark.slow
def test_a_hostile_config_or_result(start, copy, record):
  """JSON that is too deep or of another kind is refused, not stumbled over."""
  (copy / "result.json").write_text("[" * 100_000)
  run = start(copy).done(BadConfig.code)
  assert "result.json: JSON nested too deep" in run.err
  (copy / "result.json").unlink()
  os.truncate(copy / "config.json", 1 << 30)
  run = start(copy).done(BadConfig.code)
  assert "config.json is 1073741824 bytes" in run.err
  record(
    "hostile JSON in the work directory",
    "result.json of 100,000 levels, config.json of a gigabyte",
    "status 78, not read", run.ended - run.began,
  )  # fmt: skip


@pytest.mark.slow
def test_a_checkpoint_of_absurd_shapes(start, copy, record):
  def grow(content):
    for leaf in content["leaves"]:
      leaf["shape"] = [10**12 for _ in leaf["shape"]]

  forge(copy / "checkpoints" / "12", grow)
  run = start(copy)
  run.done(BadConfig.code)
  assert "1000000000000" in run.err
  assert saved(copy)[-1] == 12, "it is not ours to set aside"
  record(
    "checkpoint that claims absurd shapes", "a forged manifest of 10^12 rows",
    "status 78 before any array is read", run.ended - run.began,
  )  # fmt: skip
