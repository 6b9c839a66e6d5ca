"""Text files of the user: plain text, JSON lines, Parquet; file, folder, glob.

Text is kept as bytes. UTF-8 is expected and never demanded: the bytes
tokenizer is lossless on anything, the others replace what is not UTF-8 with
U+FFFD and the number of such documents is reported and kept in the manifest.

Held-out text: rows of JSON lines and Parquet, and the files of a large folder,
are held out by a hash of their name. Where there are fewer than
FEW / validation plain files (one book, a small project), that would hold out
nothing or the only file, so there the tail of every file is held out, cut
after a line.
"""

import functools
import glob
import gzip
import hashlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

from aigc_jax.data.documents import (
  Document,
  Job,
  grouped,
  is_held_out,
  job_size,
)
from aigc_jax.errors import BadConfig, BadData, nearest

FEW = 20  # held-out files that a split by file should give, at least
LONGEST_ROW = 256 << 20  # bytes of one JSON line
NEAR = 64 << 10  # how far a cut looks for the end of a line
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz", ".7z")


class Files:
  """Plain text, .jsonl, .jsonl.gz and .parquet files as a source.

  `path` is a file, a folder (searched to the bottom; hidden and binary files
  are left out) or a glob. `field` is the text field of JSON lines and Parquet.
  Raises BadData where there is nothing to read.
  """

  splits = ("train", "validation")

  def __init__(self, path: str, field: str, validation: float, cache: Path):
    self.path = os.path.abspath(os.path.expanduser(path))
    self.given = path
    self.field = field
    self.validation = validation
    self.division = f"held out {validation}"
    self._cache = cache
    self.listing = _listing(self.path, path)  # [(name, path, size)]
    self.name = Path(self.path).stem if path else "text"

  @functools.cached_property
  def files(self) -> list[tuple[str, str, int]]:
    """(name, path, bytes) of the files that hold text, by name."""
    single = os.path.isfile(self.path)
    kept = []
    for name, path, size in self.listing:
      if single or _kind(name) != "plain":
        kept.append((name, path, size))
      elif size and not _packed(name) and not _binary(path):
        kept.append((name, path, size))
    if single and _packed(self.path) and _kind(self.path) == "plain":
      raise BadData(
        f"{self.given}: this is a packed file; unpack it first (only .jsonl.gz "
        "is read as it is)"
      )
    if not any(size for _, _, size in kept):
      raise BadData(
        f"{self.given}: no readable text in it ({len(self.listing)} file(s): "
        "empty, packed or binary); expected plain text, .jsonl, .jsonl.gz or "
        ".parquet"
      )
    return kept

  @property
  def left_out(self) -> int:
    """How many files of the listing hold no text."""
    return len(self.listing) - len(self.files)

  @functools.cached_property
  def fingerprint(self) -> str:
    """sha256 over (name, size, sha256 of the content) of the files, and field.

    Kept beside the stores under the state of the files (path, size, time of
    change), so that a large source is read once and not at every start.
    """
    state = hashlib.sha256(b"state 1")
    for _, path, size in self.listing:
      stat = os.stat(path)
      state.update(f"{path}\n{size} {stat.st_mtime_ns} {stat.st_ino}\n".encode(
        "utf-8", "surrogateescape"))  # fmt: skip
    kept = Path(self._cache, f"{state.hexdigest()[:32]}.json")
    content = _remembered(kept) or self._content()
    _remember(kept, content)
    return hashlib.sha256(f"{content} {self.field}".encode()).hexdigest()

  def _content(self) -> str:
    digest = hashlib.sha256(b"files 1")
    for name, path, size in self.files:
      with open(path, "rb") as f:
        content = hashlib.file_digest(f, "sha256").hexdigest()
      digest.update(
        f"{name}\n{size} {content}\n".encode("utf-8", "surrogateescape")
      )
    return digest.hexdigest()

  def jobs(self, split: str) -> list[Job]:
    """The work of reading `split`; a function of the files alone."""
    if split not in self.splits:
      raise BadConfig(
        f"split {split!r} of {self.given}: text files have 'train' and "
        f"'validation'{nearest(split, self.splits)}"
      )
    size = job_size(sum(size for _, _, size in self.files))
    plain = [f for f in self.files if _kind(f[0]) == "plain"]
    by_tail = len(plain) * self.validation < FEW
    parts: list[tuple[tuple, int]] = []
    for name, path, bytes_ in self.files:
      kind = _kind(name)
      if kind == "plain":
        start, stop = self._part(name, path, bytes_, split, by_tail)
        parts += _ranges(name, path, start, stop, size)
      else:
        parts += SPLITTERS[kind](name, path, bytes_, split, size)
    return grouped(parts, size)

  def _part(self, name, path, size, split, by_tail) -> tuple[int, int]:
    """The bytes of a plain file that belong to `split`."""
    held_out = split == "validation"
    if not by_tail:
      whole = is_held_out(name, self.validation) == held_out
      return (0, size) if whole else (0, 0)
    if self.validation == 0:
      return (0, 0) if held_out else (0, size)
    with open(path, "rb") as f:
      cut = _cut(f, int(size * (1 - self.validation)), size, size)
    return (cut, size) if held_out else (0, cut)

  def read(self, job: Job, split: str) -> Iterator[Document]:
    """The documents of a job, in order."""
    for kind, *part in job.parts:
      try:
        for document in READERS[kind](*part, self.field):
          # Plain files are divided when the jobs are made, rows here.
          if kind == "plain" or (
            is_held_out(document.id, self.validation) == (split == "validation")
          ):
            yield document
      except OSError as e:
        raise BadData(f"{part[1]}: cannot be read: {e}") from e


