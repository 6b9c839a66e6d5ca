"""What metrics.jsonl held when a checkpoint was saved, as its meta notes it.

  {"count": 120, "sha256": "...", "trained": [[1, 100, 1]],
   "evaluated": [[0, 100, 5]]}

The rows that were there, the sha256 of their bytes, and the steps of those of
training and of evaluation, as runs [first, last, every]. A row that is taken
out later, or altered, leaves a file that looks whole; here it is found.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

from aigc_jax import records
from aigc_jax.records import COUNT, SHA256

RUNS = [[COUNT]]
FORM = {"count": COUNT, "sha256": SHA256, "trained": RUNS, "evaluated": RUNS}
MOST = 10**6  # rows whose steps are compared one by one
SHOWN = 8  # runs of steps that a message names


class Written:
  """What a file of rows holds so far: its lines are added one by one."""

  def __init__(self):
    self.count = 0
    self._digest = hashlib.sha256()
    self._runs: dict[str, list[list[int]]] = {"trained": [], "evaluated": []}

  def add(self, line: bytes, row: Mapping) -> None:
    """Takes the next line, a row with its newline."""
    self.count += 1
    self._digest.update(line)
    _extend(self._runs["evaluated" if is_evaluation(row) else "trained"],
            row["step"])  # fmt: skip

  def as_meta(self) -> dict:
    """As a checkpoint holds it."""
    runs = {kind: [list(x) for x in y] for kind, y in self._runs.items()}
    return {"count": self.count, "sha256": self._digest.hexdigest()} | runs


def is_evaluation(row: Mapping) -> bool:
  """Whether a row is one of an evaluation, and not of training."""
  return any(name.startswith("eval/") for name in row)


def differences(then: Mapping, lines: Iterable[tuple[bytes, Mapping]]) -> str:
  """How (line, row) pairs differ from what a checkpoint noted; else "".

  Rows beyond those that it had are no difference: an evaluation of its step may
  have come later. What is not of this form is not compared.
  """
  if not records.fits(then, FORM):
    return ""
  lines, now = list(lines), Written()
  for line, row in lines[: then["count"]]:
    now.add(line, row)
  if (now.count, now.as_meta()["sha256"]) == (then["count"], then["sha256"]):
    return ""
  steps: dict[bool, set[int]] = {True: set(), False: set()}
  for _, row in lines:
    steps[is_evaluation(row)].add(row["step"])
  words = [f"{then['count']:,} rows then, {len(lines):,} now"]
  for kind, evaluation in (("trained", False), ("evaluated", True)):
    gone = _missing(then[kind], steps[evaluation])
    if gone:
      what = "evaluation" if evaluation else "training"
      words.append(f"gone: of {what}, step {_shown(gone)}")
  if len(words) == 1:
    words = ["the same steps, and other numbers in them"]
  return "; ".join(words)


def _extend(runs: list[list[int]], step: int) -> None:
  """Adds a step to runs [first, last, every], which rise."""
  if runs and runs[-1][1] == step:
    return
  if runs and runs[-1][2] == 0:
    runs[-1][1:] = [step, step - runs[-1][0]]
  elif runs and runs[-1][1] + runs[-1][2] == step:
    runs[-1][1] = step
  else:
    runs.append([step, step, 0])


def _missing(runs: Sequence[Sequence[int]], there: set[int]) -> list[int]:
  """The steps of runs that are not there."""
  steps = itertools.chain.from_iterable(map(_expanded, runs))
  return [s for s in itertools.islice(steps, MOST) if s not in there]


def _expanded(run: Sequence[int]) -> Iterator[int]:
  if len(run) == 3:
    first, last, every = run
    yield from range(first, last + 1, every or 1)


def _shown(steps: Sequence[int]) -> str:
  """A few of the steps, and how many more there are."""
  more = f" and {len(steps) - SHOWN:,} more" if len(steps) > SHOWN else ""
  return ", ".join(map(str, steps[:SHOWN])) + more
