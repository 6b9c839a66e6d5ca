"""Rows of JSON lines and Parquet: how they are divided and read.

The name of a row is its file and its place in it: the byte where its line
begins, its line in a packed file, its number in Parquet.
"""

import gzip
import json

from aigc_jax.data.documents import Document
from aigc_jax.errors import BadData, nearest

LONGEST_ROW = 256 << 20  # bytes of one JSON line


def _line_ranges(name, path, bytes_, size):
  return [
    (("jsonl", name, path, at, min(at + size, bytes_)), min(size, bytes_ - at))
    for at in range(0, bytes_, size)
  ]


def _whole(name, path, bytes_, size):
  return [(("jsonl.gz", name, path), 4 * bytes_)] if bytes_ else []


def _row_groups(name, path, bytes_, size):
  meta = _parquet(path).metadata
  return [
    (("parquet", name, path, i), meta.row_group(i).total_byte_size)
    for i in range(meta.num_row_groups)
  ]


def _parquet(path):
  try:
    import pyarrow
    from pyarrow import parquet
  except ImportError as e:
    raise BadData(
      f"{path}: Parquet needs pyarrow: pip install 'aigc_jax[parquet]'"
    ) from e
  try:
    return parquet.ParquetFile(path)
  except (pyarrow.ArrowException, OSError) as e:
    raise BadData(f"{path}: not a Parquet file: {e}") from e


def _read_lines(name, path, start, stop, field):
  """Rows whose line begins in [start, stop)."""
  with open(path, "rb") as f:
    at = max(start - 1, 0)
    f.seek(at)
    if start:  # the line that began before belongs to the range before
      at += len(f.readline())
    while at < stop:
      line = f.readline(LONGEST_ROW)
      if not line:
        return
      row = _row(line, field, lambda at=at: _place(path, at))
      if row:
        yield Document(f"{name}@{at}", row)
      at += len(line)


def _place(path: str, offset: int) -> str:
  """ "file line 12" for the line that begins at `offset`."""
  with open(path, "rb") as f:
    number = 1
    while offset:
      block = f.read(min(offset, 1 << 20))
      number += block.count(b"\n")
      offset -= len(block)
  return f"{path} line {number}"


def _read_packed(name, path, field):
  try:
    with gzip.open(path, "rb") as f:
      number = 0
      while line := f.readline(LONGEST_ROW):
        number += 1
        row = _row(line, field, lambda n=number: f"{path} line {n}")
        if row:
          yield Document(f"{name}@{number}", row)
  except (gzip.BadGzipFile, EOFError) as e:
    raise BadData(f"{path}: not a whole gzip file: {e}") from e


def _row(line: bytes, field: str, place) -> bytes | None:
  """The text of one JSON line; None for an empty line or text."""
  if not line.strip():
    return None
  if len(line) >= LONGEST_ROW:
    raise BadData(
      f"{place()}: longer than {LONGEST_ROW >> 20} MB; cut this document"
    )
  try:
    row = json.loads(line)
  except (ValueError, RecursionError) as e:
    raise BadData(f"{place()}: not JSON ({e}): {line[:60]!r}") from e
  if not isinstance(row, dict):
    raise BadData(
      f'{place()}: expected an object such as {{"{field}": "..."}}, got '
      f"{line[:60]!r}"
    )
  return checked(row, field, place)


def checked(row: dict, field: str, place) -> bytes | None:
  """The text field of a row as bytes; None where it is empty or null."""
  if field not in row:
    raise BadData(
      f"{place()}: no field {field!r}{nearest(field, row)} (its fields: "
      f"{', '.join(sorted(map(str, row)))}); choose one with "
      "--config.data.field=NAME, or field=NAME of the source"
    )
  text = row[field]
  if text is None:
    return None
  if isinstance(text, str):
    return text.encode("utf-8", "surrogatepass")
  if isinstance(text, bytes):
    return text
  raise BadData(
    f"{place()}: field {field!r} holds {type(text).__name__}, expected text"
  )


def _read_rows(name, path, group, field):
  file = _parquet(path)
  names = file.schema_arrow.names
  at = sum(file.metadata.row_group(i).num_rows for i in range(group))
  if field not in names:
    checked(dict.fromkeys(names), field, lambda: path)
  try:
    for batch in file.iter_batches(
      batch_size=1024, row_groups=[group], columns=[field]
    ):
      for value in batch.column(0):
        row = checked(
          {field: value.as_py()}, field, lambda at=at: f"{path} row {at}"
        )
        if row:
          yield Document(f"{name}@{at}", row)
        at += 1
  except (ValueError, OSError) as e:  # pyarrow's errors are both
    raise BadData(f"{path}: damaged Parquet file: {e}") from e


# kind -> (name, path, bytes, job size) -> [(part, bytes)]
SPLITTERS = {
  "jsonl": _line_ranges,
  "jsonl.gz": _whole,
  "parquet": _row_groups,
}
# kind -> (*part without its kind, field) -> documents
READERS = {
  "jsonl": _read_lines,
  "jsonl.gz": _read_packed,
  "parquet": _read_rows,
}
