"""What is on disk of a sweep: its points, and what became of each.

  OUT/sweep.json                which points, in order, with arms and costs
  OUT/points/NAME/point.json    the command and its folder, written once
  OUT/points/NAME/config.json   the config it is given, written once
  OUT/points/NAME/state.json    planned, running, done or failed; every attempt
  OUT/points/NAME/out.txt       what it printed; err.txt: what it complained of
  OUT/runs/NAME/                its work directory

A point that says it is running, and that no living process keeps, is stale: it
was killed or stopped, and goes on from its checkpoint. A branch waits until its
trunk, another point, has saved the step that it goes on from.
"""

import dataclasses
import os
import shlex
import socket
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from aigc_jax import files, records, run
from aigc_jax.errors import BadConfig
from aigc_jax.records import COUNT, SHA256
from aigc_jax.scaling.sweeps.plan import Cost, Plan, Planned
from aigc_jax.trainer import lock

PLANNED, WAITING, RUNNING, DONE, FAILED, STALE = (
  "planned", "waiting", "running", "done", "failed", "stale",
)  # fmt: skip
STATES = (PLANNED, WAITING, RUNNING, DONE, FAILED, STALE)
RENEWED = 60.0  # seconds after its last sign of life that a keeper is gone
ERROR_LINES = 20
TAIL_BYTES = 1 << 16

INDEX = "sweep.json"
_NAME = r"(?!\.)[A-Za-z0-9._=+-]{1,200}"
_ENTRY = {
  "name": _NAME,
  "arm": str,
  "seed": COUNT,
  "values": dict,
  "parameters": COUNT,
  "steps": COUNT,
  "amount": COUNT,
  "flops": float,
  "unit": str,
  "trunk?": _NAME,
  "branch_step?": COUNT,
}
_INDEX = {
  "sweep": str,
  "baseline": str,
  "metric": str,
  "points": [_ENTRY],
}
_POINT = {"command": [str], "folder": str, "out": str, "fingerprint": SHA256}
_ATTEMPT = {
  "started": float,
  "seconds?": (float, None),
  "status?": (int, None),
  "cores?": ([COUNT], None),
  "together?": COUNT,
}
_STATE = {
  "state": "|".join(STATES),
  "attempts": [_ATTEMPT],
  "error": [str],
  "pid?": (COUNT, None),
  "host?": (str, None),
  "boot_id?": (str, None),
}


@dataclasses.dataclass(frozen=True)
class Entry:
  """A point of a sweep, as sweep.json has it.

  trunk: the name of the point that it is a branch of, at branch_step; "" of one
  that is none.
  """

  out: Path
  name: str
  arm: str
  seed: int
  values: dict[str, Any]
  cost: Cost
  trunk: str = ""
  branch_step: int = 0

  @property
  def folder(self) -> Path:
    return self.out / "points" / self.name

  @property
  def workdir(self) -> Path:
    return self.out / "runs" / self.name

  @property
  def trunk_workdir(self) -> Path:
    return self.out / "runs" / self.trunk


@dataclasses.dataclass(frozen=True)
class Index:
  """A sweep on disk."""

  source: str
  baseline: str
  metric: str
  entries: tuple[Entry, ...]


@dataclasses.dataclass(frozen=True)
class State:
  """What became of a point. error: the last lines of its last complaint."""

  state: str = PLANNED
  attempts: tuple[dict, ...] = ()
  error: tuple[str, ...] = ()

  @property
  def status(self) -> int | None:
    """The exit status of the last attempt; None while there is none."""
    return self.attempts[-1].get("status") if self.attempts else None

  @property
  def seconds(self) -> float:
    """Of all its attempts together."""
    return sum(a.get("seconds") or 0.0 for a in self.attempts)


def is_sweep(folder: str | Path) -> bool:
  """Whether a folder is the --out of a sweep."""
  return (files.expanded(folder) / INDEX).is_file()


def read_index(out: str | Path) -> Index:
  """The sweep in a folder. Raises BadConfig where there is none."""
  out = files.expanded(out)
  if not is_sweep(out):
    raise BadConfig(
      f"--out={out} holds no sweep: there is no {INDEX} in it (start one with "
      "python -m aigc_jax.sweep --sweep=PATH.py --out=DIR)"
    )
  found = files.read_json(out / INDEX, error=BadConfig)
  records.check(found, _INDEX, str(out / INDEX), BadConfig)
  return Index(
    found["sweep"],
    found["baseline"],
    found["metric"],
    tuple(_entry(out, one) for one in found["points"]),
  )


def _entry(out: Path, one: dict) -> Entry:
  cost = Cost(*(one[f.name] for f in dataclasses.fields(Cost)))
  return Entry(
    out, one["name"], one["arm"], one["seed"], one["values"], cost,
    one.get("trunk", ""), one.get("branch_step", 0),
  )  # fmt: skip


