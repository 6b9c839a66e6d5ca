"""What a run says: metrics.jsonl, events.jsonl, TensorBoard, the console.

metrics.jsonl is the source of truth: one object a line, in the order of the
steps. Every row has `step`, what the run had consumed by then (`examples`,
other units of its data such as `tokens`, `flops`), and `seconds`. Only
`seconds` and names under "speed/" depend on time; the rest of a run that was
interrupted and continued equals that of one that never was. A number that is
not finite is written as null.

A full disk stops none of this: lines wait in memory, with a warning, and are
written in order when there is room again.
"""

import bisect
import dataclasses
import json
import math
import os
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
from absl import logging

from aigc_jax import files, records
from aigc_jax.errors import (
  BadConfig,
  BadData,
  StorageFailure,
  WorkdirInUse,
)
from aigc_jax.records import COUNT
from aigc_jax.terminal import counted
from aigc_jax.trainer import faults
from aigc_jax.trainer.console import Console
from aigc_jax.trainer.consumed import Consumed
from aigc_jax.trainer.written import Written, differences, is_evaluation

METRICS = "metrics.jsonl"
EVENTS = "events.jsonl"
CUT = "metrics.cut.jsonl"
# A row of METRICS: numbers, of which some may not have been finite.
ROW = {"step": COUNT, str: (float, None)}
EVENT = {"event": str, "step?": (COUNT, None)}


def rows(path: str | Path, form: Mapping = ROW) -> list[dict]:
  """The rows of a file of JSON lines; what is none is left out, and told."""
  found = (line.row for line in _lines(Path(path), form))
  return [row for row in found if row is not None]


def _lines(path: Path, form: Mapping = ROW) -> list[files.Line]:
  """All lines; those that hold no row of this form have none, and are told."""
  found = []
  for line in files.read_lines(path) if os.path.lexists(path) else ():
    if line.row is not None:
      try:
        records.check(line.row, form, "it")
      except BadData as error:
        line = line._replace(row=None, fault=str(error))
    if line.row is None:
      logging.warning(
        "%s: a broken line at byte %d: %s", path, line.offset, line.fault
      )
    found.append(line)
  return found


def _whole(path: Path) -> list[tuple[bytes, dict]]:
  """The lines that hold a row, with it."""
  return [(x.data, x.row) for x in _lines(path) if x.row is not None]


def what_is_gone(workdir: Path, step: int, then: Mapping) -> str:
  """What METRICS lacks of what it held when `step` was saved; "" for nothing.

  then: `Journal.written` of that moment.
  """
  found = differences(then, _whole(workdir / METRICS))
  if not found:
    return ""
  return (
    f"{METRICS} is not what it was when step {step} was saved ({found}). What "
    "is gone does not come back by itself: put back a copy of that file, if "
    "there is one, while no run writes here"
  )


def copy_later(
  path: Path, step: int, aside: Path
) -> tuple[bytes, list[str]] | None:
  """Adds the rows of `path` that are to go to `aside`; what is to stay.

  Those after `step` go, and each that cannot be where it stands: whose step is
  no number, or does not rise over the rows around it. One wrong digit takes no
  other row with it. Returns (the lines that stay, a line of text for each that
  is out of place), or None where all stay.

  What `aside` ends with already is not added again. Raises StorageFailure, and
  leaves `aside` as it was, where that cannot be written: who would drop the
  rows then loses them.
  """
  lines = _lines(path)
  if lines and not lines[-1].data.endswith(b"\n"):
    lines.pop()  # of a dying process; `Lines` drops it
  rows = [line.row for line in lines]
  late = {i for i, row in enumerate(rows) if row and row["step"] > step}
  kept = _rising(rows, late)
  if len(kept) == len(lines):
    return None
  content = b"".join(x.data for i, x in enumerate(lines) if i not in kept)
  if not _ends_with(aside, content):
    try:
      faults.hit("journal/copy")
      files.append(aside, content)
    except (OSError, StorageFailure) as error:
      raise StorageFailure(
        f"the rows after step {step} cannot be kept, so nothing is changed: "
        f"{error}. Make room and run again"
      ) from error
  odd = [
    f"line {i + 1} is out of place: {line.data[:80].decode(errors='replace')}"
    for i, line in enumerate(lines)
    if i not in kept and (i not in late or i < max(kept, default=0))
  ]
  return b"".join(lines[i].data for i in sorted(kept)), odd


def _ends_with(path: Path, content: bytes) -> bool:
  if not path.is_file():
    return False
  with files.opened(path, StorageFailure) as file:
    file.seek(max(0, path.stat().st_size - len(content)))
    return file.read() == content


