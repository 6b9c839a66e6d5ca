"""A sweep on a terminal: a live table; elsewhere a line for each event."""

import sys
import time
from collections.abc import Sequence

from rich import box, console, live, table, text

from aigc_jax import terminal
from aigc_jax.errors import BadConfig
from aigc_jax.planning import summary
from aigc_jax.scaling.sweeps import ledger, work
from aigc_jax.scaling.sweeps.ledger import (
  DONE,
  FAILED,
  PLANNED,
  WAITING,
  Entry,
  State,
)
from aigc_jax.terminal import counted

NONE = "-"
MOST = 12  # running points that a live table shows


def duration(seconds: float | None) -> str:
  """3725 as "1:02:05"; "-" for what is not known."""
  if seconds is None:
    return NONE
  whole = round(seconds)
  hours, minutes = whole // 3600, whole // 60 % 60
  if hours:
    return f"{hours}:{minutes:02d}:{whole % 60:02d}"
  return f"{minutes}:{whole % 60:02d}"


def plan_table(
  entries: Sequence, seconds: Sequence[float | None], states: Sequence[str]
) -> str:
  """What --dry_run prints: each point, what it sets, what it takes.

  entries: Planned or Entry. states: of each, "" where nothing is on disk.
  """
  units = dict.fromkeys(entry.cost.unit for entry in entries)
  header = (
    "point", "arm", "sets", "state", "parameters", " and ".join(units), "FLOPs",
    "time",
  )  # fmt: skip
  shared = _shared([entry.values for entry in entries])
  rows = [
    (
      entry.name,
      entry.arm,
      sets({k: v for k, v in entry.values.items() if k not in shared}),
      state,
      f"{entry.cost.parameters:,}",
      f"{entry.cost.amount:,}",
      f"{entry.cost.flops:.4g}",
      duration(one),
    )
    for entry, one, state in zip(entries, seconds, states, strict=True)
  ]
  known = [one for one in seconds if one is not None]
  total = (
    counted(len(rows), "point"),
    "", "", "", "",
    f"{sum(e.cost.amount for e in entries):,}" if len(units) == 1 else NONE,
    f"{sum(e.cost.flops for e in entries):.4g}",
    duration(sum(known)) if len(known) == len(rows) else NONE,
  )  # fmt: skip
  text = summary.table(header, [*rows, total])
  return f"{text}\n\nall set: {sets(shared)}" if shared else text


def _shared(values: Sequence[dict]) -> dict:
  """What all points set alike; nothing of one point alone."""
  if len(values) < 2:
    return {}
  return {
    key: value
    for key, value in values[0].items()
    if all(key in one and one[key] == value for one in values)
  }


def status_table(
  entries: Sequence[Entry], states: Sequence[State], metric: str
) -> str:
  """What --status prints: each point, what became of it, its result."""
  header = ("point", "state", "attempts", "time", metric, "why")
  rows = []
  for entry, state in zip(entries, states, strict=True):
    value = work.value_of(entry, metric)
    why = ""
    if state.state == WAITING:
      why = ledger.waits_for(entry)
    elif state.state not in (DONE, PLANNED):
      why = terminal.shown(work.described(state))
    rows.append(
      (
        entry.name,
        state.state,
        str(len(state.attempts)),
        duration(state.seconds or None),
        NONE if value is None else terminal.score(value),
        why,
      )
    )
  # Its last column is text of any length: left, as the others are.
  lines = summary.table(header, rows).splitlines()
  return "\n".join(line.rstrip() for line in lines)


def sets(values: dict) -> str:
  """The keys that a point sets."""
  return " ".join(f"{key}={value}" for key, value in values.items())


