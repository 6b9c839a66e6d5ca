"""What is no fault of the program: devices, memory, disks, other processes."""

import contextlib
import errno
import os
import re
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Iterator
from typing import NoReturn

import jax
from jax.extend.backend import get_compile_options

from aigc_jax import early, files, native
from aigc_jax.errors import BadConfig, PeerLost, Refusal, StorageFailure

# What JAX says where a process does not hear from another one any more.
SILENCE = (
  "UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "closed by peer",
  "reset by peer", "Socket closed", "heartbeat", "Gloo",
)  # fmt: skip
# What a file system says of a name that is right.
DENIED = (
  errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO,
  errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip
# Of XLA, about its flags: the end of a line that begins with where it is.
REFUSED = re.compile(rb"\] ((?:Unknown flag|Could not open|Couldn't).*)")
# Of JAX, about its folder of compiled programs.
KEPT = re.compile(
  r"Error (reading|writing) persistent compilation cache entry.*?: (.*)", re.S
)
WORDS = {"reading": "read", "writing": "kept"}
FULL = "RESOURCE_EXHAUSTED"  # what JAX says of a memory that is full


def check_xla_flags() -> None:
  """Raises BadConfig for XLA_FLAGS that XLA ends a process for, with its words.

  It does so where it first reads them, without any way to be asked before: a
  process of its own reads them here.
  """
  given = os.environ.get("XLA_FLAGS", "").strip()
  if not given:
    return
  with tempfile.TemporaryFile() as said:
    with warnings.catch_warnings():  # of threads: it does nothing but this
      warnings.simplefilter("ignore")
      child = os.fork()
    if not child:
      with contextlib.suppress(BaseException):
        os.dup2(said.fileno(), 2)
        get_compile_options(num_replicas=1, num_partitions=1)
        os._exit(0)
      os._exit(2)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) != 1:
      return  # read, or something else is wrong, which will be told
    said.seek(0)
    found = REFUSED.search(said.read(1 << 16))
  why = found[1].decode(errors="replace") if found else "it refuses them"
  raise BadConfig(
    f"XLA cannot read the variable XLA_FLAGS={given!r} of the environment: "
    f"{why.strip(' .')[:300]}. Set it otherwise, or unset it"
  )


def unusable(folder: str) -> str:
  """Why nothing can be kept in a folder, which is made; "" where it can be.

  An address (gs://...) is not looked at.
  """
  if "://" in folder:
    return ""
  try:
    place = files.expanded(folder)
    place.mkdir(parents=True, exist_ok=True)
  except BadConfig as refusal:
    return str(refusal)
  except OSError as error:
    return f"{folder} cannot be written ({error.strerror})"
  fits = os.access(place, os.R_OK | os.W_OK | os.X_OK)
  return "" if fits else f"{place} cannot be read and written"


def hear_of_programs() -> None:
  """What JAX warns of compiled programs that it cannot keep is said once."""
  show = warnings.showwarning

  def shown(message, *rest, **more) -> None:
    found = KEPT.match(str(message))
    if not found:
      return show(message, *rest, **more)
    if found[1] not in _told:
      _told.add(found[1])
      early.say(
        f"aigc_jax: compiled programs cannot be {WORDS[found[1]]} "
        f"({' '.join(found[2].split())[:200]}): they are compiled anew"
      )

  warnings.showwarning = shown


_told: set[str] = set()


def of_another_process(error: Exception) -> bool:
  """Whether an error is that another process of the run is gone."""
  if not jax.distributed.is_initialized() or not isinstance(
    error, RuntimeError | ValueError
  ):
    return False
  return any(word in str(error) for word in SILENCE)


def of_the_machine(error: Exception) -> Refusal | None:
  """What is no fault of the program: of devices, memory, streams; else None."""
  frames = traceback.extract_tb(error.__traceback__)
  if frames and frames[-1].filename.endswith("xla_bridge.py"):
    asked = os.environ.get("JAX_PLATFORMS")
    why = str(error).split("\n")[0][:300] or "no such device is here"
    return BadConfig(
      f"JAX cannot use its devices: {why}. JAX_PLATFORMS is {asked!r}: unset "
      "it to use what there is, or set it to cpu"
    )
  full = isinstance(error, jax.errors.JaxRuntimeError)
  full = full and FULL in str(error)
  if full or isinstance(error, MemoryError):
    why = " ".join(str(error).split())[:200] or "of this machine"
    return BadConfig(
      f"the memory does not suffice ({why}): take smaller batches (in training "
      "--config.data.batch, or the same in --config.compute.microbatches=2 "
      "parts), --config.compute.remat=full, a smaller model or more devices"
    )
  if isinstance(error, OSError) and error.errno in DENIED and error.filename:
    return StorageFailure(
      f"{error.filename}: {error.strerror}: name another place, make room, or "
      "change who may use it"
    )
  if isinstance(error, OSError) and error.filename is None:
    return StorageFailure(
      f"what this command says cannot be written: {error.strerror or error}"
    )
  return None


def left_alone(why: str) -> NoReturn:
  """Ends a process of several: there is no good order without the others."""
  _end(
    f"another process of this run is gone ({why}): look there for the reason, "
    "and start all of them again by the same line"
  )


def _end(text: str) -> NoReturn:
  with contextlib.suppress(OSError):
    sys.stdout.flush()
  early.say(f"aigc_jax: {text}")
  os._exit(PeerLost.code)


@contextlib.contextmanager
def joining(seconds: int, patience: float = 5.0) -> Iterator[None]:
  """While processes find each other: who is late was never there.

  A wait of more than `patience` seconds is told; `seconds` are all there are.
  """
  global _joining
  native.begin()
  name_aborts()

  def tell() -> None:
    with contextlib.suppress(OSError):
      print(
        "aigc_jax: waits for the other processes of this run, for at most "
        f"{seconds} seconds (--join_limit)",
        file=sys.stderr,
        flush=True,
      )

  told = threading.Timer(patience, tell)
  told.daemon = True
  told.start()
  _joining = seconds
  try:
    yield
  finally:
    told.cancel()
    _joining = None


def name_aborts() -> None:
  """Gives our status to a process that JAX aborts.

  That is how JAX ends one whose peers are silent, from a thread of its own.
  """
  early.end_by(signal.SIGABRT, _given_up)


def _given_up() -> NoReturn:
  if _joining is None:
    left_alone(native.why() or "JAX has given up on it, see above")
  _end(
    "the processes of this run did not find each other within "
    f"{_joining} seconds (--join_limit): start all of them by the same line, "
    "each with its own --process, and with an address for --coordinator that "
    "all can reach"
  )


_joining: int | None = None  # seconds, while the processes join
