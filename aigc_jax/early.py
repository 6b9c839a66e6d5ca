"""What a command says and hears while it is still importing, and at its end.

JAX and the rest take seconds to import, on a busy machine many: of commands
that then read a work directory the first word comes before all that, and Ctrl-C
ends it as it ends everything later. `aigc_jax/__init__.py` calls this first of
all; so nothing is imported here that takes time (`terminal` would). And what is
registered here for the end comes last there.
"""

import atexit
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

INTERRUPTED = 130  # as shells have it
BAD_CONFIG = 78  # BadConfig.code
# What the loader of libraries says of a memory that is full.
NO_MEMORY = ("Cannot allocate memory", "failed to map segment")
terminal = 2  # the descriptor that what is said here goes to
READERS = ("evaluate", "export", "generate")
HELP = ("help", "helpfull", "helpshort", "helpxml", "?")


def begin(line: Sequence[str], words: Sequence[str]) -> None:
  """Of `python -m aigc_jax.COMMAND WORDS...`, before anything is imported.

  line: all of it; words: what comes after the command.
  """
  atexit.register(_deaf)
  gc.disable()  # nothing that an import makes is garbage
  sys.excepthook = _not_begun
  command = line[len(line) - len(words) - 1].rpartition(".")[2]
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _leave)
  reads = command in READERS and workdir_of(words)
  if reads and sys.stderr is not None:
    with contextlib.suppress(OSError):
      print("starting ...", file=sys.stderr, flush=True)


def imported() -> None:
  """All is imported: Ctrl-C is an exception from here on, as ever.

  And garbage is looked for again, but not among what was imported, and rarely:
  a seventh of a start went into it, most of it where programs are traced. What
  holds an array is freed at once without it, by counts of references.
  """
  gc.freeze()
  gc.set_threshold(50_000, 10, 10)
  gc.enable()
  if sys.excepthook is _not_begun:
    sys.excepthook = sys.__excepthook__
  if signal.getsignal(signal.SIGINT) is _leave:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _not_begun(kind, error, trace) -> None:
  """Names what keeps JAX from being imported: memory, or the environment."""
  if issubclass(kind, MemoryError) or any(w in str(error) for w in NO_MEMORY):
    say(
      "aigc_jax: the memory does not even suffice to begin: raise the limit of "
      "this process (ulimit -v), or make room"
    )
    os._exit(BAD_CONFIG)
  inner = trace
  while inner and inner.tb_next:
    inner = inner.tb_next
  where = inner.tb_frame.f_code.co_filename if inner else ""
  if not issubclass(kind, ValueError) or f"jax{os.sep}_src" not in where:
    sys.__excepthook__(kind, error, trace)
    return
  say(
    f"aigc_jax: JAX cannot be imported: {error}. Set that variable of the "
    "environment otherwise, or unset it"
  )
  os._exit(BAD_CONFIG)


def _deaf() -> None:
  """Keeps the status of a process that ends, whatever signal comes now.

  Python takes its handlers away before it takes down what is left of itself,
  which takes moments with JAX: a wish to stop would kill it, all of it saved.
  """
  for number in (signal.SIGTERM, signal.SIGINT):
    with contextlib.suppress(ValueError):  # not the main thread
      signal.signal(number, signal.SIG_IGN)


_handlers: dict[int, object] = {}  # of C: they live as long as the process


def end_by(number: int, act: Callable[[], NoReturn]) -> None:
  """From here on `act` ends the process at this signal, in whatever thread.

  The handler is one of C: one of Python's `signal` is called in the main
  thread, which is too late, or never comes back to it.
  """
  import ctypes

  if number in _handlers:
    return
  kind = ctypes.CFUNCTYPE(None, ctypes.c_int)
  _handlers[number] = kind(lambda number: act())
  library = ctypes.CDLL(None)
  library.signal.argtypes = (ctypes.c_int, kind)
  library.signal.restype = ctypes.c_void_p
  library.signal(number, _handlers[number])


def say(text: str) -> None:
  """Writes a line to the terminal, whatever state Python is in."""
  with contextlib.suppress(OSError):
    os.write(terminal, f"{text}\n".encode())


def _leave(number: int, _) -> None:
  say("aigc_jax: interrupted")
  os._exit(INTERRUPTED)


def workdir_of(words: Sequence[str]) -> str:
  """What --workdir names; "" where nothing does, or where help is asked for."""
  found = ""
  for i, word in enumerate(words):
    name, _, value = word.lstrip("-").partition("=")
    if not word.startswith("-") or word == "--":
      continue
    if name in HELP:
      return ""
    if name == "workdir":
      found = value if "=" in word else "".join(words[i + 1 : i + 2])
  return found
