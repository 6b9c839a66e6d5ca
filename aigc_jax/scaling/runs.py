"""Runs as reports see them: what a work directory says, read as data."""

import dataclasses
import functools
import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aigc_jax import files, run, tree
from aigc_jax.errors import BadConfig, nearest
from aigc_jax.run.settings import SECTIONS
from aigc_jax.scaling import results
from aigc_jax.scaling.sweeps import ledger
from aigc_jax.trainer.changes import HARMLESS
from aigc_jax.trainer.journal import EVENT, EVENTS, METRICS, rows

KEY = re.compile(r"[\w.\[\]-]{1,80}")  # of a config
# What a row says of how far the run has come.
AXES = ("step", "tokens", "examples", "flops", "seconds")
FINISHED, UNFINISHED, DIVERGED = "finished", "unfinished", "diverged"
GAMES = ("adversarial", "vqgan")  # objectives whose loss need not fall
FEW = 5  # rows at each end by which a loss has grown
# Of a run.json, what a file of results keeps.
ABOUT = (
  "seed", "steps", "data_fingerprint", "tokenizer_fingerprint",
  "heldout_fingerprints", "heldout_texts", "parameters", "objective",
)  # fmt: skip
# How deep below a folder that is no run its runs are looked for.
DEPTH = 3


@dataclasses.dataclass(frozen=True)
class Record:
  """A run: its configuration, where it comes from, its rows.

  name: the end of its path that no other run of the report shares.
  config, about, result: {} where the work directory lacks the file. arm and
  values: what a sweep calls it and sets in it. said: its status, where a file
  of results says it. waits: why it has no rows, a point that never began.
  """

  path: Path
  name: str
  config: dict
  about: dict
  result: dict
  rows: list[dict]
  arm: str = ""
  values: dict = dataclasses.field(default_factory=dict)
  said: str = ""
  waits: str = ""

  @property
  def seed(self) -> int | None:
    """The seed it was started with; None where nothing says it."""
    known = self.config if "seed" in self.config else self.about
    return known.get("seed")

  @property
  def planned(self) -> int | None:
    """How many steps it is to take; None where nothing says it."""
    known = self.config if "steps" in self.config else self.about
    return known.get("steps")

  @property
  def last_step(self) -> int:
    """The last step that a row speaks of; 0 without rows."""
    return max((row.get("step") or 0 for row in self.rows), default=0)

  @functools.cached_property
  def metrics(self) -> list[str]:
    """The names of all it measured, sorted."""
    return sorted({k for row in self.rows for k in row} - set(AXES))

  def series(self, metric: str, against: str) -> tuple:
    """(x, y), float64, in the order of the rows; NaN for what is not finite.

    Raises BadConfig, with the names there are, for a metric or an axis that
    no row has.
    """
    found = [
      (row[against], row[metric])
      for row in self.rows
      if metric in row and row.get(against) is not None
    ]
    if not found:
      self._refuse(metric, against)
    x, y = zip(*found, strict=True)
    return _floats(x, against, self.path), _floats(y, metric, self.path)

  def _refuse(self, metric: str, against: str) -> None:
    if not self.rows:
      raise BadConfig(
        f"{self.path} has no rows in its {METRICS}: it never came to a step"
      )
    if metric in self.metrics:
      axes = [a for a in AXES if any(r.get(a) is not None for r in self.rows)]
      raise BadConfig(
        f"{self.path} does not count {against!r} (its rows have: "
        f"{', '.join(axes)})"
      )
    raise BadConfig(
      f"{self.path} has no {metric!r} in its metrics"
      f"{nearest(metric, self.metrics)} (there are: "
      f"{', '.join(self.metrics) or 'none'})"
    )

  @property
  def objective(self) -> str:
    """Its kind; "" where nothing says it."""
    found = self.config["objective"] if "objective" in self.config else {}
    return found.get("kind", "")

  @functools.cached_property
  def status(self) -> str:
    """finished, unfinished or diverged.

    Diverged: its training loss ends as no number, or well above where it
    began (but that of a game, in which one player loses what the other wins),
    or the run gave up for losses that were none. Finished: it left a
    result or a row of its last step; also where nothing says which is its last.
    """
    if self.said:
      return self.said
    losses = [r["train/loss"] for r in self.rows if "train/loss" in r]
    if losses and not _finite(losses[-1]):
      return DIVERGED
    if self.objective not in GAMES and _grown(losses):
      return DIVERGED
    if self.events and self.events[-1].get("event") == "non_finite":
      return DIVERGED
    if not self.rows:
      return UNFINISHED
    if self.planned is None:  # a total says when it ends, or nothing does
      return FINISHED if self.result or not self.config else UNFINISHED
    done = max(self.result.get("step", 0), self.last_step)
    return FINISHED if done >= self.planned else UNFINISHED

  @functools.cached_property
  def events(self) -> list[dict]:
    """What happened to it, as its journal says."""
    return rows(self.path / EVENTS, EVENT)

  @functools.cached_property
  def changed(self) -> list[str]:
    """What of its config was another before, a sentence each.

    Changes of what is only computed or measured otherwise are left out.
    """
    return [
      _told(event)
      for event in self.events
      if event["event"] == "change"
      and KEY.fullmatch(str(event.get("key", "")))
      and event["key"].partition(".")[0] in SECTIONS
      and not tree.match(HARMLESS, event["key"].replace(".", "/"))
    ]


