"""Running the points of a sweep that are not done, and noting what they became.

Which points those are is read from the disk, at the start and again for each
point, so that a sweep that was killed, extended or started elsewhere at the
same time does only what is missing.
"""

import collections
import contextlib
import dataclasses
import functools
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from aigc_jax import files, records, run
from aigc_jax.errors import BadConfig, BadData, Stopped, StorageFailure
from aigc_jax.scaling import comparable
from aigc_jax.scaling.runs import Record
from aigc_jax.scaling.sweeps import joint_runs, launch, ledger
from aigc_jax.scaling.sweeps.launch import Process, Share
from aigc_jax.scaling.sweeps.ledger import (
  DONE,
  FAILED,
  RUNNING,
  STALE,
  Entry,
  State,
)
from aigc_jax.scaling.sweeps.plan import Cost
from aigc_jax.trainer import lock
from aigc_jax.trainer.journal import METRICS, ROW

POLL, RENEW, LOOK = 0.1, 10.0, 1.0  # seconds
WATCH = 2 * RENEW  # until one without a new sign of life is gone
ROW_BYTES = 1 << 14


class View(Protocol):
  """Who shows what happens; see `progress`."""

  def started(self, entry: Entry, state: State) -> None: ...

  def ended(self, entry: Entry, state: State, value: float | None) -> None: ...

  def left_out(self, entry: Entry, why: str) -> None:
    """A branch that is not run, for its trunk is not there."""

  def shows(self, rows: list[tuple[Entry, dict]], left: float | None) -> None:
    """Is told now and then what runs, with its last row, and the time left."""


@dataclasses.dataclass
class Wish:
  """A wish to stop, from a signal: once to save, twice to end at once."""

  count: int = 0

  def __call__(self, *_) -> None:
    self.count += 1


def carry_out(
  entries: Sequence[Entry],
  *,
  launcher: str,
  shares: Sequence[Share],
  view: View,
  wish: Wish,
  metric: str,
  retry: bool = True,
  together: int = 1,
  patient: bool = False,
) -> None:
  """Runs every point that is not done, as many at once as there are shares.

  retry: those that failed too. together: how many points that differ in numbers
  only may be one program. Points that another process runs are waited
  for, and so is the trunk of a branch as long as somebody runs it; patient:
  also until somebody does. Returns when none is left that can be run, or after
  a wish once all have saved.
  """
  crew = _Crew(list(shares), launcher, view, wish, metric)
  waiting = collections.deque()
  for entry in entries:
    state = ledger.state_of(entry).state
    if state == DONE or (state == FAILED and not retry):
      continue
    watched = state == RUNNING or ledger.signs(entry)
    (crew.watched if watched else waiting).append(entry)
  try:
    while (waiting and not wish.count) or crew.running or crew.watched:
      if wish.count:
        crew.watched.clear()  # theirs to stop
      for entry in crew.free_again():
        waiting.append(entry)
      while waiting and crew.has_room() and not wish.count:
        group = _next(waiting, together)
        if not group:
          break
        crew.start(group)
      if waiting and crew.is_idle() and not _may_begin(waiting, patient):
        break
      crew.look(entries, waiting)
      time.sleep(POLL)
  except BaseException:
    crew.leave()
    raise
  if not wish.count:
    for entry in waiting:
      view.left_out(entry, ledger.waits_for(entry))


def _may_begin(waiting: Sequence[Entry], patient: bool) -> bool:
  """Whether one of these branches can begin, now or once its trunk is there."""
  for entry in waiting:
    if ledger.can_begin(entry):
      return True
    state = ledger.trunk_state(entry)
    if state == RUNNING or (patient and state not in (DONE, FAILED)):
      return True
  return False


def _next(waiting: collections.deque, together: int) -> list[Entry]:
  """The first point that can begin, and those that may train with it.

  None where all are branches whose trunks are not there. A branch begins with
  what others have computed, and trains alone.
  """
  first = next((e for e in waiting if ledger.can_begin(e)), None)
  if first is None:
    return []
  waiting.remove(first)
  if together < 2 or first.trunk:
    return [first]
  alike = joint_runs.group_of(ledger.config_of(first))
  others = [
    e
    for e in waiting
    if not e.trunk and joint_runs.group_of(ledger.config_of(e)) == alike
  ][: together - 1]
  for entry in others:
    waiting.remove(entry)
  return [first, *others]


