"""Commands as typed at a terminal, without importing JAX anew for each line.

A process that has imported what commands need is forked for each of them. There
the module runs as `python -m` runs it, in a process group of its own, with a
folder, an environment, files for its output and an exit status.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import NoReturn

import jax
import pytest
from absl import flags

ROOT = Path(__file__).parents[1]
LIMIT = 600.0  # seconds: a machine may have others to work for
# Most of what commands import; the rest of it comes in the forked process.
MODULES = ("aigc_jax.train", "aigc_jax.trainer.board")
CACHE = "JAX_COMPILATION_CACHE_DIR"
EVERY = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
MESSAGE = 1 << 20  # bytes that a message has at most


def own_flags(patch: pytest.MonkeyPatch) -> flags.FlagValues:
  """Flags of a test's own, which what defines and reads flags has from now."""
  mine = flags.FlagValues()
  patch.setattr(flags, "FLAGS", mine)
  for name in ("bool", "string", "list", "enum", "integer", "float",
               "multi_string"):  # fmt: skip
    define = getattr(flags, f"DEFINE_{name}")
    patch.setattr(
      flags, f"DEFINE_{name}", functools.partial(define, flag_values=mine)
    )
  return mine


def run(
  module: str, *argv: str, cwd: Path = ROOT, environ: dict | None = None
) -> subprocess.CompletedProcess:
  """`python -m MODULE ARGV`; its output as text.

  On one device, for which programs compile sooner than for the eight of the
  tests. `environ` is beside what the tests have. What JAX reads while it is
  imported, as JAX_PLATFORMS, is theirs; XLA_FLAGS and the folder of compiled
  programs are read later.
  """
  with tempfile.TemporaryDirectory() as folder:
    out, err = (Path(folder, name) for name in ("out", "err"))
    process = start(
      module, *argv, cwd=cwd, out=out, err=err,
      environ=os.environ | one_device() | (environ or {}),
    )  # fmt: skip
    try:
      code = process.wait(LIMIT)
    finally:
      process.kill()
    texts = [file.read_text(errors="replace") for file in (out, err)]
  return subprocess.CompletedProcess([module, *argv], code, *texts)


def one_device() -> dict[str, str]:
  """Environment of a command on one device, compiled as quickly as here."""
  flags = os.environ["XLA_FLAGS"].replace("_count=8", "_count=1")
  return {"XLA_FLAGS": flags}


def start(
  module: str, *argv: str, cwd: Path, environ: dict, out: Path, err: Path
) -> "Process":
  """`python -m MODULE ARGV` with this environment alone; does not wait."""
  return _nursery().start(
    module=module, argv=argv, cwd=str(cwd), environ=environ, out=str(out),
    err=str(err),
  )  # fmt: skip


class Process:
  """A forked process, as far as the tests ask what subprocess.Popen has."""

  def __init__(self, nursery: "Nursery", pid: int):
    self._nursery, self.pid = nursery, pid
    self.returncode: int | None = None

  def poll(self) -> int | None:
    """The exit status, negative for a signal; None while it lives."""
    if self.returncode is None:
      self.returncode = self._nursery.status(self.pid)
    return self.returncode

  def wait(self, timeout: float) -> int:
    """The exit status; raises subprocess.TimeoutExpired after these seconds."""
    end = time.monotonic() + timeout
    while self.poll() is None:
      left = end - time.monotonic()
      if left <= 0:
        raise subprocess.TimeoutExpired(str(self.pid), timeout)
      self._nursery.listen(left)
    return self.returncode

  def send_signal(self, number: int) -> None:
    if self.poll() is None:
      os.kill(self.pid, number)

  def kill(self) -> None:
    """Kills it and all it started, if it lives, and waits."""
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self.pid, signal.SIGKILL)
    self.wait(LIMIT)


@functools.cache
def _nursery() -> "Nursery":
  return Nursery()


class Nursery:
  """The process that is forked; it ends with the one that asked for it."""

  def __init__(self):
    self._ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    code = f"from tests.commands import serve; serve({theirs.fileno()})"
    self._server = subprocess.Popen(
      [sys.executable, "-c", code], cwd=ROOT, pass_fds=[theirs.fileno()],
      stdin=subprocess.DEVNULL, env=os.environ | {EVERY: "0"},
    )  # fmt: skip
    theirs.close()
    self._ended: dict[int, int] = {}

  def start(self, **what) -> Process:
    self._ours.sendall(json.dumps(what).encode())
    began = None
    while began is None:
      began = self._heard()
    return Process(self, began)

  def status(self, pid: int) -> int | None:
    """The exit status of one of its processes, told once."""
    while self.listen(0):
      pass
    return self._ended.pop(pid, None)

  def listen(self, seconds: float) -> bool:
    """Waits so long for a message; whether there was one."""
    ready, _, _ = select.select([self._ours], [], [], seconds)
    if ready:
      self._heard()
    return bool(ready)

  def _heard(self) -> int | None:
    """Takes a message; the process that it says has begun."""
    message = self._ours.recv(MESSAGE)
    assert message, "the process that is forked is gone"
    pid, status = json.loads(message)
    if status is None:
      return pid
    self._ended[pid] = status
    return None


def serve(fd: int) -> None:
  """Forks a process for each message of a socket; tells how each ends."""
  for module in MODULES:
    importlib.import_module(module)
  gc.freeze()  # whoever is forked leaves these pages as they are
  there = socket.socket(fileno=fd)
  wakes, wake = os.pipe()
  os.set_blocking(wake, False)
  before = signal.signal(signal.SIGCHLD, lambda *_: None)
  signal.set_wakeup_fd(wake)
  while True:
    ready, _, _ = select.select([there, wakes], [], [])
    if wakes in ready:
      os.read(wakes, 4096)
      for pid, status in _dead():
        there.sendall(json.dumps([pid, status]).encode())
    if there not in ready:
      continue
    message = there.recv(MESSAGE)
    if not message:
      return
    pid = os.fork()
    if not pid:
      signal.set_wakeup_fd(-1)
      signal.signal(signal.SIGCHLD, before)
      for closed in (there.detach(), wakes, wake):
        os.close(closed)
      _become(**json.loads(message))
    there.sendall(json.dumps([pid, None]).encode())


def _dead():
  """[(process, exit status)] of those that have ended since."""
  with contextlib.suppress(ChildProcessError):
    while (found := os.waitpid(-1, os.WNOHANG))[0]:
      yield found[0], os.waitstatus_to_exitcode(found[1])


def _become(module, argv, cwd, environ, out, err) -> NoReturn:
  status = 1
  try:
    os.setsid()
    for number, file in enumerate((out, err), 1):
      to = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
      os.dup2(to, number)
      os.close(to)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environ)
    if folder := environ.get(CACHE):
      jax.config.update(CACHE.lower(), folder)
    sys.argv[:] = [module, *argv]
    sys.path[:] = [cwd, *(x for x in sys.path if x)]
    sys.modules.pop(module, None)  # it runs anew, as the main module
    status = _status_of(module)
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
  finally:
    os._exit(status)


def _status_of(module: str) -> int:
  """Runs it as the main module; the exit status."""
  try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
  except SystemExit as end:
    if isinstance(end.code, str):
      print(end.code, file=sys.stderr)
      return 1
    return end.code or 0
  except BaseException:
    traceback.print_exc()
    return 1
  return 0
