"""Files with a row for each example: JSON lines, or columns with a head."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from aigc_jax import files
from aigc_jax.errors import BadData, nearest

LARGEST = 1 << 30  # bytes of a table
LINES, COLUMNS = (".jsonl", ".json", ".ndjson"), (".tsv", ".csv")


def rows(path: Path) -> Iterator[tuple[int, dict]]:
  """(number from 1 on, row) of a table. Raises BadData where it is none."""
  suffix = path.suffix.lower()
  if suffix not in (*LINES, *COLUMNS):
    raise BadData(
      f"{path}: expected JSON lines (.jsonl) or columns (.tsv, .csv)"
    )
  content = text_of(path, LARGEST)
  if suffix in LINES:
    yield from _objects(path, content)
    return
  tabs = dict(delimiter="\t", quoting=csv.QUOTE_NONE)
  # Not strict, a quote that nothing closes would take the rows behind it in.
  how = tabs if suffix == ".tsv" else dict(strict=True)
  found = csv.DictReader(io.StringIO(content), **how)
  try:
    _check_head(path, found.fieldnames or ())
    for number, row in enumerate(found, 1):
      if any(row.pop(None, ())):
        raise BadData(
          f"{path} row {number}: more cells than the head has names: what "
          "stands behind them belongs to one of them, or has no name"
        )
      yield number, row
  except csv.Error as e:
    raise BadData(f"{path} line {found.line_num + 1}: {e}") from None


def _check_head(path: Path, names: Sequence[str]) -> None:
  """Raises BadData for a name that stands there twice."""
  twice = [name for name in names if names.count(name) > 1 and name]
  if twice:
    raise BadData(f"{path}: the column {twice[0][:80]!r} is there twice")


def _objects(path: Path, content: str) -> Iterator[tuple[int, dict]]:
  for number, line in enumerate(files.lines_of(content), 1):
    if line.strip():
      yield number, files.parse_json(line.encode(), f"{path} row {number}")


def field(row: Mapping, where: str, key: str, word: str):
  """row[key]; BadData with the names there are, and the key that says which.

  word: the key of the source that names it.
  """
  if key not in row:
    raise BadData(f"{where}: no {key!r}{others(key, row)}; {named(word)}")
  return row[key]


def others(key: str, names: Iterable) -> str:
  """What there is besides `key`, for an error."""
  shown = [str(name)[:40] for name in names][:20]
  return f"{nearest(key, shown)} (it has: {', '.join(shown)})"


def named(word: str) -> str:
  return f"{word}=NAME of the source names it"


def text_of(path: Path, limit: int) -> str:
  """A file in UTF-8. Raises BadData."""
  try:
    return files.content(path, limit=limit).decode("utf-8-sig")
  except UnicodeDecodeError as e:
    raise BadData(f"{path}: not UTF-8: {e}") from None
