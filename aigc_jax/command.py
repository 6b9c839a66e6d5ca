"""What all commands share: flags, devices, exit codes."""

import contextlib
import ctypes
import itertools
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import jax
from absl import app, flags, logging
from ml_collections import config_flags
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from aigc_jax import run, sharding
from aigc_jax.errors import BadConfig, PeerLost, Refusal, StorageFailure
from aigc_jax.trainer.loop import COMPILING

COMPILED = "~/.cache/aigc_jax/compiled"


def main(
  command: Callable[..., int | None],
  *,
  config: bool = False,
  words: bool = False,
) -> None:
  """Runs `command` with the flags parsed; a refusal becomes its exit status.

  config: it has --config. words: it takes the words that are no flags.
  A refusal prints its message and nothing else: it tells the user what to do,
  and a stack trace would not.
  """
  if config:
    define_config(flags.FLAGS)
  flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0")
  flags.DEFINE_integer("processes", 0, "how many processes run together")
  flags.DEFINE_integer("process", -1, "which of them this one is")
  flags.DEFINE_integer("heartbeat", 30, "seconds until a silent one is dead")
  flags.DEFINE_integer("join_limit", 300, "seconds to wait for all of them")
  logging.set_verbosity(logging.WARNING)

  def guarded(argv):
    try:
      if argv[1:] and not words:
        raise BadConfig(f"unexpected {argv[1]!r}: flags look like --name=value")
      start_jax()
      status = command(argv[1:]) if words else command()
    except Refusal as refusal:
      sys.stdout.flush()
      print(f"aigc_jax: {text_of(refusal)}", file=sys.stderr, flush=True)
      status = refusal.code
    except Exception as error:
      if not _of_another_process(error):
        raise
      _left_alone(str(error).split("\n")[0][:300])
    except KeyboardInterrupt:
      print("aigc_jax: interrupted", file=sys.stderr)
      status = 130
    _leave(status or 0)

  app.run(guarded, flags_parser=_parse)


# What JAX says where a process does not hear from another one any more.
SILENCE = (
  "UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "closed by peer",
  "reset by peer", "Socket closed", "heartbeat", "Gloo",
)  # fmt: skip


def _of_another_process(error: Exception) -> bool:
  """Whether an error is that another process of the run is gone."""
  if not jax.distributed.is_initialized() or not isinstance(
    error, RuntimeError | ValueError
  ):
    return False
  return any(word in str(error) for word in SILENCE)


def _left_alone(why: str) -> NoReturn:
  """Ends a process of several: there is no good order without the others."""
  text = (
    f"aigc_jax: another process of this run is gone ({why}): look there for "
    "the reason, and start all of them again by the same line\n"
  )
  with contextlib.suppress(OSError):
    sys.stdout.flush()
    os.write(2, text.encode())
  os._exit(PeerLost.code)


def _name_aborts() -> None:
  """Gives our status to a process that JAX aborts.

  That is how JAX ends one whose peers are silent, from a thread of its own. A
  handler of Python's `signal` would be called in the main thread, which is too
  late; so this is one of C.
  """
  global _handler
  kind = ctypes.CFUNCTYPE(None, ctypes.c_int)
  _handler = kind(
    lambda number: _left_alone("JAX has given up on it, see above")
  )
  library = ctypes.CDLL(None)
  library.signal.argtypes = (ctypes.c_int, kind)
  library.signal.restype = ctypes.c_void_p
  library.signal(signal.SIGABRT, _handler)


_handler = None  # must live as long as the process


def _leave(status: int) -> NoReturn:
  """Ends the process with this status.

  A compilation that nobody waits for any more cannot be called off, and it
  crashes a process that ends in good order around it.
  """
  if any(t.name == COMPILING for t in threading.enumerate()):
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
  sys.exit(status)


def text_of(error: BaseException) -> str:
  """The message, without what JAX adds to errors inside a traced function."""
  return str(error).split("\n--------------------")[0]


def define_config(values: flags.FlagValues, argv=None) -> None:
  """--config and its overrides. argv: of the command, the process's own."""
  what = "PATH.py, PATH.py:PRESET or DIR/config.json"
  config_flags.DEFINE_config_file(
    "config", None, what, values, lock_config=True, sys_argv=argv
  )
  values["config"].parser = ConfigParser("config")