def summed_up(entries: Sequence[Entry], metric: str) -> str:
  """ "5 done, 1 failed of 6; best: eval/heldout/loss 3.1 (NAME)"."""
  states = [ledger.state_of(entry) for entry in entries]
  counted = ledger.counts(states)
  words = ", ".join(f"{n} {state}" for state, n in counted.items() if n)
  best = ""
  try:
    if found := work.best_of(entries, metric):
      entry, by, value = found
      best = f"; best {by} {terminal.score(value)} ({entry.name})"
  except BadConfig as error:
    best = f"; none is the best: {error}"
  return f"{words} of {len(entries)}{best}"


class Lines:
  """A line for each point that starts or ends."""

  def __init__(self, entries: Sequence[Entry], metric: str):
    self._total = len(entries)
    self._metric = metric
    self._done = sum(ledger.state_of(e).state == DONE for e in entries)
    self._left: float | None = None

  def __enter__(self) -> "Lines":
    return self

  def __exit__(self, *_) -> None:
    pass

  def started(self, entry: Entry, state: State) -> None:
    again = len(state.attempts) - 1
    self.say(
      f"{entry.name}: started" + (f" (attempt {again + 1})" * bool(again))
    )

  def ended(self, entry: Entry, state: State, value: float | None) -> None:
    self._done += state.state == DONE
    words = [f"{entry.name}: {state.state}"]
    if value is not None and state.state == DONE:
      words.append(f"{self._metric} {terminal.score(value)}")
    words.append(f"in {duration(state.attempts[-1]['seconds'])}")
    words.append(f"({self._done} of {self._total} done{self._until()})")
    self.say(" ".join(words))
    if state.state == FAILED:
      for line in state.error:
        self.say(f"  | {line}")

  def left_out(self, entry: Entry, why: str) -> None:
    self.say(f"{entry.name}: not run, {why}")

  def shows(self, rows, left: float | None) -> None:
    self._left = left

  def _until(self) -> str:
    return "" if self._left is None else f", {duration(self._left)} left"

  def say(self, line: str) -> None:
    try:
      print(terminal.shown(line), file=sys.stderr, flush=True)
    except OSError:
      pass  # the terminal is gone; the points are not


class Live(Lines):
  """A table of what runs, below the lines of what ended."""

  def __init__(self, entries: Sequence[Entry], metric: str):
    super().__init__(entries, metric)
    self._entries = entries
    self._began = time.monotonic()
    self._live = live.Live(
      console=console.Console(file=terminal.plain(sys.stderr)),
      refresh_per_second=4,
      transient=True,
    )

  def __enter__(self) -> "Live":
    self._live.__enter__()
    return self

  def __exit__(self, *exc) -> None:
    self._live.__exit__(*exc)

  def started(self, entry: Entry, state: State) -> None:
    pass  # the table shows it

  def shows(self, rows, left: float | None) -> None:
    super().shows(rows, left)
    self._live.update(self.picture(rows))

  def picture(self, rows) -> console.Group:
    """What runs, with step and loss; below it the counts."""
    shown = table.Table(box=box.SIMPLE, title_justify="left")
    for name in ("running", "step", "loss"):
      shown.add_column(name, justify="left" if name == "running" else "right")
    for entry, row in rows[:MOST]:
      loss = row.get("train/loss")
      shown.add_row(
        text.Text(terminal.shown(entry.name)),
        f"{row.get('step', 0)}/{entry.cost.steps}",
        NONE if loss is None else f"{loss:.4g}",
      )
    if len(rows) > MOST:
      shown.add_row(f"and {len(rows) - MOST} more", "", "")
    spent = duration(time.monotonic() - self._began)
    words = summed_up(self._entries, self._metric)
    counts = terminal.shown(f"{words}; {spent} so far{self._until()}")
    return console.Group(shown, text.Text(counts))

  def say(self, line: str) -> None:
    self._live.console.print(
      terminal.shown(line), markup=False, highlight=False
    )


def view_of(entries: Sequence[Entry], metric: str) -> Lines:
  """The live table on a terminal, lines elsewhere."""
  return (Live if sys.stderr.isatty() else Lines)(entries, metric)