class Lines:
  """A file of JSON lines to which whole lines are appended.

  A line that cannot be written waits for the next `add`. At most
  `most_waiting` lines wait; beyond that the oldest are lost and counted.
  """

  def __init__(self, path: Path, most_waiting: int = 100_000):
    self.path = path
    self.lost = 0
    self._waiting: list[bytes] = []
    self._most = most_waiting
    self._told = 0
    self._fd = -1

  def add(self, row: Mapping) -> bytes:
    """Writes a row; returns its line."""
    line = json.dumps(row, separators=(",", ":"), allow_nan=False)
    self._waiting.append(line.encode() + b"\n")
    line = self._waiting[-1]
    self.flush()
    return line

  def flush(self, sync: bool = False) -> bool:
    """Writes what waits; False where that failed."""
    try:
      self._open()
      while self._waiting:
        faults.hit("journal/append")
        files.append_to(self._fd, self._waiting[0])
        self._waiting.pop(0)
      if sync:
        os.fsync(self._fd)
    except (OSError, StorageFailure) as error:
      if len(self._waiting) >= 10 * self._told:
        self._told = max(1, len(self._waiting))
        logging.error(
          "%s cannot be written (%s): kept in memory are %s",
          self.path, error, counted(len(self._waiting), "line"),
        )  # fmt: skip
      self.lost += max(0, len(self._waiting) - self._most)
      del self._waiting[: -self._most]
      return False
    self._told = 0
    return True

  def _open(self) -> None:
    if self._fd >= 0:
      return
    fd = files.open_own(self.path, os.O_RDWR | os.O_APPEND)
    size = os.fstat(fd).st_size
    if size and os.pread(fd, 1, size - 1) != b"\n":
      # A dying process left half a line.
      os.ftruncate(fd, self.path.read_bytes().rfind(b"\n") + 1)
    self._fd = fd

  def cut(self, step: int, aside: Path) -> list[str]:
    """Drops the rows after `step` and those out of place, copied to `aside`.

    Returns a line for each row out of place.
    """
    found = copy_later(self.path, step, aside)
    if found is None:
      return []
    kept, odd = found
    self.close(flush=False)
    files.write_bytes(self.path, kept)
    return odd

  def close(self, flush: bool = True) -> None:
    if flush:
      self.flush(sync=True)
    if self._fd >= 0:
      os.close(self._fd)
      self._fd = -1


def _place(row: Mapping) -> tuple[int, bool]:
  """Where a row belongs: by its step, and evaluations after training."""
  return row["step"], is_evaluation(row)


def _rising(rows: list[dict | None], without: set[int]) -> set[int]:
  """The longest choice of rows whose places rise, as their indices."""
  ends: list[int] = []  # of the best choice of each length, its last row
  before: dict[int, int | None] = {}
  for i, row in enumerate(rows):
    if row is None or i in without:
      continue
    at = bisect.bisect_left(ends, _place(row), key=lambda k: _place(rows[k]))
    before[i] = ends[at - 1] if at else None
    ends[at : at + 1] = [i]
  found, last = set(), ends[-1] if ends else None
  while last is not None:
    found.add(last)
    last = before[last]
  return found


def wandb_run(workdir: Path, project: str, config: Mapping, anew: bool = False):
  """A run of Weights & Biases that continues when `workdir` does.

  anew: it is one of its own from now on, as that of a copy is.
  """
  try:
    import wandb
  except ImportError as error:
    raise BadConfig(
      "--wandb needs the package wandb: pip install 'aigc_jax[wandb]'"
    ) from error
  path = workdir / "wandb.id"
  if anew or not os.path.lexists(path):
    files.write_text(path, secrets.token_hex(8))
  return wandb.init(
    project=project,
    id=files.content(path, 256).decode("utf-8", "replace").strip(),
    resume="allow",
    dir=str(workdir),
    config=dict(config),
  )


@dataclasses.dataclass(frozen=True)
class Picture:
  """What may stand among the metrics of an evaluation: a PNG file.

  TensorBoard shows it. It is no number, and in no row of METRICS.
  """

  png: bytes
  height: int
  width: int
  channels: int


