"""One writer, a clean stop, no silent hang."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import types

import jax.numpy as jnp
import pytest

from aigc_jax.errors import (
  BadConfig,
  Hang,
  Stopped,
  StorageFailure,
  WorkdirInUse,
)
from aigc_jax.evaluators import samples
from aigc_jax.trainer import lock as lock_module
from aigc_jax.trainer.checkpoint import Checkpoints
from aigc_jax.trainer.journal import Journal
from aigc_jax.trainer.lock import Lock
from aigc_jax.trainer.stop import Stop
from aigc_jax.trainer.watchdog import Watchdog


def run(code: str, *words: str) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, "-c", code, *words],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def wait_for(condition, seconds: float = 300.0):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, "it did not happen"
    time.sleep(0.01)


def held_elsewhere(workdir, age: float = 0.0, **record) -> None:
  """A lock as a process on another machine would have left it."""
  record = {"host": "far", "pid": 1, "boot_id": "b", "token": "t"} | record
  (workdir / "LOCK").write_text(json.dumps(record))
  then = time.time() - age
  os.utime(workdir / "LOCK", (then, then))


def test_a_second_writer_is_refused_within_seconds_by_name(tmp_path):
  began = time.monotonic()
  with Lock(tmp_path), pytest.raises(WorkdirInUse, match=f"{os.getpid()} on"):
    Lock(tmp_path).acquire()
  assert time.monotonic() - began < 5
  with Lock(tmp_path):
    pass


@pytest.mark.parametrize("written", ["", "config.json"])
def test_a_refused_run_leaves_nothing_unless_it_wrote(tmp_path, written):
  top = tmp_path / "deep"
  workdir = top / "er"
  workdir.mkdir(parents=True)
  with (
    pytest.raises(BadConfig),
    Lock(workdir, made=[top, workdir]),
  ):
    if written:
      (workdir / written).write_text("{}")
    raise BadConfig("refused")
  assert top.exists() == bool(written)
  assert not written or (workdir / "LOCK").exists()


def test_a_refused_run_leaves_a_folder_of_before_as_it_was(tmp_path):
  (tmp_path / "notes.txt").write_text("mine")
  with pytest.raises(BadConfig), Lock(tmp_path):
    raise BadConfig("refused")
  assert os.listdir(tmp_path) == ["notes.txt"]
  with Lock(tmp_path):
    pass  # it ended well: its LOCK is of a run
  with pytest.raises(BadConfig), Lock(tmp_path):
    raise BadConfig("refused")
  assert (tmp_path / "LOCK").exists()


def test_a_killed_holder_leaves_the_lock_free(tmp_path):
  code = (
    "import sys, time; from aigc_jax.trainer.lock import Lock\n"
    "Lock(sys.argv[1]).acquire(); print('held', flush=True); time.sleep(60)"
  )
  holder = run(code, str(tmp_path))
  assert holder.stdout.readline() == "held\n"
  with pytest.raises(WorkdirInUse, match=str(holder.pid)):
    Lock(tmp_path).acquire()
  holder.kill()
  holder.communicate()
  with Lock(tmp_path) as lock:
    lock.check()


def test_a_holder_on_another_machine_counts_until_it_is_stale(tmp_path):
  held_elsewhere(tmp_path, age=5)
  with pytest.raises(WorkdirInUse, match="far"):
    Lock(tmp_path, heartbeat_seconds=10).acquire()
  held_elsewhere(tmp_path, age=31)
  with Lock(tmp_path, heartbeat_seconds=0.1) as lock:
    lock.check()
  held_elsewhere(tmp_path)
  with Lock(tmp_path, steal=True) as lock:
    lock.check()


def test_a_lock_from_the_future_is_watched_and_taken_if_nobody_renews_it(
  tmp_path,
):
  held_elsewhere(tmp_path, age=-1e6)
  with Lock(tmp_path, heartbeat_seconds=0.1) as lock:
    lock.check()


def test_a_lock_from_the_future_that_is_renewed_is_in_use(tmp_path):
  held_elsewhere(tmp_path, age=-1e6)
  done = threading.Event()

  def renew():
    while not done.wait(0.05):
      held_elsewhere(tmp_path, age=-1e6)

  holder = threading.Thread(target=renew)
  holder.start()
  try:
    with pytest.raises(WorkdirInUse, match="far"):
      Lock(tmp_path, heartbeat_seconds=0.2).acquire()
  finally:
    done.set()
    holder.join()


@pytest.mark.parametrize("hours", [1, -1])
def test_a_clock_that_is_set_takes_no_lock_from_a_living_holder(
  tmp_path, hours
):
  with Lock(tmp_path, heartbeat_seconds=0.3) as held:
    then = time.time() - 3600 * hours  # by the clock as it is now
    os.utime(tmp_path / "LOCK", (then, then))
    with pytest.raises(WorkdirInUse, match=f"{os.getpid()} on"):
      Lock(tmp_path, heartbeat_seconds=0.3).acquire()
    held.check()


@pytest.mark.parametrize(
  "name", ["LOCK", "metrics.jsonl", "samples", "checkpoints", "config.json"]
)
def test_a_link_in_a_work_directory_changes_nothing_elsewhere(tmp_path, name):
  workdir, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
  workdir.mkdir()
  elsewhere.write_text("precious")
  (workdir / name).symlink_to(elsewhere)
  with pytest.raises(StorageFailure, match=f"{name} is a link to {elsewhere}"):
    Lock(workdir).acquire()
  (workdir / name).unlink()
  os.link(elsewhere, workdir / name)
  with pytest.raises(StorageFailure, match="2 names"):
    Lock(workdir).acquire()
  (workdir / name).unlink()
  os.mkfifo(workdir / name)
  with pytest.raises(StorageFailure, match="pipe"):
    Lock(workdir).acquire()
  assert elsewhere.read_text() == "precious"


def test_a_folder_named_stop_stops_once(tmp_path):
  (tmp_path / "STOP").mkdir()
  with Stop(tmp_path, poll_seconds=0.01) as stop:
    deadline = time.monotonic() + 5
    while not stop.requested and time.monotonic() < deadline:
      time.sleep(0.01)
    assert stop.requested
  assert not (tmp_path / "STOP").exists()


def test_a_folder_named_stop_with_something_in_it_is_told(tmp_path, capsys):
  (tmp_path / "STOP" / "x").mkdir(parents=True)
  with Stop(tmp_path, poll_seconds=0.01) as stop:
    stop.request("a test")
  assert "STOP is still there" in capsys.readouterr().err


def test_a_lock_is_kept_by_its_heartbeat(tmp_path):
  with Lock(tmp_path, heartbeat_seconds=0.1):
    time.sleep(0.6)
    with pytest.raises(WorkdirInUse):
      Lock(tmp_path, heartbeat_seconds=0.1).acquire()


def test_a_frozen_holder_that_wakes_up_notices(tmp_path):
  frozen = Lock(tmp_path, heartbeat_seconds=0.05)
  frozen.acquire()
  frozen._done.set()
  time.sleep(0.3)
  with Lock(tmp_path, heartbeat_seconds=0.05) as new:
    with pytest.raises(WorkdirInUse, match="taken over"):
      frozen.check()
    frozen.release()
    new.check()


def test_without_locks_of_the_kernel_the_record_decides(tmp_path, monkeypatch):
  monkeypatch.setattr(lock_module, "_flock", lambda fd: None)
  with Lock(tmp_path), pytest.raises(WorkdirInUse):
    Lock(tmp_path).acquire()
  dead = run("pass")
  dead.communicate()
  held_elsewhere(tmp_path, boot_id=lock_module.boot_id(), pid=dead.pid)
  with Lock(tmp_path) as lock:
    lock.check()


def test_a_record_that_is_written_in_part_is_no_takeover(tmp_path):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))
  try:
    with pytest.raises(StorageFailure, match="cannot be written .*too large"):
      Lock(tmp_path).acquire()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_directory_that_cannot_be_written_is_a_storage_failure(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(StorageFailure, match="--workdir"):
    Lock(tmp_path / "file").acquire()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_wish_to_stop(tmp_path, number):
  before = signal.getsignal(number)
  with Stop(tmp_path) as stop:
    stop.check()
    os.kill(os.getpid(), number)
    wait_for(lambda: stop.requested)
    with pytest.raises(Stopped, match=number.name):
      stop.check()
  assert signal.getsignal(number) == before


def test_nothing_is_begun_after_a_signal_that_is_heard_late(
  tmp_path, monkeypatch
):
  heard = Stop.heard

  def late(self, number):
    time.sleep(0.2)
    heard(self, number)

  monkeypatch.setattr(Stop, "heard", late)
  with Stop(tmp_path) as stop:
    stop.check_alone()
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Stopped, match="SIGTERM"):
      stop.check_alone()


def test_only_a_signal_says_that_another_one_leaves_at_once(tmp_path, capsys):
  with Stop(tmp_path) as stop:
    stop.request("file STOP")
    stop.heard(signal.SIGINT)
  asked, again = capsys.readouterr().err.splitlines()
  assert asked.endswith("file STOP: saving and stopping")
  assert "SIGINT: still saving and stopping (once more to leave" in again


def test_a_file_named_stop_does_the_same_and_is_gone_afterwards(tmp_path):
  with Stop(tmp_path, poll_seconds=0.01) as stop:
    (tmp_path / "STOP").touch()
    wait_for(stop.poll)
  assert not (tmp_path / "STOP").exists()


def test_a_second_signal_leaves_at_once(tmp_path):
  code = (
    "import sys, time; from aigc_jax.trainer.stop import Stop\n"
    "with Stop(sys.argv[1]):\n"
    "  print('ready', flush=True)\n"
    "  while True: time.sleep(1)"
  )
  process = run(code, str(tmp_path))
  assert process.stdout.readline() == "ready\n"
  process.terminate()
  assert "SIGTERM" in process.stderr.readline()
  while process.poll() is None:  # until one comes that is no echo
    process.terminate()
    time.sleep(0.05)
  assert process.returncode == Stopped.code
  assert "second signal" in process.stderr.read()


def test_a_wish_that_comes_twice_is_one_as_timeout_sends_it(
  tmp_path, monkeypatch, capsys
):
  now = [7.0]
  clock = types.SimpleNamespace(monotonic=lambda: now[0])
  monkeypatch.setattr("aigc_jax.trainer.stop.time", clock)
  left = []
  monkeypatch.setattr(os, "_exit", left.append)
  stop = Stop(tmp_path)
  for at in (7.0, 7.0, 7.9):
    now[0] = at
    stop.heard(signal.SIGTERM)
  assert stop.requested and not left
  assert capsys.readouterr().err.count("saving and stopping") == 1
  now[0] = 8.1
  stop.heard(signal.SIGTERM)
  assert left == [Stopped.code]


def test_the_watchdog_ends_a_hang_with_the_stacks(tmp_path):
  code = (
    "import sys, time; from aigc_jax.trainer.watchdog import Watchdog\n"
    "def stuck_here(): time.sleep(60)\n"
    "with Watchdog(sys.argv[1], step_seconds=.3, compile_seconds=9) as dog:\n"
    "  dog.feed('batch of step 7'); stuck_here()"
  )
  process = run(code, str(tmp_path))
  assert process.wait(300) == Hang.code
  text = (tmp_path / "hang.0.txt").read_text()
  assert "batch of step 7" in text and "stuck_here" in text


def test_the_watchdog_is_quiet_while_it_is_fed(tmp_path, monkeypatch):
  monkeypatch.setattr(Watchdog, "TICK", 0.02)
  barked = []
  monkeypatch.setattr(Watchdog, "_bark", lambda self, what: barked.append(what))
  with Watchdog(tmp_path, step_seconds=0.3, compile_seconds=9) as dog:
    for n in range(6):
      dog.feed(f"step {n}")
      time.sleep(0.1)
    dog.rest()
    time.sleep(0.4)
    assert not barked
    dog.feed("step 9")
    wait_for(lambda: barked)
  assert barked[0] == "step 9"


def test_a_work_directory_that_is_deleted_is_named_and_not_made_again(tmp_path):
  workdir = tmp_path / "run"
  with Lock(workdir) as lock:
    saved = Checkpoints(
      workdir / "checkpoints", every_steps=1, keep=1, keep_every_steps=0,
      fence=lock.check,
    )  # fmt: skip
    with Journal(workdir, fence=lock.check) as journal:
      journal.row(1, {"train/loss": 1.0})
      shutil.rmtree(workdir)
      gone = f"{workdir} is gone: somebody deleted"
      with pytest.raises(StorageFailure, match=gone):
        journal.row(2, {"train/loss": 1.0})
      with pytest.raises(StorageFailure, match=gone):
        saved.save(2, {"params": {"w": jnp.ones(3)}}, {})
      with pytest.raises(StorageFailure):
        samples.write(workdir / "samples" / "2.txt", [], 2)
  assert not workdir.exists()


def test_a_lock_that_is_deleted_is_no_takeover(tmp_path):
  with Lock(tmp_path) as lock:
    (tmp_path / "LOCK").unlink()
    with pytest.raises(StorageFailure, match="LOCK is gone"):
      lock.check()


def test_a_deeply_nested_lock_is_no_record(tmp_path):
  (tmp_path / "LOCK").write_bytes(b"[" * 4096)
  with Lock(tmp_path) as held:
    held.check()
