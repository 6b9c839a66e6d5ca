"""One writer per work directory."""

import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import logging

from aigc_jax import files
from aigc_jax.errors import BadData, Refusal, StorageFailure, WorkdirInUse
from aigc_jax.trainer.together import all_or_none

# What a run writes into its directory, besides LOCK: nothing of it may be a
# link, for that would change, or delete, what is elsewhere.
WRITTEN = (
  "checkpoints", "config.json", "evaluate", "events.jsonl", "hang.0.txt",
  "metrics.cut.jsonl", "metrics.jsonl", "profile", "result.json", "run.json",
  "samples", "tensorboard", "tokenizer", "wandb.id",
)  # fmt: skip


class Lock:
  """One writer per work directory.

  DIR/LOCK is held by flock, which the kernel releases when its process dies,
  and carries a record {host, pid, boot_id, token}; a thread renews the file's
  time every `heartbeat_seconds`. A lock whose file was not renewed for three
  heartbeats, by the clock of the file system, nor in two more while it was
  watched, is stale and is taken over by putting a new file in its place.
  `check` tells a former holder that woke up (a frozen machine) that the
  directory is no longer its own.

  A run that is refused before it wrote anything leaves nothing: no LOCK that
  was not there, and none of the folders `made` for it.

  With several processes, process 0 holds the lock for all. Raises WorkdirInUse
  naming the holder, StorageFailure if the directory cannot be written or
  something in it that a run writes is a link or no file of its own.
  """

  def __init__(
    self,
    workdir: str | Path,
    *,
    heartbeat_seconds: float = 10.0,
    steal: bool = False,
    made: Sequence[Path] = (),
  ):
    self.path = Path(workdir) / "LOCK"
    self._made = made
    self._before: set[str] = set()
    self._heartbeat = heartbeat_seconds
    self._steal = steal
    self._token = secrets.token_hex(8)
    self._fd = -1
    self._kernel = True
    self._done = threading.Event()

  def __enter__(self) -> "Lock":
    self.acquire()
    return self

  def __exit__(self, kind, *_) -> None:
    refused = kind is not None and issubclass(kind, Refusal)
    self.release(forget=refused)

  def acquire(self) -> None:
    with all_or_none():
      if jax.process_index() == 0:
        self._acquire()

  def _acquire(self) -> None:
    try:
      self.path.parent.mkdir(parents=True, exist_ok=True)
      self._before = set(os.listdir(self.path.parent))
      for name in WRITTEN:
        files.check_own(self.path.with_name(name))
      fd = self._open_and_lock()
      record = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "boot_id": boot_id(),
        "token": self._token,
        "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
      }
      _write(fd, record)
    except OSError as error:
      raise StorageFailure(
        f"{self.path.parent} cannot be written ({error}): choose another "
        "--workdir, make room, or make it writable"
      ) from error
    self._fd = fd
    if not self._kernel:
      time.sleep(0.2)  # two may have come at once: the last to write stays
    self.check()
    threading.Thread(target=self._renew, daemon=True, name="lock").start()

  def _open_and_lock(self) -> int:
    fd = files.open_own(self.path, os.O_RDWR)
    for _ in range(20):
      locked, holder = _flock(fd), _record(fd)
      if locked is not False or holder:
        break
      time.sleep(0.1)  # its holder is about to write its record
    self._kernel = locked is not None
    # The kernel answers for the processes of this machine; for those of
    # another machine on a shared file system the renewed time does.
    here = holder.get("boot_id") == boot_id()
    if locked is not False and not holder:
      return fd
    if here and (locked or locked is None and not _alive(holder.get("pid"))):
      return fd
    if self._steal or not self._renewed(fd):
      return self._replace(fd, holder)
    os.close(fd)
    who = {k: str(holder.get(k, "?"))[:60] for k in ("pid", "host", "since")}
    raise WorkdirInUse(
      f"{self.path.parent} is in use by process {who['pid']} on "
      f"{who['host']} since {who['since']}: stop that "
      "process or choose another --workdir (a dead holder's lock is free "
      f"{3 * self._heartbeat:.0f} s after its last sign of life, once it was "
      f"watched for {2 * self._heartbeat:.0f} s more)"
    )

  def _renewed(self, fd: int) -> bool:
    """Whether the holder gives signs of life.

    Its last one is of the last three heartbeats, or it gives one while it is
    watched. An age alone does not make it dead: where the clock is set, or a
    laptop wakes up, a living one is old, or of the future, until it renews the
    file. "Now" is the time the file system gives a file that is written now, so
    clocks that differ between machines do not matter.
    """
    probe = self.path.with_name(f"LOCK.{self._token}")
    os.close(files.open_own(probe, os.O_RDWR))
    now = probe.stat().st_mtime
    probe.unlink()
    then = os.fstat(fd).st_mtime
    if -self._heartbeat <= now - then < 3 * self._heartbeat:
      return True
    seconds = 2 * self._heartbeat
    logging.warning(
      "%s was last renewed %.0f s %s: watching it for %.0f s",
      self.path, abs(now - then), "ago" if now > then else "in the future",
      seconds,
    )  # fmt: skip
    end = time.monotonic() + seconds
    while time.monotonic() < end:
      time.sleep(self._heartbeat / 10)
      if self._stamp() != then:
        return True
    return False

  def _stamp(self) -> float:
    """When the file was renewed; a network file system says it to who opens."""
    fd = files.open_own(self.path, os.O_RDWR)
    try:
      return os.fstat(fd).st_mtime
    finally:
      os.close(fd)

  def _replace(self, fd: int, holder: dict) -> int:
    """A new file in place of a stale one, locked before it is visible."""
    os.close(fd)
    aside = self.path.with_name(f"LOCK.{self._token}")
    fd = files.open_own(aside, os.O_RDWR)
    _flock(fd)
    _write(fd, {"token": self._token})
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
    """Raises WorkdirInUse if another process took the directory over.

    StorageFailure where the directory, or the lock in it, is gone.
    """
    if self._fd < 0:
      return
    try:
      ours, there = os.fstat(self._fd), os.stat(self.path)
    except FileNotFoundError:
      what = self.path if self.path.parent.is_dir() else self.path.parent
      raise StorageFailure(
        f"{what} is gone: somebody deleted or moved it while this run wrote to "
        "it. Nothing more is written; put it back, or choose another "
        "--workdir, and run again"
      ) from None
    lost = (ours.st_ino, ours.st_dev) != (there.st_ino, there.st_dev)
    if lost or _record(self._fd).get("token") != self._token:
      raise WorkdirInUse(
        f"{self.path.parent} was taken over by another process while this one "
        "did not move: leaving it to the new one"
      )

  def release(self, forget: bool = False) -> None:
    """Lets go; a lock that was taken over stays with its new holder.

    forget: whether LOCK and the folders made for it go where nothing else came.
    """
    self._done.set()
    if self._fd < 0:
      return
    try:
      self.check()
      os.ftruncate(self._fd, 0)
      if forget:
        self._forget()
    except (WorkdirInUse, StorageFailure, OSError):
      pass
    os.close(self._fd)
    self._fd = -1

  def _forget(self) -> None:
    folder = self.path.parent
    if set(os.listdir(folder)) - self._before != {self.path.name}:
      return
    self.path.unlink()  # while it is held: nobody else holds it
    for one in reversed(self._made):
      one.rmdir()  # OSError where something is in it by now