class ConfigParser(ConfigFileFlagParser):
  """Reads what --config names: a *.py is executed, a *.json is only data.

  Nothing else is opened, whatever is in it.
  """

  def parse(self, path):
    if not isinstance(path, str):  # a ConfigDict of a test or a notebook
      return super().parse(path)
    name, _, preset = path.partition(":")
    if name.endswith(".py"):
      return super().parse(path)
    if name.endswith(".json") and not preset:
      return run.config_from(name)
    raise BadConfig(
      f"--config={path}: expected a config file PATH.py, PATH.py:PRESET, or "
      "the config.json of a work directory; nothing else is read as a config"
    )


def _parse(argv: Sequence[str]) -> list[str]:
  """absl's parsing, its errors as one line and exit status 78."""
  try:
    # Both --config=PATH and --config PATH, with one dash or two.
    for arg, after in itertools.zip_longest(argv, argv[1:], fillvalue=""):
      name, equals, value = arg.partition("=")
      if name in ("--config", "-config") and (equals or after):
        _importable((value if equals else after).partition(":")[0])
    return flags.FLAGS(argv)
  except (
    flags.Error,
    AttributeError,
    ImportError,
    KeyError,
    OSError,
    Refusal,
    TypeError,
    ValueError,
  ) as error:
    print(f"aigc_jax: {_flag_error(error)}", file=sys.stderr)
    sys.exit(BadConfig.code)


def _importable(path: str) -> None:
  """A config in a package may import from it, from whatever folder this runs.

  In a plain folder a file could stand before a library of the same name.
  """
  if not Path(path).is_file():
    raise OSError(f"--config={path}: there is no such file")
  package = Path(path).absolute().parent
  while (package.parent / "__init__.py").is_file():
    package = package.parent
  if (package / "__init__.py").is_file():
    sys.path.insert(0, str(package.parent))


def _flag_error(error: Exception) -> str:
  if isinstance(error, ImportError):
    return f"--config imports what is not here: {error}"
  if isinstance(error, AttributeError | KeyError):
    key = re.search(r"'(\w+)\\?'", str(error))
    close = re.search(r'Did you mean "(\w+)"', str(error))
    hint = f"; did you mean {close[1]!r}?" if close else ""
    name = key[1] if key else str(error)
    return f"config key {name!r} is unknown{hint} (--print_config lists them)"
  lines = [line.strip() for line in str(error).splitlines()]
  # Of an error inside the config file, its own last words.
  worded = [x for x in lines if x and not x.startswith(("Pass --help", "File"))]
  last = worded[-1] if worded else type(error).__name__
  return last.removeprefix("ValueError: ")


def start_jax() -> None:
  """Joins the other processes, and remembers compiled programs on the disk."""
  values = flags.FLAGS
  sharding.start_distributed(
    values.coordinator,
    values.processes,
    values.process,
    heartbeat_seconds=values.heartbeat,
    start_seconds=values.join_limit,
    beforehand=_name_aborts,
  )
  if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    folder = Path(COMPILED).expanduser()
    jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def check_out(out: str | Path, *, make: bool = False) -> None:
  """Raises StorageFailure where --out could not be written after the work.

  make: folders that are missing will be made.
  """
  path = Path(out).expanduser().absolute()
  if path.is_dir():
    raise StorageFailure(
      f"--out={out} is a folder: name a file in it, such as {path / 'out.json'}"
    )
  folder = path.parent
  while make and not folder.exists():
    folder = folder.parent
  if not folder.is_dir():
    raise StorageFailure(f"--out={out}: there is no folder {folder}")
  if path.exists() and not make:  # written in place: a file or a device
    if os.access(path, os.W_OK):
      return
    raise StorageFailure(f"--out={out} cannot be written: name another file")
  try:
    with tempfile.TemporaryFile(dir=folder):  # several processes may ask
      pass
  except OSError as error:
    raise StorageFailure(
      f"--out={out}: {folder} cannot be written ({error.strerror}): name a "
      "file elsewhere"
    ) from None


def is_first() -> bool:
  """Whether this process is the one that speaks."""
  return jax.process_index() == 0
