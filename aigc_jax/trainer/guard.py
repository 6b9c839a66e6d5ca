"""What protects a run: one writer, a clean stop, no silent hang.

Also how several processes take one decision: `from_first`, `most`, `same`.
"""

import contextlib
import faulthandler
import fcntl
import hashlib
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from aigc_jax.errors import (
  Hang,
  Refusal,
  Stopped,
  StorageFailure,
  WorkdirInUse,
)


def from_first(value: int) -> int:
  """The number process 0 gives; every process must call this."""
  if jax.process_count() == 1:
    return int(value)
  return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def most(value: int) -> int:
  """The largest number any process gives; every process must call this."""
  if jax.process_count() == 1:
    return int(value)
  return int(np.max(multihost_utils.process_allgather(np.int32(value))))


def same(text: str) -> bool:
  """Whether all processes give the same text; every one must call this."""
  if jax.process_count() == 1:
    return True
  words = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint32)
  rows = np.asarray(multihost_utils.process_allgather(words))
  return bool((rows == rows[0]).all())


@contextlib.contextmanager
def all_or_none():
  """What one process refuses in this block, all refuse; every one must enter.

  Without that the others would wait for it in their next common step. The
  block itself must have none.
  """
  refusal: Refusal | None = None
  try:
    yield
  except Refusal as error:
    refusal = error
  code = most(refusal.code if refusal else 0)
  if refusal:
    raise refusal
  if code:
    kinds = {kind.code: kind for kind in Refusal.__subclasses__()}
    raise kinds[code]("another process refused; it says why")


class Lock:
  """One writer per work directory.

  DIR/LOCK is held by flock, which the kernel releases when its process dies,
  and carries a record {host, pid, boot_id, token}; a thread renews the file's
  time every `heartbeat_seconds`. A lock whose file was not renewed for three
  heartbeats, by the clock of the file system, is stale and is taken over by
  putting a new file in its place. `check` tells a former holder that woke up
  (a frozen machine) that the directory is no longer its own.

  With several processes, process 0 holds the lock for all. Raises WorkdirInUse
  naming the holder, StorageFailure if the directory cannot be written.
  """

  def __init__(
    self,
    workdir: str | Path,
    *,
    heartbeat_seconds: float = 10.0,
    steal: bool = False,
  ):
    self.path = Path(workdir) / "LOCK"
    self._heartbeat = heartbeat_seconds
    self._steal = steal
    self._token = secrets.token_hex(8)
    self._fd = -1
    self._kernel = True
    self._done = threading.Event()

  def __enter__(self) -> "Lock":
    self.acquire()
    return self

  def __exit__(self, *_) -> None:
    self.release()

  def acquire(self) -> None:
    with all_or_none():
      if jax.process_index() == 0:
        self._acquire()

  def _acquire(self) -> None:
    try:
      self.path.parent.mkdir(parents=True, exist_ok=True)
      fd = self._open_and_lock()
      record = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "boot_id": _boot_id(),
        "token": self._token,
        "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
      }
      os.ftruncate(fd, 0)
      os.pwrite(fd, json.dumps(record).encode(), 0)
      os.fsync(fd)
    except OSError as error:
      raise StorageFailure(
        f"{self.path.parent} cannot be written ({error}): choose another "
        "--workdir, or make it writable"
      ) from error
    self._fd = fd
    if not self._kernel:
      time.sleep(0.2)  # two may have come at once: the last to write stays
    self.check()
    threading.Thread(target=self._renew, daemon=True, name="lock").start()

  def _open_and_lock(self) -> int:
    fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
    for _ in range(20):
      locked, holder = _flock(fd), _record(fd)
      if locked is not False or holder:
        break
      time.sleep(0.1)  # its holder is about to write its record
    self._kernel = locked is not None
    # The kernel answers for the processes of this machine; for those of
    # another machine on a shared file system the renewed time does.
    here = holder.get("boot_id") == _boot_id()
    if locked is not False and not holder:
      return fd
    if here and (locked or locked is None and not _alive(holder.get("pid"))):
      return fd
    if self._steal or not self._renewed(fd):
      return self._replace(fd, holder)
    os.close(fd)
    raise WorkdirInUse(
      f"{self.path.parent} is in use by process {holder.get('pid', '?')} on "
      f"{holder.get('host', '?')} since {holder.get('since', '?')}: stop that "
      "process or choose another --workdir (a dead holder's lock is free "
      f"{3 * self._heartbeat:.0f} s after its last sign of life)"
    )

  def _renewed(self, fd: int) -> bool:
    """Whether the holder renewed the file within three heartbeats.

    "Now" is the time the file system gives a file that is written now, so
    clocks that differ between machines do not matter.
    """
    probe = self.path.with_name(f"LOCK.{self._token}")
    probe.write_text("")
    now = probe.stat().st_mtime
    probe.unlink()
    return now - os.fstat(fd).st_mtime < 3 * self._heartbeat

  def _replace(self, fd: int, holder: dict) -> int:
    """A new file in place of a stale one, locked before it is visible."""
    os.close(fd)
    aside = self.path.with_name(f"LOCK.{self._token}")
    fd = os.open(aside, os.O_RDWR | os.O_CREAT, 0o644)
    _flock(fd)
    os.pwrite(fd, json.dumps({"token": self._token}).encode(), 0)
    os.replace(aside, self.path)
    logging.warning("took over the stale lock %s of %s", self.path, holder)
    # Of several that take over at once, the last to replace the file wins.
    time.sleep(0.2)
    self._fd = fd
    self.check()
    return fd

  def _renew(self) -> None:
    while not self._done.wait(self._heartbeat):
      try:
        os.utime(self._fd)
      except OSError as error:
        logging.warning("the lock %s was not renewed: %s", self.path, error)

  def check(self) -> None:
    """Raises WorkdirInUse if another process took the directory over."""
    if self._fd < 0:
      return
    try:
      ours, there = os.fstat(self._fd), os.stat(self.path)
      lost = (ours.st_ino, ours.st_dev) != (there.st_ino, there.st_dev)
      lost = lost or _record(self._fd).get("token") != self._token
    except FileNotFoundError:
      lost = True
    if lost:
      raise WorkdirInUse(
        f"{self.path.parent} was taken over by another process while this one "
        "did not move: leaving it to the new one"
      )

  def release(self) -> None:
    """Lets go; a lock that was taken over stays with its new holder."""
    self._done.set()
    if self._fd < 0:
      return
    try:
      self.check()
      os.ftruncate(self._fd, 0)
    except (WorkdirInUse, OSError):
      pass
    os.close(self._fd)
    self._fd = -1