def _told(change: Mapping) -> str:
  """ "optim.clip was 1.0 until step 8, and 2.0 from there on"."""
  old, new = (json.dumps(change.get(k))[:40] for k in ("old", "new"))
  step = change.get("step")
  return f"{change['key']} was {old} until step {step}, and {new} from there on"


def _grown(losses: Sequence) -> bool:
  """Whether the last losses are all well above the first ones.

  Of one row nothing is said: that of a run which begins with trained parameters
  is small, and noise.
  """
  few = min(FEW, max(1, len(losses) // 4))
  known = [x for x in losses if _finite(x)]
  if len(known) < 2:
    return False
  return min(known[-few:]) > 1.1 * max(map(abs, known[:few]))


def _finite(value) -> bool:
  return isinstance(value, int | float) and math.isfinite(value)


def _floats(values: Sequence, name: str, path: Path) -> np.ndarray:
  """As float64, null as NaN; raises BadConfig for what is no number."""
  for value in values:
    if isinstance(value, bool) or not isinstance(value, int | float | None):
      raise BadConfig(f"{path}: {name!r} is no number but {value!r}")
  return np.array([math.nan if v is None else v for v in values], np.float64)


def open_runs(words: Sequence[str], *, waiting: bool = False) -> list[Record]:
  """The runs in these folders: work directories, folders of those, sweeps.

  A word may also name a file of results, see `results`. waiting: also points of
  a sweep that have not begun. Raises BadConfig where a folder is missing, holds
  no run, or is named twice.
  """
  found: list[Record] = []
  for word in words:
    for one in _runs_of(word, waiting):
      same = (one.path.resolve(), one.name if results.is_file(word) else "")
      for other in found:
        known = other.name if results.is_file(str(other.path)) else ""
        if same == (other.path.resolve(), known):
          raise BadConfig(f"{one.path} is named twice: one run counts once")
      found.append(one)
  parts = [_parts(one) for one in found]
  names = distinct(parts)
  return [
    dataclasses.replace(one, name=name)
    for one, name in zip(found, names, strict=True)
  ]


def _parts(one: Record) -> Sequence[str]:
  """What a name is made of: the folders above a run, or a file's own name."""
  if results.is_file(str(one.path)):
    return (str(one.path), one.name)
  return one.path.resolve().parts


def _runs_of(word: str, waiting: bool) -> list[Record]:
  if results.is_file(word):
    return [_of_results(word, one) for one in results.read(word)]
  if ledger.is_sweep(files.expanded(word)):
    return _of_sweep(word, waiting)
  return [_opened(path) for path in _runs_below(word)]


def _opened(path: Path, **more) -> Record:
  return Record(
    path=path,
    name="",
    config=_read(run.config_in, path, "config.json"),
    about=_read(run.provenance_in, path, "run.json"),
    result=_read(run.result_in, path, "result.json"),
    rows=rows(path / METRICS),
    **more,
  )


def _of_sweep(word: str, waiting: bool) -> list[Record]:
  """The points of a sweep, in its order and under its arms."""
  found = []
  for entry in ledger.read_index(word).entries:
    more: dict[str, Any] = dict(arm=entry.arm, values=entry.values)
    if _is_run(entry.workdir):
      found.append(_opened(entry.workdir, **more))
    elif waiting:
      state = ledger.state_of(entry)
      why = f"{state.state}, never came to a step"
      if state.error:
        why += f" ({state.error[-1]})"
      config = {"seed": entry.seed, "steps": entry.cost.steps}
      found.append(
        Record(entry.workdir, "", config, {}, {}, [], waits=why, **more)
      )
  if not found:
    raise BadConfig(
      f"{word} is a sweep none of whose points has begun: python -m "
      f"aigc_jax.sweep --out={shlex.quote(word)}"
    )
  return found


def _of_results(word: str, one: dict) -> Record:
  head = one["head"]
  about = {k: v for k, v in head.items() if k in ABOUT and v is not None}
  return Record(
    path=files.expanded(word),
    name=head["run"],
    config={},
    about=about,
    result={},
    rows=one["rows"],
    arm=head["arm"],
    values=head.get("values") or {},
    said=head["status"],
  )


def _read(reader, path: Path, name: str) -> dict:
  return reader(path) if (path / name).is_file() else {}


def _runs_below(word: str) -> list[Path]:
  path = files.expanded(word)
  if not path.exists():
    raise BadConfig(f"{word}: there is no such folder")
  if not path.is_dir():
    raise BadConfig(f"{word} is a file: expected the work directory of a run")
  if _is_run(path):
    return [path]
  found = [
    below
    for depth in range(1, DEPTH + 1)
    for below in sorted(path.glob("/".join("*" * depth)))
    if _is_run(below) and not any(_is_run(p) for p in _between(path, below))
  ]
  if not found:
    raise BadConfig(
      f"{word} holds no run: there is no {METRICS} in it nor in folders below "
      "it (expected the --workdir that training was given)"
    )
  return sorted(found)


def _between(above: Path, below: Path) -> list[Path]:
  return [p for p in below.parents if above in p.parents]


def _is_run(path: Path) -> bool:
  return (path / METRICS).is_file() or (path / "run.json").is_file()


def distinct(paths: Sequence[Sequence[str]]) -> list[str]:
  """For each path, its shortest end that is the end of no other."""

  def end(parts, length):
    return "/".join(parts[-length:])

  names = []
  for parts in paths:
    for length in range(1, len(parts) + 1):
      if sum(end(p, length) == end(parts, length) for p in paths) == 1:
        break
    names.append(end(parts, length))
  return names