class _Crew:
  """The points that run now, and the shares of the machine that are free."""

  def __init__(self, shares, launcher: str, view: View, wish: Wish, metric):
    self.running: list[Process] = []
    self.watched: list[Entry] = []
    self._free = shares
    self._launcher, self._view, self._wish = launcher, view, wish
    self._metric = metric
    self._asked = 0
    self._renewed = self._looked = time.monotonic()
    self._watch = self._looked  # when to look again at what others run
    self._silent: dict[str, tuple] = {}  # of those: (last signs, until when)

  def has_room(self) -> bool:
    """Whether one more may start; what an orphan uses is not free."""
    here = sum(_runs_here(entry) for entry in self.watched)
    return len(self._free) > here

  def is_idle(self) -> bool:
    """Whether nothing runs, here or watched."""
    return not self.running and not self.watched

  def start(self, entries: Sequence[Entry]) -> None:
    for entry in entries:
      ledger.command_of(entry)  # refused before anything is written of it
    share = self._free.pop(0)
    attempt = {"started": time.time(), "seconds": None, "status": None}
    attempt["cores"] = None if share.cores is None else list(share.cores)
    attempt["together"] = len(entries)
    for entry in entries:
      said = ledger.said_of(entry)
      state = State(RUNNING, (*said.attempts, attempt))
      ledger.write_state(entry, state, os.getpid())
      self._view.started(entry, state)
    self.running.append(launch.start(entries, self._launcher, share))

  def free_again(self) -> list[Entry]:
    """Notes what has ended; points of others that nobody runs any more."""
    for process in list(self.running):
      status = process.popen.poll()
      if status is not None:
        self.running.remove(process)
        self._free.append(process.share)
        self._free.sort(key=lambda share: share.slot)
        for entry in process.entries:
          state = _concluded(process, entry, status)
          ledger.write_state(entry, state)
          value = value_of(entry, self._metric)
          self._view.ended(entry, state, value)
    if time.monotonic() < self._watch:
      return []  # what others run is on the disk, and read now and then
    self._watch = time.monotonic() + LOOK
    left = []
    for entry in list(self.watched):
      state = ledger.state_of(entry).state
      if state != RUNNING and not self._may_live(entry):
        self.watched.remove(entry)
        if state != DONE:
          left.append(entry)
    return left

  def _may_live(self, entry: Entry) -> bool:
    """Whether who runs a point may live, though its last sign is old.

    A clock that is set makes a living one old at a stroke; so it is watched
    until it would have given another sign.
    """
    signs, now = ledger.signs(entry), time.monotonic()
    if not signs:
      return False
    seen, until = self._silent.get(entry.name, ((), 0.0))
    if seen != signs:
      seen, until = self._silent[entry.name] = signs, now + WATCH
    return now < until

  def look(self, entries: Sequence[Entry], waiting: Sequence[Entry]) -> None:
    """Passes a wish on, gives signs of life, shows what there is."""
    if self._wish.count > self._asked:
      self._asked = self._wish.count
      for process in self.running:
        number = launch.ASK if self._asked == 1 else launch.END
        process.signal(number)
    now = time.monotonic()
    if now > self._renewed + RENEW:
      self._renewed = now
      ledger.renew(self._entries())
    if now > self._looked + LOOK:
      self._looked = now
      active = self._entries() + self.watched
      rows = [(entry, last_row(entry.workdir / METRICS)) for entry in active]
      parallel = max(1, len(self._free) + len(self.running))
      self._view.shows(rows, _left(entries, waiting, rows, parallel))

  def _entries(self) -> list[Entry]:
    return [entry for process in self.running for entry in process.entries]

  def leave(self) -> None:
    """Ends what runs, for this process ends by an error of its own."""
    for process in self.running:
      process.signal(launch.ASK)


def _runs_here(entry: Entry) -> bool:
  holder = lock.holder(entry.workdir) or {}
  return holder.get("boot_id") == lock.boot_id()


def _concluded(process: Process, entry: Entry, status: int) -> State:
  """What a point became by its exit status and what it left."""
  said = ledger.said_of(entry)
  error = ledger.error_lines(process.error_file, process.error_start)
  if process.listed:
    outcomes = joint_runs.outcomes_in(process.listed)
    mine = outcomes.get(str(entry.workdir.absolute()))
    if mine is not None:
      status = mine["status"]
      error = tuple(mine["error"][-ledger.ERROR_LINES :]) or error
  last = dict(said.attempts[-1])
  last |= {"seconds": time.monotonic() - process.began, "status": status}
  attempts = (*said.attempts[:-1], last)
  if status == 0 and (entry.workdir / "result.json").is_file():
    return State(DONE, attempts)
  if status == Stopped.code:
    return State(STALE, attempts, error)
  if status == 0:
    error += (
      f"it ended with exit status 0 and left no result.json in "
      f"{entry.workdir}: a launcher must wait until its command has ended",
    )
  elif status < 0:
    error += (launch.ended(status),)
  return State(FAILED, attempts, error[-ledger.ERROR_LINES :])


def value_of(entry: Entry, metric: str) -> float | None:
  """The metric in the result of a point; None where it has none."""
  try:
    found = run.result_in(entry.workdir).get(metric)
  except (BadConfig, BadData, StorageFailure):
    return None
  return found if isinstance(found, int | float) else None


