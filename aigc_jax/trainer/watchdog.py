"""No silent hang."""

import faulthandler
import os
import sys
import threading
import time
from pathlib import Path

import jax

from aigc_jax import files
from aigc_jax.errors import Hang, StorageFailure
from aigc_jax.trainer.console import shout


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
      fd = files.open_own(path, os.O_WRONLY | os.O_APPEND)
      with open(fd, "a") as file:
        file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {text}\n")
        faulthandler.dump_traceback(file, all_threads=True)
    except (OSError, StorageFailure):
      faulthandler.dump_traceback(sys.stderr, all_threads=True)
    shout(f"{text}; the stacks of all threads are in {path}")
    os._exit(Hang.code)
