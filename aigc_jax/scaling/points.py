"""Points that laws are fitted to, from a CSV or from work directories.

Nothing is dropped unsaid: what cannot be used is refused by its line, and what
was derived or looks wrong is told.
"""

import csv
import dataclasses
import hashlib
import io
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from aigc_jax import files
from aigc_jax.errors import BadConfig, BadData, nearest

COLUMNS = ("params", "tokens", "flops", "loss")
MORE = ("unique_tokens", "run", "optimal_params", "stderr")
MOST_BYTES = 256 << 20
LEAST, MOST = 1e-60, 1e60  # of a number: products of others are none
OFF = 0.2  # relative: beyond it a given FLOP count is of another convention
COMPARE: dict[str, Callable] = {
  "!=": operator.ne,
  "<=": operator.le,
  ">=": operator.ge,
  "=": operator.eq,
  "<": operator.lt,
  ">": operator.gt,
}


@dataclasses.dataclass(frozen=True)
class Points:
  """Columns of equal length, float64 (`run` is of strings).

  names: what each point is called in messages. sha256: of where they come
  from. notes: what was derived, left out on request, or looks wrong. header:
  all columns of a file, also those that are none of ours.
  """

  columns: dict[str, np.ndarray]
  names: tuple[str, ...]
  source: str
  sha256: str
  notes: tuple[str, ...]
  header: tuple[str, ...] = ()

  def __len__(self) -> int:
    return len(self.names)

  def need(self, columns: Sequence[str], law: str) -> dict[str, np.ndarray]:
    """These columns; raises BadConfig for one that is not there."""
    missing = [c for c in columns if c not in self.columns]
    if missing:
      there = dict.fromkeys((*self.columns, *self.header))
      raise BadConfig(
        f"{self.source}: the law {law} needs {', '.join(columns)}; "
        f"{', '.join(missing)} is not there (there are: "
        f"{', '.join(there)}; --columns=params=N,loss=val_loss names "
        "columns that are called otherwise)"
      )
    return {c: self.columns[c] for c in columns}

  def some(self, keep: np.ndarray) -> "Points":
    """The points where `keep`."""
    names = tuple(n for n, k in zip(self.names, keep, strict=True) if k)
    columns = {k: v[keep] for k, v in self.columns.items()}
    return dataclasses.replace(self, columns=columns, names=names)


def from_csv(
  path: str | Path,
  columns: Mapping[str, str] | None = None,
  where: Sequence[str] = (),
) -> Points:
  """The points of a CSV with a header.

  columns: {our name: the file's}. where: "column=value", also != < <= > >=, all
  of which must hold. Raises BadData with the line for what is no positive
  number, BadConfig for columns that are not there or settings not to be mixed.
  """
  path = files.expanded(path)
  if not path.is_file():
    raise BadConfig(f"{path}: there is no such file")
  if path.stat().st_size > MOST_BYTES:
    raise BadData(f"{path} is larger than {MOST_BYTES} bytes: not read")
  data = path.read_bytes()
  header, rows = csv_rows(path, data)
  found, notes = _kept(path, header, rows, where)
  names = _mapped(path, header, columns or {})
  read = {
    ours: _numbers(path, ours, theirs, found)
    if ours != "run"
    else np.array([row[theirs] for _, row in found])
    for ours, theirs in names.items()
  }
  notes += _mixed(path, header, names, read, found, where)
  notes += _twice(read, found)
  points = Points(
    columns=read,
    names=tuple(f"line {line}" for line, _ in found),
    source=str(path),
    sha256=hashlib.sha256(data).hexdigest(),
    notes=tuple(notes),
    header=tuple(header),
  )
  return completed(points)


def csv_rows(path: Path, data: bytes) -> tuple[list[str], list]:
  """(header, [(line, {column: text})])."""
  try:
    text = data.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise BadData(f"{path} is not UTF-8 text: {error}") from None
  reader = csv.reader(io.StringIO(text, newline=""))
  try:
    header = [name.strip() for name in next(reader, [])]
    if len(set(header)) < len(header):
      twice = next(n for n in header if header.count(n) > 1)
      raise BadData(f"{path}: two columns are called {twice!r}")
    rows = []
    for row in reader:
      if not any(cell.strip() for cell in row):
        continue
      if len(row) != len(header):
        raise BadData(
          f"{path}, line {reader.line_num}: {len(row)} fields, where the "
          f"header has {len(header)}"
        )
      cells = dict(zip(header, map(str.strip, row), strict=True))
      rows.append((reader.line_num, cells))
  except csv.Error as error:
    raise BadData(f"{path}, line {reader.line_num}: {error}") from None
  if not rows:
    raise BadData(f"{path} holds no rows below its header")
  return header, rows


def _kept(path: Path, header, rows, where: Sequence[str]) -> tuple:
  """(rows for which all conditions hold, what to say of the others)."""
  whole = len(rows)
  for condition in where:
    found = re.fullmatch(r"\s*(.+?)\s*(!=|<=|>=|=|<|>)\s*(.*?)\s*", condition)
    if not found:
      raise BadConfig(f"--where={condition}: expected COLUMN=VALUE, or < or >")
    column, sign, value = found.groups()
    if column not in header:
      raise BadConfig(
        f"--where={condition}: {path} has no column {column!r}"
        f"{nearest(column, header)} (there are: {', '.join(header)})"
      )
    rows = [
      (n, row)
      for n, row in rows
      if _holds(path, n, row[column], sign, value, condition)
    ]
  if not rows:
    raise BadConfig(f"{path}: no row is left by --where={','.join(where)}")
  if not where:
    return rows, []
  kept = f"{len(rows)} of {whole} rows kept by {' and '.join(where)}"
  return rows, [kept]


