"""A clean stop, whoever asks for it."""

import os
import signal
import threading
import time
from pathlib import Path

import jax
import numpy as np

from aigc_jax.errors import Stopped
from aigc_jax.trainer.console import shout
from aigc_jax.trainer.together import most


class Wishes:
  """Tells a second wish to stop from the echo of the first.

  `timeout`, schedulers and shells signal a process and then its group, so that
  one wish comes twice within a moment.
  """

  ECHO = 1.0  # seconds

  def __init__(self):
    self._first: float | None = None

  def again(self) -> bool:
    """Whether a signal that has come now is one more wish."""
    now = time.monotonic()
    if self._first is None:
      self._first = now
      return False
    return now - self._first > self.ECHO

  @property
  def any(self) -> bool:
    return self._first is not None


class Stop:
  """A wish to stop: SIGTERM, SIGINT, or a file DIR/STOP.

  `requested` is this process's own wish. `poll` is the wish of any process,
  the same on all of them: with several it is a reduction on the devices whose
  result is read one call later, so that nobody waits; all must call it equally
  often. `check` raises Stopped where `poll` is true.

  A second signal ends the process at once with status 75: what was committed
  stays. One that comes with the first is the same wish (Wishes). Signals are
  taken by a thread, so they count while the main thread is inside a
  compilation.
  """

  SIGNALS = (signal.SIGTERM, signal.SIGINT)

  def __init__(self, workdir: str | Path, *, poll_seconds: float = 1.0):
    self.file = Path(workdir) / "STOP"
    self.reason = ""
    self._poll_seconds = poll_seconds
    self._flag = threading.Event()
    self._coming = False
    self._wishes = Wishes()
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
    # In this order, and back in the other: none is lost in between.
    self._old_fd = signal.set_wakeup_fd(
      self._pipe[1], warn_on_full_buffer=False
    )
    for number in self.SIGNALS:
      self._old[number] = signal.signal(number, self._comes)
    self._ear = threading.Thread(target=self._hear, daemon=True, name="signals")
    self._ear.start()
    if jax.process_index() == 0:
      threading.Thread(target=self._look, daemon=True, name="stopfile").start()
    return self

  def __exit__(self, *_) -> None:
    self._done.set()
    for number, handler in self._old.items():
      signal.signal(number, handler)
    signal.set_wakeup_fd(self._old_fd)
    os.write(self._pipe[1], b"\0")
    self._ear.join()
    for fd in self._pipe:
      os.close(fd)
    if self.requested and jax.process_index() == 0:
      self._obeyed()

  def _obeyed(self) -> None:
    """The next start goes on; what is no file is left to whoever made it."""
    try:
      if self.file.is_dir() and not self.file.is_symlink():
        self.file.rmdir()
      self.file.unlink(missing_ok=True)
    except OSError as error:
      shout(f"{self.file} is still there ({error.strerror}): remove it")

  def _comes(self, *_) -> None:
    """In the main thread, which may be here before the one that hears."""
    self._coming = True

  def _hear(self) -> None:
    while True:
      number = os.read(self._pipe[0], 1)
      if self._done.is_set():
        return
      if number and number[0] in self.SIGNALS:
        self.heard(number[0])

  def heard(self, number: int) -> None:
    """A signal has come; the second one ends the process."""
    name, before = signal.Signals(number).name, self._wishes.any
    if self._wishes.again():
      shout(f"second signal ({name}): leaving at once; run again to go on")
      os._exit(Stopped.code)
    if not before:
      self.request(name, " (once more to leave at once)")

  def _look(self) -> None:
    while not self._done.wait(self._poll_seconds):
      if not self._flag.is_set() and self.file.exists():
        self.request(f"file {self.file}")

  def request(self, reason: str, hint: str = "") -> None:
    """Asks for a stop; `hint` is said with it."""
    again = "still " if self._flag.is_set() else ""
    if not again:
      self.reason = reason
      self._flag.set()
    shout(f"{reason}: {again}saving and stopping{hint}")

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
      if self._coming:  # heard in a moment: nothing more is begun before
        self._flag.wait(self._poll_seconds)
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