def write(plan: Plan, out: str | Path) -> Index:
  """Puts a plan on disk; what is there of its points stays as it is.

  A point that is there under another name, as one from before a config had
  some new key, keeps that name. sweep.json is written last.
  """
  out = files.expanded(out)
  here = out.absolute()
  named = _known(out)
  names = [named.get(p.fingerprint, p.name) for p in plan.points]
  trunks = _trunks(plan, names)
  for folder in (out, out / "points", out / "runs"):
    folder.mkdir(parents=True, exist_ok=True)
  for point, name, trunk in zip(plan.points, names, trunks, strict=True):
    _write_point(point, here / "points" / name, here, trunk)
  rows = [
    {"name": name, "arm": point.arm, "seed": point.seed,
     "values": run.settings.plain_of(point.values)}
    | dataclasses.asdict(point.cost)
    | ({"trunk": trunk, "branch_step": point.branch_step} if trunk else {})
    for point, name, trunk in zip(plan.points, names, trunks, strict=True)
  ]  # fmt: skip
  content = {
    "sweep": plan.source,
    "baseline": plan.baseline,
    "metric": plan.metric,
    "points": rows,
  }
  if not is_sweep(out) or files.read_json(out / INDEX) != content:
    files.write_json(out / INDEX, content)
  return read_index(out)


def _trunks(plan: Plan, names: Sequence[str]) -> list[str]:
  """The names of the points that these are branches of; "" of none."""
  named = {
    p.fingerprint: name for p, name in zip(plan.points, names, strict=True)
  }
  return [named[p.trunk] if p.trunk else "" for p in plan.points]


def found_of(plan: Plan, out: str | Path) -> dict[str, Entry]:
  """{name in the plan: its entry} of points that are on disk already."""
  out = files.expanded(out)
  named = _known(out)
  names = [named.get(p.fingerprint, p.name) for p in plan.points]
  return {
    p.name: Entry(
      out, name, p.arm, p.seed, p.values, p.cost, trunk, p.branch_step
    )
    for p, name, trunk in zip(
      plan.points, names, _trunks(plan, names), strict=True
    )
    if p.fingerprint in named
  }


def _known(out: Path) -> dict[str, str]:
  """{fingerprint of its config, as it is read today: name} of each point."""
  found = {}
  for path in sorted(out.glob("points/*/config.json")):
    if not (path.parent / "point.json").is_file():
      continue  # killed between the two: it is written again
    try:
      config = run.read(files.read_json(path, error=BadConfig))
    except BadConfig:
      continue  # of a version that had other keys: no point of today's
    found[run.fingerprint(config)] = path.parent.name
  return found


def _write_point(
  point: Planned, folder: Path, out: Path, trunk: str = ""
) -> None:
  """Its config and command; once, but for a sweep that was moved.

  Where the trunk of a branch is, the command says: the config names it by its
  content, which no folder changes.
  """
  more = [f"--config.branch_from={out / 'runs' / trunk}"] if trunk else []
  record = {
    "command": [
      sys.executable, "-m", "aigc_jax.train",
      f"--config={folder / 'config.json'}",
      f"--workdir={out / 'runs' / folder.name}",
      *more,
    ],
    "folder": os.getcwd(),
    "out": str(out),
    "fingerprint": point.fingerprint,
  }  # fmt: skip
  path = folder / "point.json"
  if path.is_file() and files.read_json(path).get("out") == str(out):
    return
  folder.mkdir(parents=True, exist_ok=True)
  if not (folder / "config.json").is_file():
    files.write_json(folder / "config.json", point.config)
  files.write_json(path, record)


def strangers(index: Index, out: str | Path) -> list[str]:
  """Names of points on disk that the sweep has no more."""
  known = {entry.name for entry in index.entries}
  there = Path(out).glob("points/*/point.json")
  return sorted(p.parent.name for p in there if p.parent.name not in known)


def command_of(entry: Entry) -> tuple[list[str], str]:
  """(the words of its command, the folder to run it in), as stored.

  A folder of a sweep may come from elsewhere. So a command is run only where it
  trains this very point, and by the Python that runs this. Raises BadConfig.
  """
  path = entry.folder / "point.json"
  found = files.read_json(path, error=BadConfig)
  records.check(found, _POINT, str(path), BadConfig)
  if not _trains(entry, found["command"]):
    raise BadConfig(
      f"{path}: its command is not the one that trains this point in "
      f"{entry.out}, so it is not run: {shlex.join(found['command'])[:400]}\n"
      "Delete that file and give --sweep=PATH.py: it is written again"
    )
  if not Path(found["folder"]).is_dir():
    raise BadConfig(
      f"{path}: its command was written for the folder {found['folder']}, "
      "which is gone: make it again, or change 'folder' there"
    )
  return [sys.executable, *found["command"][1:]], found["folder"]