class Journal:
  """The voice of one run; processes other than the first keep silent.

  `step` is the one the run continues from: later rows are cut. `fence` raises
  when the work directory has become another process's.
  """

  def __init__(
    self,
    workdir: str | Path,
    *,
    step: int = 0,
    total_steps: int = 0,
    tensorboard: bool = True,
    wandb=None,
    console: Console | None = None,
    fence: Callable[[], None] = lambda: None,
  ):
    self.workdir = Path(workdir)
    self.speaks = jax.process_index() == 0
    self._fence = fence
    self._wandb = wandb if self.speaks else None
    self._metrics = Lines(self.workdir / METRICS)
    self._events = Lines(self.workdir / EVENTS)
    self._board = None  # of TensorBoard
    self._seconds = 0.0
    self._evaluated = -1
    self._written = Written()
    self.last: dict = {}  # the newest value of every metric that stands here
    self._console = console if self.speaks else None
    odd: list[str] = []
    if self.speaks:
      try:
        odd = self._metrics.cut(step, self.workdir / CUT)
        self._read_back()
      except OSError as error:
        raise StorageFailure(f"{self.workdir / METRICS}: {error}") from error
      if tensorboard:
        # Imported here: where torch is, it is imported with it, for seconds
        # that no other command needs.
        from aigc_jax.trainer.board import Board

        self._board = Board(self.workdir / "tensorboard", step)
      if self._console is None and total_steps:
        self._console = Console(total_steps, step)
    self._began = time.monotonic()
    for line in odd:
      logging.warning("%s: %s; kept in %s", METRICS, line, CUT)
      self.event("row_set_aside", step, reason=line)

  def _read_back(self) -> None:
    for line, row in _whole(self.workdir / METRICS):
      self._written.add(line, row)
      self.last |= row
      seconds = row.get("seconds")
      if isinstance(seconds, int | float):
        self._seconds = max(self._seconds, seconds)
      if is_evaluation(row):
        self._evaluated = row.get("step", -1)

  def evaluated(self, step: int) -> bool:
    """Whether the evaluation of `step` stood here before this process."""
    return self._evaluated == step

  def row(
    self, step: int, metrics: Mapping, consumed: Consumed | None = None
  ) -> dict:
    """Writes the metrics of `step`; returns the row as written.

    consumed: by the run up to that step. Of pictures alone there is no row.
    """
    pictures = {k: x for k, x in metrics.items() if isinstance(x, Picture)}
    if pictures:
      if self._board:
        self._board.pictures(step, pictures)
      metrics = {k: x for k, x in metrics.items() if k not in pictures}
      if not metrics:
        return {}
    seconds = self._seconds + time.monotonic() - self._began
    row = {
      "step": step,
      **(consumed or Consumed()).as_row(),
      "seconds": round(seconds, 3),
    } | {name: number(value) for name, value in metrics.items()}
    if not self.speaks:
      return row
    self._fence()
    self._written.add(self._metrics.add(row), row)
    if self._board:
      self._board.add(step, row)
    if self._console:
      self._console.row(row)
    if self._wandb:
      try:
        self._wandb.log(row, step=step)
      except Exception as error:
        logging.error("wandb: %s", error)
    return row

  def written(self) -> dict:
    """What stands in METRICS by now, for the meta of a checkpoint."""
    return self._written.as_meta()

  def compare(self, step: int, then: Mapping) -> None:
    """Tells where METRICS lacks what it held when `step` was saved.

    then: `written` of that moment. A run goes on all the same: what it learns
    does not depend on its rows.
    """
    if not self.speaks or then == self._written.as_meta():
      return
    found = what_is_gone(self.workdir, step, then)
    if found:
      logging.warning("%s", found)
      self.event("rows_gone", step, reason=found)

  def event(self, kind: str, step: int | None = None, **fields) -> None:
    """Writes something that happened, with its time, for people."""
    if not self.speaks:
      return
    self._fence()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    self._events.add({"time": stamp, "event": kind, "step": step} | fields)

  def say(self, text: str) -> None:
    """A line for the person at the terminal."""
    if self._console:
      self._console.say(text)

  def compiling(self, seconds: float) -> None:
    """Says on the console that a compilation goes on, where it takes long."""
    if self._console:
      self._console.compiling(seconds)

  def progress(self, step: int) -> None:
    if self._console:
      self._console.move(step)

  def config(self, step: int, config: Mapping) -> None:
    """The config, for whoever looks at the curves in TensorBoard."""
    if self._board:
      lines = json.dumps(config, indent=2).splitlines()
      self._board.text(step, "config", "\n".join(f"    {x}" for x in lines))

  def sync(self) -> None:
    """Everything said so far is on the disk, as far as that works."""
    if self.speaks:
      self._metrics.flush(sync=True)
      self._events.flush(sync=True)
      if self._board:
        self._board.flush()

  def write(self, name: str, content: Mapping) -> None:
    """Replaces the JSON file `name` of the work directory in one move."""
    if self.speaks:
      files.write_json(self.workdir / name, content)

  def close(self) -> None:
    if self._console:
      self._console.close()
    if self.speaks:
      ours = self._ours()
      if ours:
        self.sync()
      self._metrics.close(flush=ours)
      self._events.close(flush=ours)
    if self._wandb:
      self._wandb.finish()

  def _ours(self) -> bool:
    try:
      self._fence()
    except (WorkdirInUse, StorageFailure):
      return False
    return True

  def __enter__(self) -> "Journal":
    return self

  def __exit__(self, *_) -> None:
    self.close()


def number(value):
  """A Python number for JSON; None where it is not finite."""
  value = value.item() if hasattr(value, "item") else value
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
