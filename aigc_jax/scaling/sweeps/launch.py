"""How a point is started: here on a share of the machine, or by a line.

A launcher turns the command of a point into a process of this machine that
ends when the point ends, with the point's exit status: the command itself, or
a line such as "ssh host {command}" around it.
"""

import dataclasses
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from aigc_jax import files
from aigc_jax.errors import BadConfig, StorageFailure
from aigc_jax.scaling.sweeps import ledger
from aigc_jax.scaling.sweeps.ledger import Entry

LOCAL, SLURM = "local", "slurm"
FIELDS = ("command", "name", "slot")
# Of an accelerator's memory, what JAX takes at its start by default.
MEMORY = 0.75
# What asks a point to save and end, and what ends it.
ASK, END = signal.SIGTERM, signal.SIGKILL


@dataclasses.dataclass(frozen=True)
class Share:
  """What one of the points that run at once may use.

  cores: numbers of CPU cores; None: all. environ: more of the environment.
  """

  slot: int
  cores: tuple[int, ...] | None
  environ: dict[str, str]


def shares(parallel: int) -> list[Share]:
  """The machine divided between `parallel` points.

  Its GPUs where it has any, and its cores. More points than cores or GPUs
  share them. Raises BadConfig for less than one.
  """
  if parallel < 1:
    raise BadConfig(f"--parallel={parallel}: expected 1 or more")
  if parallel == 1:
    return [Share(0, None, {})]
  cores, devices = _cores(), gpus()
  found = []
  for slot in range(parallel):
    environ = {}
    if devices:
      environ["CUDA_VISIBLE_DEVICES"] = ",".join(_part(devices, slot, parallel))
      on_one = -(-parallel // len(devices))
      if on_one > 1 and "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:
        environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{MEMORY / on_one:.3f}"
    mine = tuple(_part(cores, slot, parallel)) if cores else None
    found.append(Share(slot, mine, environ))
  return found


def _cores() -> list[int]:
  """The cores of this process; none where a system does not divide them."""
  if not hasattr(os, "sched_getaffinity"):
    return []
  return sorted(os.sched_getaffinity(0))


def _part(things: Sequence, slot: int, parts: int) -> list:
  """One of `parts` parts, as equal as can be; shared where there are less."""
  if parts >= len(things):
    return [things[slot % len(things)]]
  start, end = (i * len(things) // parts for i in (slot, slot + 1))
  return list(things[start:end])


def gpus() -> list[str]:
  """The GPUs that JAX would take, as CUDA names them; none on a CPU.

  Nothing is initialised: that would take their memory.
  """
  platforms = os.environ.get("JAX_PLATFORMS", "").lower()
  if platforms and not re.search("cuda|gpu", platforms):
    return []
  visible = os.environ.get("CUDA_VISIBLE_DEVICES")
  if visible is not None:
    return [word for word in visible.split(",") if word not in ("", "-1")]
  names = (re.fullmatch(r"nvidia(\d+)", p.name) for p in Path("/dev").iterdir())
  return sorted((m[1] for m in names if m), key=int)


@dataclasses.dataclass
class Process:
  """A point that runs as a child of this process, or several as one program.

  listed: the file that names them, where they are several. began: by a clock
  that nobody sets.
  """

  entries: tuple[Entry, ...]
  share: Share
  popen: subprocess.Popen
  error_start: int  # bytes of err.txt that are of earlier attempts
  listed: Path | None = None
  began: float = dataclasses.field(default_factory=time.monotonic)

  @property
  def error_file(self) -> Path:
    return self.entries[0].folder / "err.txt"

  def signal(self, number: int) -> None:
    """To the child and all that it started."""
    try:
      os.killpg(self.popen.pid, number)
    except ProcessLookupError:
      pass


def check_line(launcher: str) -> None:
  """Raises BadConfig for a launcher that could start nothing."""
  if launcher in (LOCAL, SLURM):
    return
  if "{command}" not in launcher:
    raise BadConfig(
      f"--launcher={launcher}: expected {LOCAL}, {SLURM}, or a line in which "
      "{command} stands for the command of a point, such as 'ssh host "
      "{command}'"
    )
  for field in re.findall(r"\{(\w*)\}", launcher):
    if field not in FIELDS:
      known = ", ".join(f"{{{name}}}" for name in FIELDS)
      raise BadConfig(
        f"--launcher: {{{field}}} is unknown (there are: {known})"
      )
  try:
    words = shlex.split(launcher)
  except ValueError as error:
    raise BadConfig(f"--launcher={launcher}: {error}") from None
  if not words[0].startswith("{") and shutil.which(words[0]) is None:
    raise BadConfig(
      f"--launcher={launcher}: there is no program {words[0]!r} here"
    )


def words_of(
  launcher: str, command: Sequence[str], name: str = "", slot: int = 0
) -> list[str]:
  """The words of the process that runs a command.

  A word {command} becomes all of its words; within a longer word it is one
  text, quoted for a shell. {name} is the point's, {slot} which of the points
  that run at once it is.
  """
  if launcher == LOCAL:
    return list(command)
  found: list[str] = []
  for word in shlex.split(launcher):
    if word == "{command}":
      found += command
      continue
    for field, text in zip(
      FIELDS, (shlex.join(command), name, str(slot)), strict=True
    ):
      word = word.replace(f"{{{field}}}", text)
    found.append(word)
  return found


def _listed(entries: Sequence[Entry]) -> Path:
  """Writes which points are one program."""
  folder = entries[0].out / "together"
  folder.mkdir(exist_ok=True)
  path = folder.absolute() / f"{entries[0].name}.json"
  path.with_name(f"{path.stem}.outcome.json").unlink(missing_ok=True)
  runs = [
    {
      "config": str(entry.folder.absolute() / "config.json"),
      "workdir": str(entry.workdir.absolute()),
    }
    for entry in entries
  ]
  files.write_json(path, {"runs": runs})
  return path


def start(entries: Sequence[Entry], launcher: str, share: Share) -> Process:
  """Starts a point, or several as one program.

  The output goes to files beside the record, of several beside the first's.

  It has a session of its own: a Ctrl-C comes to this process alone, which
  asks the points once, and waits until they have saved.
  """
  entry, listed = entries[0], None
  command, folder = ledger.command_of(entry)
  if len(entries) > 1:
    listed = _listed(entries)
    command = [*command[:2], "aigc_jax.sweep", f"--joint={listed}"]
  words = words_of(launcher, command, entry.name, share.slot)
  try:
    with _own(entry, "out.txt") as out, _own(entry, "err.txt") as err:
      before = os.fstat(err.fileno()).st_size
      popen = subprocess.Popen(
        words, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
        env=os.environ | share.environ | safe_path(), start_new_session=True,
      )  # fmt: skip
  except FileNotFoundError as error:
    raise BadConfig(f"{error.filename} is not there: {words[0]}") from None
  except OSError as error:
    raise StorageFailure(f"{entry.folder}: {error.strerror}") from None
  if share.cores is not None:
    # At once: the threads that it starts later inherit it.
    try:
      os.sched_setaffinity(popen.pid, share.cores)
    except ProcessLookupError:
      pass
  return Process(tuple(entries), share, popen, before, listed)


def _own(entry: Entry, name: str) -> BinaryIO:
  """A file of the point's folder to add to; nothing elsewhere is written."""
  for folder in (entry.folder.parent, entry.folder):
    files.own_folder(folder)
  flags = os.O_WRONLY | os.O_APPEND
  return open(files.open_own(entry.folder / name, flags), "ab")


def safe_path() -> dict[str, str]:
  """Environment in which Python imports nothing from the folder it starts in.

  That folder is named in a file of the sweep. Where this package itself came
  from the folder that this process was started in, its place is told.
  """
  found = {"PYTHONSAFEPATH": "1"}
  root = str(Path(ledger.__file__).parents[3])
  if sys.path and os.path.realpath(sys.path[0] or os.curdir) == (
    os.path.realpath(root)
  ):
    before = os.environ.get("PYTHONPATH")
    found["PYTHONPATH"] = os.pathsep.join([root, *([before] if before else [])])
  return found


def ended(status: int) -> str:
  """How a process ended, in words."""
  if status < 0:
    try:
      return f"killed by {signal.Signals(-status).name}"
    except ValueError:
      return f"killed by signal {-status}"
  return f"exit status {status}"
