"""Rows of JSON and Parquet: how they are divided and read.

The name of a row is its file and its place in it: the byte where its line
begins, its line in a packed file, its number in an array or in Parquet.
"""

import gzip
import json
import shlex
import zlib

from aigc_jax import files
from aigc_jax.data.documents import Document
from aigc_jax.data.listing import LONGEST_ROW
from aigc_jax.errors import BadData, nearest


def _line_ranges(name, path, bytes_, size):
  return [
    (("jsonl", name, path, at, min(at + size, bytes_)), min(size, bytes_ - at))
    for at in range(0, bytes_, size)
  ]


def _packed(name, path, bytes_, size):
  return [(("jsonl.gz", name, path), 4 * bytes_)] if bytes_ else []


def _array(name, path, bytes_, size):
  return [(("json", name, path), bytes_)]


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
    files.readable(path).close()  # which would be waited for, if it is none
    return parquet.ParquetFile(path)
  except (pyarrow.ArrowException, OSError, UnicodeError) as e:
    raise BadData(f"{path}: not a Parquet file: {e}") from e


def parquet_rows(path: str, columns: tuple[str, ...]):
  """Rows of a Parquet file as {column: value}, of those columns it has.

  Raises BadData for what is not one, or is damaged.
  """
  file = _parquet(path)
  names = file.schema_arrow.names
  some = [name for name in columns if name in names]
  if len(some) < len(columns):
    yield dict.fromkeys(names)
  try:
    for batch in file.iter_batches(batch_size=1024, columns=some):
      yield from batch.to_pylist()
  except (ValueError, OSError) as e:  # pyarrow's errors are both
    raise BadData(f"{path}: damaged Parquet file: {e}") from e


def _read_lines(name, path, start, stop, field):
  """Rows whose line begins in [start, stop)."""
  with files.readable(path) as f:
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
  with files.readable(path) as f:
    number = 1
    while offset:
      block = f.read(min(offset, 1 << 20))
      number += block.count(b"\n")
      offset -= len(block)
  return f"{path} line {number}"


def _read_packed(name, path, field):
  try:
    with files.readable(path) as raw, gzip.open(raw) as f:
      number = 0
      while line := f.readline(LONGEST_ROW):
        number += 1
        row = _row(line, field, lambda n=number: f"{path} line {n}")
        if row:
          yield Document(f"{name}@{number}", row)
  except (gzip.BadGzipFile, EOFError, zlib.error) as e:
    raise BadData(f"{path}: not a whole gzip file: {e}") from e


def _read_array(name, path, field):
  with files.readable(path) as f:
    data = f.read(LONGEST_ROW + 1)
  if len(data) > LONGEST_ROW:
    raise BadData(
      f"{path}: an array of more than {LONGEST_ROW >> 20} MB; make JSON lines "
      f"of it: jq -c '.[]' {shlex.quote(str(path))} > rows.jsonl"
    )
  try:
    found = json.loads(data)
  except (ValueError, RecursionError) as e:
    raise BadData(f"{path}: not JSON ({str(e)[:120]})") from e
  for number, row in enumerate(found):
    text = _object(row, field, lambda n=number: f"{path} entry {n}")
    if text:
      yield Document(f"{name}@{number}", text)


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
  return _object(row, field, place)


def _object(row, field: str, place) -> bytes | None:
  if not isinstance(row, dict):
    raise BadData(
      f'{place()}: expected an object such as {{"{field}": "..."}}, got '
      f"{str(row)[:60]!r}"
    )
  return checked(row, field, place)


def checked(row: dict, field: str, place) -> bytes | None:
  """The text field of a row as bytes; None where it is empty or null."""
  if field not in row:
    names = [name[:40] for name in sorted(map(str, row))]
    names = names[:20] + ["..."] * (len(names) > 20)
    raise BadData(
      f"{place()}: no field {field!r}{nearest(field, names)} (its fields: "
      f"{', '.join(names)}); choose one with "
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
  "json": _array,
  "jsonl.gz": _packed,
  "parquet": _row_groups,
}
# kind -> (*part without its kind, field) -> documents
READERS = {
  "jsonl": _read_lines,
  "json": _read_array,
  "jsonl.gz": _read_packed,
  "parquet": _read_rows,
}