def best_of(
  entries: Sequence[Entry], metric: str
) -> tuple[Entry, str, float] | None:
  """The point with the best value among those that have one, by which metric.

  That is another one where only it may be compared. None where nothing says
  whether more or less is better. Raises BadConfig where no values of these
  points may be compared.
  """
  up = comparable.higher_is_better(metric)
  known = [(e, _ended(e)) for e in entries if value_of(e, metric) is not None]
  if not known or up is None:
    return None
  metric, _ = comparable.fair_metric([r for _, r in known], metric)
  values = [(r.result.get(metric), entry) for entry, r in known]
  values = [pair for pair in values if isinstance(pair[0], int | float)]
  if not values:
    return None
  value, best = (max if up else min)(values, key=lambda pair: pair[0])
  return best, metric, value


def _ended(entry: Entry) -> Record:
  """The run of a point as its result has it, without its other rows."""
  there = entry.workdir
  return _read(entry.name, there, (there / "result.json").stat().st_mtime_ns)


@functools.lru_cache(4096)  # a live table asks again and again
def _read(name: str, workdir: Path, changed: int) -> Record:
  del changed
  config, about = {}, {}
  with contextlib.suppress(BadConfig, BadData, StorageFailure):
    config = run.config_in(workdir)
  with contextlib.suppress(BadConfig, BadData, StorageFailure):
    about = run.provenance_in(workdir)
  result = run.result_in(workdir)
  return Record(workdir, name, config, about, result, [result])


def last_row(path: Path) -> dict:
  """The last whole row of a file that grows; {} without one."""
  try:
    with open(path, "rb") as file:
      size = file.seek(0, os.SEEK_END)
      file.seek(max(0, size - ROW_BYTES))
      lines = file.read().split(b"\n")[:-1]
  except OSError:
    return {}
  for line in reversed(lines):
    try:
      row = records.check(files.parse_json(line, str(path)), ROW, str(path))
    except BadData:
      continue
    if "train/loss" in row:
      return row
  return {}


def known_seconds(entries: Sequence[Entry]) -> list[tuple[Cost, float]]:
  """What points cost that went through in one attempt, with their seconds."""
  found = []
  for entry in entries:
    said = ledger.said_of(entry)
    alone = len(said.attempts) == 1 and said.attempts[0].get("together", 1) == 1
    if said.state == DONE and alone and said.seconds > 0:
      found.append((entry.cost, said.seconds))
  return found


def predicted(
  cost: Cost,
  known: Sequence[tuple[Cost, float]],
  flops_per_second: float | None = None,
) -> float | None:
  """Seconds that a point will take; None where nothing is known.

  By the finished point whose step is most alike in FLOPs, in proportion to all
  FLOPs; without one by a measured rate.
  """
  if known and cost.flops:
    near, seconds = min(known, key=lambda pair: _unlike(pair[0], cost))
    if near.flops:
      return seconds * cost.flops / near.flops
  return cost.flops / flops_per_second if flops_per_second else None


def _unlike(one: Cost, other: Cost) -> float:
  a, b = (max(c.flops, 1.0) / max(c.steps, 1) for c in (one, other))
  return max(a, b) / min(a, b)


def _left(entries, waiting, rows, parallel: int) -> float | None:
  """Seconds until all is done, by what is done; None while nothing is."""
  known = known_seconds(entries)
  total = 0.0
  for entry in waiting:
    seconds = predicted(entry.cost, known)
    if seconds is None:
      return None
    total += seconds
  for entry, row in rows:
    seconds = predicted(entry.cost, known)
    if seconds is None:
      return None
    total += seconds * (1 - row.get("step", 0) / max(entry.cost.steps, 1))
  return total / parallel


def bench_rate(path: str) -> float:
  """FLOP/s of a file that `python -m aigc_jax.bench` wrote."""
  found = files.read_json(files.expanded(path), error=BadConfig)
  rate = found.get("flops_per_second")
  if not isinstance(rate, int | float) or not rate > 0:
    raise BadConfig(
      f"--bench={path} has no flops_per_second: name a file that python -m "
      "aigc_jax.bench --config=... wrote"
    )
  return float(rate)


def described(state: State) -> str:
  """How the last attempt ended, in a few words."""
  if state.status is None:
    return ""
  words = launch.ended(state.status)
  return f"{words}: {state.error[-1]}" if state.error else words


def as_json(entries: Sequence[Entry], metric: str) -> str:
  """All points with what became of them, as JSON."""
  rows = []
  for entry in entries:
    state = ledger.state_of(entry)
    rows.append(
      {
        "name": entry.name,
        "arm": entry.arm,
        "seed": entry.seed,
        "values": entry.values,
        "state": state.state,
        "attempts": len(state.attempts),
        "status": state.status,
        "seconds": state.seconds,
        "error": list(state.error),
        "value": value_of(entry, metric),
        "workdir": str(entry.workdir),
      }
    )
  return json.dumps({"metric": metric, "points": rows}, indent=1)
