"""Saves that are killed at a system call, and disks that fail at one."""

import shutil
import signal
import subprocess

import pytest

from tests.faults.harness import (
  assert_twins,
  events,
  last_step,
  saved,
  slow,
  stop,
  until,
)

RENAMES = "rename,renameat,renameat2"
REMOVALS = "unlink,unlinkat,rmdir"
SYNCS = "fsync,fdatasync"

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    not shutil.which("strace"), reason="NOT TESTED: strace is not installed"
  ),
]


@pytest.fixture
def traced(tmp_path):
  """traced(run, calls, what): from now on `what` happens at these calls."""
  tracers = []

  def attach(run, calls: str, what: str) -> subprocess.Popen:
    err = tmp_path / f"strace.{len(tracers)}"
    calls_made = tmp_path / f"strace.{len(tracers)}.calls"
    with open(err, "wb") as file:
      tracer = subprocess.Popen(
        ["strace", "-f", "-p", str(run.process.pid), "-o", str(calls_made),
         "-e", f"trace={calls}", "-e", f"inject={calls}:{what}"],
        stderr=file,
      )  # fmt: skip
    tracers.append(tracer)
    tracer.calls = calls_made
    until(
      lambda: "attached" in err.read_text() or tracer.poll() is not None,
      "strace attaches",
    )
    if tracer.poll() is not None:
      pytest.skip(f"NOT TESTED: strace may not attach: {err.read_text()}")
    return tracer

  yield attach
  for tracer in tracers:
    tracer.kill()
    tracer.wait()


KEEP = "--config.checkpoint.keep=1"


def killed_after(start, traced, workdir, calls: str, number: int) -> bool:
  """Kills the save of 15 after its `number`-th call; whether it has so many.

  The process is stopped at each call, and the stops are counted here: strace
  itself counts the calls of every thread for itself.
  """
  run = start(workdir, KEEP, plan=stop("save/begin", step=15))
  run.stopped()
  tracer = traced(run, calls, "signal=STOP")

  def count() -> int:
    return tracer.calls.read_text().count("--- SIGSTOP")

  for n in range(1, number + 1):
    run.go_on()
    run.until(lambda n=n: count() >= n, f"stop {n}")
    run.stopped()
  over = any(row["step"] == 15 for row in events(workdir, "save"))
  run.send(signal.SIGKILL)
  run.done(-signal.SIGKILL)
  return not over


def goes_on(start, workdir, twin) -> float:
  stood = last_step(workdir)
  assert saved(workdir), "one of the old and the new is always there"
  run = start(workdir, KEEP)
  run.row(stood)
  seconds = run.seconds
  run.done()
  assert_twins(workdir, twin)
  assert not events(workdir, "corrupt")
  return seconds


def test_killed_in_a_save(start, traced, copy, twin, record):
  run = start(copy, KEEP, plan=stop("save/begin", step=15))
  run.stopped()
  traced(run, RENAMES, "signal=KILL")
  run.go_on()
  run.done(-signal.SIGKILL)
  assert 15 not in saved(copy)
  seconds = goes_on(start, copy, twin)
  assert events(copy, "leftover")
  record(
    "process killed in mid-save", "strace: SIGKILL at its first rename",
    "the step before is used, leftovers removed, equals the twin", seconds,
  )  # fmt: skip


@pytest.mark.parametrize("calls", [RENAMES, REMOVALS])
def test_killed_at_every_call_of_a_save(
  start, traced, midway, tmp_path, twin, record, calls
):
  number, worst, more = 0, 0.0, True
  while more:
    number += 1
    workdir = tmp_path / str(number)
    shutil.copytree(midway, workdir)
    for step in saved(workdir)[:-2]:  # one old step to remove is enough
      shutil.rmtree(workdir / "checkpoints" / str(step))
    more = killed_after(start, traced, workdir, calls, number)
    worst = max(worst, goes_on(start, workdir, twin))
    shutil.rmtree(workdir)
  assert number > 5
  record(
    "process killed in mid-save",
    f"strace: SIGKILL after each of its {number - 1} calls of {calls}",
    "the old or the new step is valid each time, equals the twin", worst,
  )  # fmt: skip


def test_a_disk_that_cannot_sync(start, traced, copy, twin, record):
  run = start(copy, plan=slow(0.2) | stop("save/begin", step=15))
  run.stopped()
  tracer = traced(run, SYNCS, "error=EIO")
  run.go_on()
  assert run.event("save_failed")["step"] == 15
  tracer.terminate()
  tracer.wait()
  repaired = run.seconds
  run.until(lambda: 20 in saved(copy), "the next save")
  seconds = run.seconds - repaired
  run.done()
  assert saved(copy)[-1] == 20
  assert_twins(copy, twin)
  record(
    "disk that fails to sync", "strace: EIO at every fsync of one save",
    "save failed and told, the next one good, equals the twin", seconds,
  )  # fmt: skip


def test_a_disk_that_is_slow(start, traced, copy, twin, record):
  run = start(copy, plan=stop("save/begin", step=15))
  run.stopped()
  traced(run, SYNCS, "delay_enter=300000")
  resumed = run.go_on()
  run.done()
  save = events(copy, "save")
  assert [row["step"] for row in save][-2:] == [15, 20]
  took, waited = save[-2]["seconds"], save[-2]["blocked_seconds"]
  assert took > 1 and waited < took / 2, "trained on meanwhile"
  assert_twins(copy, twin)
  record(
    "slow disk", "strace: 0.3 s more for every fsync",
    f"a save took {took:.1f} s, training waited {waited:.1f} s for it; equals "
    "the twin", run.ended - resumed,
  )  # fmt: skip