def _flock(fd: int) -> bool | None:
  """Whether `fd` is locked now; None on a file system without locks."""
  try:
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError:
    return None
  return True


def _record(fd: int) -> dict:
  try:
    record = json.loads(os.pread(fd, 4096, 0) or b"{}")
  except ValueError:
    return {}
  return record if isinstance(record, dict) else {}


def _boot_id() -> str:
  """What differs between two machines and between two boots of one."""
  try:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
  except OSError:
    return socket.gethostname()


def _alive(pid: int | None) -> bool:
  try:
    os.kill(int(pid), 0)
  except (ProcessLookupError, TypeError, ValueError):
    return False
  except PermissionError:
    return True
  return True


class Stop:
  """A wish to stop: SIGTERM, SIGINT, or a file DIR/STOP.

  `requested` is this process's own wish. `poll` is the wish of any process,
  the same on all of them: with several it is a reduction on the devices whose
  result is read one call later, so that nobody waits; all must call it equally
  often. `check` raises Stopped where `poll` is true.

  A second signal ends the process at once with status 75: what was committed
  stays. Signals are taken by a thread, so they count while the main thread is
  inside a compilation.
  """

  SIGNALS = (signal.SIGTERM, signal.SIGINT)

  def __init__(self, workdir: str | Path, *, poll_seconds: float = 1.0):
    self.file = Path(workdir) / "STOP"
    self.reason = ""
    self._poll_seconds = poll_seconds
    self._flag = threading.Event()
    self._count = 0
    self._pending: jax.Array | None = None
    self._any = None
    self._old: dict = {}
    self._done = threading.Event()
    self._pipe = (-1, -1)
    self._old_fd = -1
    self._ear: threading.Thread | None = None

  def __enter__(self) -> "Stop":
    """Takes the signals; only in the main thread."""
    self._pipe = os.pipe()
    os.set_blocking(self._pipe[1], False)
    for number in self.SIGNALS:
      self._old[number] = signal.signal(number, lambda *_: None)
    self._old_fd = signal.set_wakeup_fd(
      self._pipe[1], warn_on_full_buffer=False
    )
    self._ear = threading.Thread(target=self._hear, daemon=True, name="signals")
    self._ear.start()
    if jax.process_index() == 0:
      threading.Thread(target=self._look, daemon=True, name="stopfile").start()
    return self

  def __exit__(self, *_) -> None:
    self._done.set()
    signal.set_wakeup_fd(self._old_fd)
    for number, handler in self._old.items():
      signal.signal(number, handler)
    os.write(self._pipe[1], b"\0")
    self._ear.join()
    for fd in self._pipe:
      os.close(fd)
    if self.requested and jax.process_index() == 0:
      self.file.unlink(missing_ok=True)  # obeyed: the next start goes on

  def _hear(self) -> None:
    while True:
      number = os.read(self._pipe[0], 1)
      if self._done.is_set():
        return
      if number and number[0] in self.SIGNALS:
        self._count += 1
        name = signal.Signals(number[0]).name
        if self._count > 1:
          _say(f"second signal ({name}): leaving at once; run again to go on")
          os._exit(Stopped.code)
        self.request(name)

  def _look(self) -> None:
    while not self._done.wait(self._poll_seconds):
      if not self._flag.is_set() and self.file.exists():
        self.request(f"file {self.file}")

  def request(self, reason: str) -> None:
    """Asks for a stop."""
    if not self._flag.is_set():
      self.reason = reason
      self._flag.set()
      _say(f"{reason}: saving and stopping (once more to leave at once)")

  @property
  def requested(self) -> bool:
    return self._flag.is_set()

  def poll(self) -> bool:
    """Whether any process asked, equal on all of them."""
    if jax.process_count() == 1:
      return self._flag.is_set()
    before, self._pending = self._pending, self._reduce()
    return before is not None and bool(np.asarray(before))

  def settle(self) -> bool:
    """`poll` without the delay of one call: waits for the other processes."""
    self._pending = None
    return bool(most(self._flag.is_set()))

  def check(self) -> None:
    if self.poll():
      raise Stopped(self.reason or "another process was asked to stop")

  def check_alone(self) -> None:
    """`check` where there is no other process that would have to be asked."""
    if jax.process_count() == 1:
      self.check()

  def _reduce(self) -> jax.Array:
    devices = jax.sharding.Mesh(np.array(jax.devices()), ("device",))
    parts = jax.sharding.PartitionSpec("device")
    one = np.full(jax.local_device_count(), self._flag.is_set(), np.int32)
    flags = jax.make_array_from_process_local_data(
      jax.sharding.NamedSharding(devices, parts), one
    )
    if self._any is None:
      whole = jax.sharding.NamedSharding(devices, jax.sharding.PartitionSpec())
      self._any = jax.jit(lambda x: x.max(), out_shardings=whole)
    return self._any(flags)