def _trains(entry: Entry, command: Sequence[str]) -> bool:
  """Whether it is the command that `_write_point` writes, python aside."""
  start = ["-m", "aigc_jax.train"]
  own = [("--config=", entry.folder / "config.json"),
         ("--workdir=", entry.workdir)]  # fmt: skip
  if entry.trunk:
    own.append(("--config.branch_from=", entry.trunk_workdir))
  given = command[3:]
  return (
    list(command[1:3]) == start
    and len(given) == len(own)
    and all(
      word.startswith(flag)
      and os.path.realpath(word.removeprefix(flag)) == os.path.realpath(path)
      for word, (flag, path) in zip(given, own, strict=True)
    )
  )


def config_of(entry: Entry) -> run.Config:
  """The config of a point, as training reads it."""
  return run.read(files.read_json(entry.folder / "config.json"))


def line_of(entry: Entry) -> str:
  """The command as it would be typed."""
  return shlex.join(command_of(entry)[0])


def state_of(entry: Entry) -> State:
  """What became of a point, by what is on disk and who is alive."""
  said, alive = _said(entry)
  state = said.state
  finished = (entry.workdir / "result.json").is_file()
  if lock.holder(entry.workdir) is not None:
    state = RUNNING
  elif state == RUNNING:
    state = RUNNING if alive else STALE
  elif state == DONE and not finished:
    state = STALE if entry.workdir.is_dir() else PLANNED
  if state == PLANNED and not can_begin(entry):
    state = WAITING
  return dataclasses.replace(said, state=state)


def can_begin(entry: Entry) -> bool:
  """Whether a point is no branch, or what it goes on from is there."""
  if not entry.trunk or (entry.workdir / "config.json").is_file():
    return True
  # Its manifest comes with the rename that makes a step whole.
  step = entry.trunk_workdir / "checkpoints" / str(entry.branch_step)
  return (step / "manifest.json").is_file()


def trunk_state(entry: Entry) -> str:
  """What became of the trunk of a branch."""
  trunk = dataclasses.replace(entry, name=entry.trunk, trunk="")
  return state_of(trunk).state


def waits_for(entry: Entry) -> str:
  """Why a branch has not begun, in words."""
  return (
    f"its trunk {entry.trunk} is {trunk_state(entry)} and has no checkpoint of "
    f"step {entry.branch_step}"
  )


def said_of(entry: Entry) -> State:
  """What its state.json says."""
  return _said(entry)[0]


def _said(entry: Entry) -> tuple[State, bool]:
  """(what state.json says, whether who wrote it is alive)."""
  path = entry.folder / "state.json"
  if not path.is_file():
    return State(), False
  found = files.read_json(path, error=BadConfig)
  records.check(found, _STATE, str(path), BadConfig)
  recent = lock.is_recent(path.stat().st_mtime, RENEWED)
  return (
    State(found["state"], tuple(found["attempts"]), tuple(found["error"])),
    recent and lock.lives(found),
  )


def signs(entry: Entry) -> tuple[float | None, ...]:
  """The last signs of life of those who may still run a point; () of nobody.

  Of the sweep that keeps it and of its own process, be they ever so old.
  """
  path = entry.folder / "state.json"
  keeper = None
  if path.is_file():
    found = files.read_json(path, error=BadConfig)
    if found.get("state") == RUNNING and lock.lives(found):
      keeper = path.stat().st_mtime
  found = (keeper, lock.sign(entry.workdir))
  return found if any(s is not None for s in found) else ()


def write_state(entry: Entry, state: State, pid: int | None = None) -> None:
  """What became of a point, kept by process `pid` while it runs."""
  files.write_json(
    entry.folder / "state.json",
    {
      "state": state.state,
      "attempts": list(state.attempts),
      "error": list(state.error),
      "pid": pid,
      "host": socket.gethostname() if pid else None,
      "boot_id": lock.boot_id() if pid else None,
    },
  )


def renew(entries: Iterable[Entry]) -> None:
  """A sign of life for points that run."""
  for entry in entries:
    os.utime(entry.folder / "state.json")


def error_lines(path: Path, start: int) -> tuple[str, ...]:
  """The last lines of a file after its byte `start`."""
  try:
    with open(path, "rb") as file:
      size = file.seek(0, os.SEEK_END)
      file.seek(max(start, size - TAIL_BYTES))
      text = file.read().decode(errors="replace")
  except OSError:
    return ()
  # A bar that moved the cursor is many lines in one: its last state counts.
  lines = [line.rpartition("\r")[2].rstrip() for line in text.splitlines()]
  return tuple([line for line in lines if line][-ERROR_LINES:])


def counts(states: Sequence[State]) -> dict[str, int]:
  """{state: how many points are in it}, every state in order."""
  return {s: sum(x.state == s for x in states) for s in STATES}
