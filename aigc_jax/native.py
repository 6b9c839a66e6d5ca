"""What libraries in C++ write to the terminal of a run of several processes.

Gloo greets on stdout. JAX's runtime tells of a lost process in a page of its
own words with a stack of C++, and aborts; what the user has to know comes
after that, where it comes at all. Here such lines are kept aside, so that our
own words stand first; `why` makes a sentence of them. All other lines appear
as ever, and so do these with TF_CPP_MIN_LOG_LEVEL=0 (JAX itself sets 1).

Of one process on CPUs `quiet` leaves out all that C++ writes beside what it
raises: "Very slow compile?" in a box of stars after two minutes, mostly.
"""

import atexit
import collections
import contextlib
import fcntl
import os
import re
import select
import sys
import threading
from typing import TextIO

from absl import logging

from aigc_jax import early, terminal

GREETING = re.compile(rb"\[Gloo\] Rank \d+ is connected to ")
# A message begins so, and goes on to the next that does.
MESSAGE = re.compile(rb"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ ([\w./]+):\d+\] ")
OF_PEERS = ("coordination_service", "distributed_runtime", "client.h")
# How long a step has compiled we say ourselves.
SAID = (*OF_PEERS, "slow_operation_alarm")
# Where a process was when it gave up: written after a message, by itself.
STACK = re.compile(
  rb"\*\*\* Check failure stack trace: \*\*\*| +@ +0x[0-9a-f]+ "
)
STATUS = re.compile(
  r"([A-Z_]{6,}: .*?)(?:\n\n|\s*\[type\.|\nThe tasks|\Z)", re.S
)
ROOM = 2**20  # bytes of a pipe: C++ never waits for us
KEPT = 200  # lines that are kept aside at most


class Sieve:
  """Stands in the place of one descriptor; `plain` is where it led to."""

  def __init__(self, number: int):
    self.plain = os.dup(number)
    self.aside = collections.deque(maxlen=KEPT)
    self._rest, self._is_said = b"", False
    self._reading = threading.Lock()
    self._source, into = os.pipe()
    with contextlib.suppress(OSError):  # more than the system allows
      fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, ROOM)
    os.set_blocking(self._source, False)
    os.dup2(into, number)
    os.close(into)
    threading.Thread(target=self._run, daemon=True, name="sieve").start()

  def _run(self) -> None:
    while True:
      select.select([self._source], [], [])
      self.drain()

  def drain(self) -> None:
    """Takes what has been written so far."""
    if not self._reading.acquire(timeout=1):
      return
    try:
      while data := os.read(self._source, ROOM):
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
          self._take(line + b"\n")
    except BlockingIOError:
      pass
    finally:
      self._reading.release()

  def _take(self, line: bytes) -> None:
    if found := MESSAGE.match(line):
      self._is_said = any(x in found[1].decode() for x in SAID)
    if self._is_said or (self.aside and STACK.match(line)):
      self.aside.append(line)
    elif not GREETING.match(line):
      with contextlib.suppress(OSError):
        os.write(self.plain, line)


_sieves: dict[int, Sieve] = {}


def begin() -> None:
  """From here on C++ writes through sieves, and Python past them."""
  if _sieves or os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0":
    return
  for number, name in ((1, "stdout"), (2, "stderr")):
    stream = getattr(sys, name)
    try:
      if stream.fileno() != number:  # somebody else has put one there
        continue
      stream.flush()
      sieve = Sieve(number)
    except (OSError, ValueError, AttributeError):  # closed, or no file
      continue
    _sieves[number] = sieve
    setattr(sys, name, _like(stream, sieve.plain))
    if number == 2:
      early.terminal = sieve.plain
  logging.get_absl_handler().python_handler.stream = sys.stderr
  atexit.register(_drain)


FATAL = 3  # what C++ writes before it ends the process
BY_JAX = "1"  # TF_CPP_MIN_LOG_LEVEL where nobody sets one


def quiet(device, processes: int) -> None:
  """From here on C++ writes nothing but why it ends, in one process on CPUs.

  Where more is not asked for. What fails on CPUs comes as an exception, and how
  long a program compiles we say ourselves. No descriptor is replaced for it:
  what comes before an end is lost with nobody.
  """
  if processes > 1 or device.platform != "cpu":
    return
  if os.environ.get("TF_CPP_MIN_LOG_LEVEL", BY_JAX) == BY_JAX:
    # Not of JAX's public names: where it is gone, all is written as ever.
    from jax._src.lib import utils

    getattr(utils, "absl_set_min_log_level", lambda level: None)(FATAL)


def _like(stream: TextIO, number: int) -> TextIO:
  """A stream to another descriptor that is otherwise the same."""
  plain = terminal.plain(stream)
  made = terminal.Lasting(open(
    number, "w", buffering=1 if plain.line_buffering else -1,
    encoding=plain.encoding, errors=plain.errors, closefd=False,
  ))  # fmt: skip
  made.lost = getattr(plain, "lost", None)
  return terminal.Shown(made) if isinstance(stream, terminal.Shown) else made


def _drain() -> None:
  for sieve in _sieves.values():
    sieve.drain()


def why() -> str:
  """What was told of lost processes, as one line; "" where nothing was."""
  _drain()
  lines = [line for sieve in _sieves.values() for line in sieve.aside]
  found = STATUS.search(b"".join(lines).decode(errors="replace"))
  return " ".join(found[1].split())[:300] if found else ""