def _listing(path: str, given: str) -> list[tuple[str, str, int]]:
  """All regular files below `path`, by name relative to it."""
  if os.path.isfile(path):
    root, found = os.path.dirname(path), [path]
  elif os.path.isdir(path):
    root, found = path, []
    for folder, folders, names in os.walk(path):
      folders[:] = sorted(f for f in folders if not f.startswith("."))
      found += [os.path.join(folder, n) for n in names if n[0] != "."]
  else:
    found = [p for p in glob.glob(path, recursive=True) if os.path.isfile(p)]
    root = os.path.commonpath([os.path.dirname(p) for p in found] or ["/"])
    if not found:
      what = "no file matches" if glob.has_magic(path) else "no such file"
      raise BadData(
        f"{given!r}: {what} ({path}); expected a file, a folder or a glob such "
        "as 'texts/**/*.txt' (--config.data.path=PATH)"
      )
  try:
    return sorted(
      (os.path.relpath(p, root), p, os.path.getsize(p))
      for p in found
      if os.path.isfile(p)
    )
  except OSError as e:
    raise BadData(f"{given}: cannot be read: {e}") from e


def _kind(name: str) -> str:
  name = name.lower()
  if name.endswith((".jsonl", ".ndjson")):
    return "jsonl"
  if name.endswith((".jsonl.gz", ".ndjson.gz", ".json.gz")):
    return "jsonl.gz"
  return "parquet" if name.endswith(".parquet") else "plain"


def _packed(name: str) -> bool:
  return name.lower().endswith(PACKED)


def _binary(path: str) -> bool:
  """A NUL near the start: not text in any encoding that is read here."""
  try:
    with open(path, "rb") as f:
      return b"\0" in f.read(8192)
  except OSError as e:
    raise BadData(f"{path}: cannot be read: {e}") from e


def _cut(f: io.BufferedReader, at: int, stop: int, size: int) -> int:
  """A good place to cut a file: after a line, else between characters.

  The first end of a line at or after `at`, not further than NEAR, before
  `stop`; else the first byte at or after `at` that begins a character.
  """
  f.seek(at)
  near = f.read(min(NEAR, size - at))
  line = near.find(b"\n") + 1
  if line and at + line < stop:
    return at + line
  for i, byte in enumerate(near[:4]):
    if byte & 0xC0 != 0x80:  # not inside a UTF-8 character
      return at + i
  return at


def _ranges(name, path, start, stop, size) -> list[tuple[tuple, int]]:
  """A plain file as ranges of about `size` bytes, cut after lines."""
  parts = []
  with open(path, "rb") as f:
    at = start
    while at < stop:
      end = stop
      if stop - at > 2 * size:
        end = _cut(f, at + size, stop, stop)
      parts.append(
        (("plain", name, path, at, end, at == start, end == stop), end - at)
      )
      at = end
  return parts


def _line_ranges(name, path, bytes_, split, size):
  return [
    (("jsonl", name, path, at, min(at + size, bytes_)), min(size, bytes_ - at))
    for at in range(0, bytes_, size)
  ]


def _whole(name, path, bytes_, split, size):
  return [(("jsonl.gz", name, path), 4 * bytes_)] if bytes_ else []


def _row_groups(name, path, bytes_, split, size):
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


def _read_plain(name, path, start, stop, starts, ends, field):
  with open(path, "rb") as f:
    f.seek(start)
    data = f.read(stop - start)
  if len(data) != stop - start:
    raise BadData(f"{path}: became shorter while it was read; run again")
  yield Document(name, data, starts, ends)


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
      "--config.data.sources[0].field or field= of the source"
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


SPLITTERS = {
  "jsonl": _line_ranges,
  "jsonl.gz": _whole,
  "parquet": _row_groups,
}
READERS = {
  "plain": _read_plain,
  "jsonl": _read_lines,
  "jsonl.gz": _read_packed,
  "parquet": _read_rows,
}


def _remembered(path: Path) -> str | None:
  try:
    kept = json.loads(path.read_text()[:4096])
    return kept["content"] if len(kept["content"]) == 64 else None
  except (OSError, ValueError, KeyError, TypeError):
    return None


def _remember(path: Path, content: str) -> None:
  """A convenience: that it cannot be written harms nobody."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}")
    aside.write_text(json.dumps({"content": content}))
    os.replace(aside, path)
  except OSError:
    pass
