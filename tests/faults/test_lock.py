"""One writer for each work directory, whatever became of the last one."""

import os
import signal
import time

import pytest

from aigc_jax.errors import WorkdirInUse
from tests.faults.harness import SLOW, assert_twins, last_step, patience, slow


def written(workdir) -> list:
  """When each file was; that of TensorBoard is each process's own."""
  found = (p for p in workdir.rglob("*") if "tensorboard" not in p.parts)
  return sorted((p, p.stat().st_mtime) for p in found)


@pytest.mark.slow
def test_one_writer_at_a_time(start, workdir, twin, record):
  first = start(workdir, plan=slow(1.0))
  first.row(2)

  second = start(workdir).done(WorkdirInUse.code)
  seconds = second.ended - second.began
  assert str(first.process.pid) in second.err
  assert seconds < patience(5)
  assert first.process.poll() is None
  record(
    "second process on one work directory", "started beside the first",
    "status 73, names the holder, the first is undisturbed", seconds,
  )  # fmt: skip

  # A frozen machine: alive, silent, and its lock ages.
  first.send(signal.SIGSTOP)
  stood = last_step(workdir)
  then = time.time() - 60
  os.utime(workdir / "LOCK", (then, then))
  third = start(workdir)
  third.row(stood)
  seconds = third.seconds
  third.done()
  before = written(workdir)
  first.send(signal.SIGCONT)
  first.done(WorkdirInUse.code)
  assert "taken over" in first.err
  assert before == written(workdir)
  assert_twins(workdir, twin)
  record(
    "holder of the lock frozen, awake after a takeover",
    "SIGSTOP, lock aged by 60 s, another run, SIGCONT",
    "taken over after 20 s of watching, equals the twin; the old one leaves "
    "with 73, writes nothing",
    seconds,
  )  # fmt: skip