def holder(workdir: str | Path, heartbeat_seconds: float = 10.0) -> dict | None:
  """Who writes to a work directory now, as its LOCK says; None for nobody.

  Nothing is taken or changed: for those who only want to know. By the age of
  its last sign of life, so that a clock that is set makes a living one seem
  dead until it gives the next.
  """
  record, stamp = _left_in(workdir)
  if stamp is None or not is_recent(stamp, 3 * heartbeat_seconds):
    return None
  return record


def sign(workdir: str | Path) -> float | None:
  """When whoever may still write to a work directory last said so.

  None where nobody does, or who did is known to be gone.
  """
  return _left_in(workdir)[1]


def _left_in(workdir: str | Path) -> tuple[dict, float | None]:
  """(what LOCK says of a holder, its time, None without one that may live)."""
  path = Path(workdir) / "LOCK"
  try:
    record, stamp = files.read_json(path), path.stat().st_mtime
  except (BadData, OSError):
    return {}, None
  return record, stamp if record and lives(record) else None


def is_recent(stamp: float, seconds: float) -> bool:
  """Whether a time of a file is of these last seconds; the future is not."""
  return abs(time.time() - stamp) <= seconds


def lives(record: dict) -> bool:
  """Whether the process of a {pid, boot_id} may live; False: it is gone.

  Of another machine nothing is known: there its signs of life count.
  """
  return record.get("boot_id") != boot_id() or _alive(record.get("pid"))


def _flock(fd: int) -> bool | None:
  """Whether `fd` is locked now; None on a file system without locks."""
  try:
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError:
    return None
  return True


def _write(fd: int, record: dict) -> None:
  """Raises OSError where the disk has no room for all of it."""
  data, written = json.dumps(record).encode(), 0
  os.ftruncate(fd, 0)
  while written < len(data):
    written += os.pwrite(fd, data[written:], written)
  os.fsync(fd)


def _record(fd: int) -> dict:
  try:
    return files.parse_json(os.pread(fd, 4096, 0) or b"{}", "LOCK")
  except BadData:
    return {}


def boot_id() -> str:
  """What differs between two machines and between two boots of one."""
  try:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
  except OSError:
    return socket.gethostname()


def _alive(pid: int | None) -> bool:
  try:
    os.kill(int(pid), 0)
  except (OverflowError, ProcessLookupError, TypeError, ValueError):
    return False
  except PermissionError:
    return True
  return True