def _holds(path, line, text, sign, value, condition) -> bool:
  try:
    return COMPARE[sign](float(text), float(value))
  except ValueError:
    if sign in ("=", "!="):
      return COMPARE[sign](text, value)
    if not text:  # nothing is above or below any number
      return False
    raise BadConfig(
      f"--where={condition}: {path}, line {line} has {text!r} there, which "
      "has no order"
    ) from None


def _mapped(path: Path, header, columns: Mapping[str, str]) -> dict[str, str]:
  """{our name: the file's} of what is there."""
  known = (*COLUMNS, *MORE)
  for ours, theirs in columns.items():
    if ours not in known:
      raise BadConfig(
        f"--columns={ours}={theirs}: {ours!r} is no column of ours"
        f"{nearest(ours, known)} (there are: {', '.join(known)})"
      )
    if theirs not in header:
      raise BadConfig(
        f"--columns={ours}={theirs}: {path} has no column {theirs!r}"
        f"{nearest(theirs, header)} (there are: {', '.join(header)})"
      )
  return {
    ours: columns.get(ours, ours)
    for ours in known
    if columns.get(ours, ours) in header
  }


def _numbers(path: Path, ours: str, theirs: str, rows) -> np.ndarray:
  values = []
  for line, row in rows:
    try:
      value = float(row[theirs])
    except ValueError:
      value = math.nan
    if not LEAST <= value <= MOST:
      what = f"={row[theirs]!r} is no {ours}" if row[theirs] else " is empty"
      raise BadData(
        f"{path}, line {line}: {theirs}{what}, which is a number above 0, from "
        f"{LEAST:g} to {MOST:g}; mend the line, or leave such out with "
        f"--where='{theirs}>={LEAST:g},{theirs}<={MOST:g}'"
      )
    values.append(value)
  return np.array(values, np.float64)


def _mixed(path: Path, header, names, read, rows, where) -> list[str]:
  """Columns of words that tell settings apart, which one law may not mix.

  Where sizes come again in another setting, that is refused; where each
  setting has sizes of its own, it is told.
  """
  used = set(names.values())
  asked = " ".join(where)
  keys = [read[k] for k in ("params", "tokens", "flops") if k in read]
  sizes = list(zip(*keys, strict=True))
  notes = []
  if not keys:  # a law says which columns it misses
    return notes
  for column in header:
    if column in used or column in asked:
      continue
    values = [row[column] for _, row in rows]
    kinds = sorted(set(values))
    if all(map(_is_number, kinds)) or not 1 < len(kinds) <= len(rows) / 2:
      continue
    way = f"--where='{column}={kinds[0]}' keeps one"
    of: dict[tuple, str] = {}
    again = [s for s, v in zip(sizes, values, strict=True)
             if of.setdefault(s, v) != v]  # fmt: skip
    if again:
      raise BadConfig(
        f"{path}: column {column!r} has {len(kinds)} values, and "
        f"{len(again)} points have the sizes of a point of another: settings "
        f"that one law may not mix. {way}; --where='{column}!=' takes all "
        "together"
      )
    notes.append(
      f"column {column!r} has {len(kinds)} values, which one fit takes "
      f"together: {way}"
    )
  return notes


def _is_number(text: str) -> bool:
  try:
    float(text)
  except ValueError:
    return False
  return True


def _twice(read: Mapping, rows) -> list[str]:
  numbers = [read[c] for c in read if c != "run"]
  if not numbers:
    return []
  seen: dict[tuple, int] = {}
  again = []
  for i, values in enumerate(zip(*numbers, strict=True)):
    if values in seen:
      again.append(f"line {rows[i][0]} repeats line {seen[values]}")
    seen.setdefault(values, rows[i][0])
  if not again:
    return []
  more = f" and {len(again) - 3} more" if len(again) > 3 else ""
  return [
    f"equal points count as often as they stand: {'; '.join(again[:3])}{more}"
  ]


def completed(points: Points) -> Points:
  """With tokens or FLOPs by C = 6 N D where one is missing; checks both."""
  c, notes = dict(points.columns), list(points.notes)
  if {"params", "flops"} <= c.keys() and "tokens" not in c:
    c["tokens"] = c["flops"] / (6 * c["params"])
    notes.append("tokens are not given: FLOPs / (6 params)")
  elif {"params", "tokens"} <= c.keys() and "flops" not in c:
    c["flops"] = 6 * c["params"] * c["tokens"]
    notes.append("FLOPs are not given: 6 params tokens")
  elif {"params", "tokens", "flops"} <= c.keys():
    ratio = 6 * c["params"] * c["tokens"] / c["flops"]
    off = np.abs(np.log(ratio)) > math.log1p(OFF)
    if off.any():
      low, high = ratio[off].min(), ratio[off].max()
      notes.append(
        f"{off.sum()} of {len(points)} points have FLOPs that differ from 6 "
        f"params tokens by more than {OFF:.0%} (6 N D / FLOPs is {low:.3g} to "
        f"{high:.3g}): another convention (forward alone is 3), embeddings, "
        "attention or a wrong label; the given FLOPs are used"
      )
      if 0 < off.sum() < len(points):
        names = [n for n, o in zip(points.names, off, strict=True) if o]
        notes.append(
          "two conventions of FLOPs in one file: the odd ones are "
          f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        )
  return dataclasses.replace(points, columns=c, notes=tuple(notes))