class Watchdog:
  """Ends a process that makes no progress, with the stacks of all threads.

  `feed` says that something moved, what comes next, and how long that may
  take: a step by default. The process then writes DIR/hang.<process>.txt and
  exits 79. Time in which the whole process was frozen does not count.
  """

  TICK = 0.5

  def __init__(
    self, workdir: str | Path, *, step_seconds: float, compile_seconds: float
  ):
    self.step_seconds = step_seconds
    self.compile_seconds = compile_seconds
    self._workdir = Path(workdir)
    self._lock = threading.Lock()
    self._what = "start"
    self._deadline = float("inf")
    self._done = threading.Event()

  def __enter__(self) -> "Watchdog":
    threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
    return self

  def __exit__(self, *_) -> None:
    self._done.set()

  def feed(self, what: str, seconds: float | None = None) -> None:
    limit = self.step_seconds if seconds is None else seconds
    with self._lock:
      self._what = what
      self._deadline = time.monotonic() + limit

  def rest(self) -> None:
    """No limit until the next `feed`."""
    with self._lock:
      self._deadline = float("inf")

  def _watch(self) -> None:
    before = time.monotonic()
    while not self._done.wait(self.TICK):
      now = time.monotonic()
      with self._lock:
        if now - before > 4 * self.TICK:
          self._deadline += now - before
        late, what = now > self._deadline, self._what
      before = now
      if late:
        self._bark(what)

  def _bark(self, what: str) -> None:
    path = self._workdir / f"hang.{jax.process_index()}.txt"
    text = f"no progress in time: {what}"
    try:
      with open(path, "a") as file:
        file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {text}\n")
        faulthandler.dump_traceback(file, all_threads=True)
    except OSError:
      faulthandler.dump_traceback(sys.stderr, all_threads=True)
    _say(f"{text}; the stacks of all threads are in {path}")
    os._exit(Hang.code)


def _say(text: str) -> None:
  """A line on stderr, even when logging is quiet or the pipe is gone."""
  try:
    print(f"aigc_jax: {text}", file=sys.stderr, flush=True)
  except OSError:
    pass
