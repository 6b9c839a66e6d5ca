"""Text files of the user: plain text, JSON, Parquet; a file, folder or glob.

Text is kept as bytes. UTF-8 is expected and never demanded: the bytes
tokenizer is lossless on anything, the others replace what is not UTF-8 with
U+FFFD and the number of such documents is reported and kept in the manifest.

Held-out text: rows of JSON and Parquet, and the files of a large folder,
are held out by a hash of their name. Where there are fewer than
FEW / validation plain files (one book, a small project), that would hold out
nothing or the only file, so there the tail of every file is held out, cut
after a line.
"""

import contextlib
import functools
import glob
import hashlib
import io
import math
import os
from collections.abc import Iterator
from pathlib import Path

from aigc_jax import files, records
from aigc_jax.data import listing
from aigc_jax.data.arrays import state_of
from aigc_jax.data.documents import (
  ALL,
  Document,
  Job,
  changed,
  fold,
  grouped,
  is_held_out,
  job_size,
)
from aigc_jax.data.listing import File
from aigc_jax.data.rows import READERS, SPLITTERS
from aigc_jax.errors import BadConfig, BadData, StorageFailure, nearest
from aigc_jax.records import SHA256

FEW = 20  # held-out files that a split by file should give, at least
NEAR = 64 << 10  # how far a cut looks for the end of a line
SMALL = 16 << 20  # bytes of rows that are looked at before they are divided


class Files:
  """Plain text, .jsonl, .jsonl.gz, .json and .parquet files as a source.

  `path` is a file, a folder (searched to the bottom; hidden and binary files
  are left out) or a glob. `field` is the text field of JSON and Parquet.
  `left_out` says in words what was passed over. Split "all" is everything.
  Raises BadConfig for a bucket or URL, BadData where there is nothing to read.
  """

  splits = ("train", "validation")
  split = "train"  # what is left of the held-out part
  present = True

  def __init__(self, path: str, field: str, validation: float, cache: Path):
    listing.check_local(path, "data.path")
    self.path = os.path.abspath(files.expanded(path))
    self.given = path
    self.field = field
    self.validation = validation
    self.division = f"held out {validation}"
    self._cache = cache
    # Stores and remembered fingerprints are below one root.
    self._found = listing.find(self.path, path, cache.parent)
    self.name = _name(self.path)

  @functools.cached_property
  def _divided(self) -> tuple[list[File], dict[str, list[str]]]:
    _ = self.state  # before any of them is read
    if os.path.isfile(self.path):
      return listing.single(self._found, self.given, self.field), {}
    return listing.divided(self._found, self.field)

  @functools.cached_property
  def files(self) -> list[File]:
    """The files that hold text, by name."""
    kept, left_out = self._divided
    if not any(file.size for file in kept):
      why = listing.told(left_out)
      raise BadData(
        f"{self.given}: no readable text in it"
        + (f"; left out: {why}" if why else "")
        + "; expected plain text, .jsonl, .jsonl.gz, .json or .parquet in UTF-8"
      )
    return kept

  @property
  def left_out(self) -> str:
    """What of the path is not read, and why; "" for nothing."""
    return listing.told(self._divided[1])

  @functools.cached_property
  def fingerprint(self) -> str:
    """sha256 over (name, size, sha256 of the content) of the files, and field.

    Kept beside the stores under the state of the files (path, size, times), so
    that a large source is read once and not at every start.
    """
    kept = Path(self._cache, f"{self.state[:32]}.json")
    content = _remembered(kept)
    if not content:
      content = self._content()
      _remember(kept, content)
    return hashlib.sha256(f"{content} {self.field}".encode()).hexdigest()

  @functools.cached_property
  def state(self) -> str:
    """What the files were before any of them was read.

    Raises BadData where one is not as long as when it was found: it would be
    read that far, and its end be missing.
    """
    statuses = self._statuses()
    for (_, _, size), status in zip(self._found.files, statuses, strict=True):
      if status is not None and status.st_size != size:
        raise changed(self.name)
    return self._state(statuses)

  def _statuses(self) -> list[os.stat_result | None]:
    """Of every file; None of one that is gone."""
    found: list[os.stat_result | None] = []
    for _, path, _ in self._found.files:
      try:
        found.append(os.stat(path))
      except OSError:
        found.append(None)
    return found

  def _state(self, statuses: list[os.stat_result | None]) -> str:
    """sha256 over path, size and times of every file."""
    state = hashlib.sha256(b"state 3")
    for (_, path, _), status in zip(self._found.files, statuses, strict=True):
      is_now = "gone" if status is None else state_of(status)
      line = f"{path}\n{is_now}\n"
      state.update(line.encode("utf-8", "surrogateescape"))
    return state.hexdigest()

  def _content(self) -> str:
    digest = hashlib.sha256(b"files 2")
    for name, path, size, kind in self.files:
      try:
        content = files.sha256_file(path)
      except OSError as e:
        raise BadData(f"{path}: cannot be read: {e}") from e
      digest.update(
        f"{name}\n{kind} {size} {content}\n".encode("utf-8", "surrogateescape")
      )
    return digest.hexdigest()

  def jobs(self, split: str) -> list[Job]:
    """The work of reading `split`; a function of the files alone."""
    if split not in (*self.splits, ALL):
      raise BadConfig(
        f"split {split!r} of {self.given}: text files have 'train' and "
        f"'validation'{nearest(split, self.splits)}, or 'all' of both"
      )
    try:
      return self._jobs(split)
    except OSError as e:
      raise BadData(f"{self.given}: cannot be read: {e}") from e

  def _jobs(self, split: str) -> list[Job]:
    size = job_size(sum(file.size for file in self.files))
    plain = [f for f in self.files if f.kind == "plain"]
    by_tail = len(plain) * self.validation < FEW
    parts: list[tuple[tuple, int]] = []
    for name, path, bytes_, kind in self.files:
      if kind == "plain":
        start, stop = self._part(name, path, bytes_, split, by_tail)
        parts += _ranges(name, path, start, stop, size)
      else:
        parts += SPLITTERS[kind](name, path, bytes_, size)
    _ = self.fraction  # found once, and not by each worker
    return grouped(parts, size)

  @functools.cached_property
  def fraction(self) -> float:
    """The share of rows that is held out: `validation`, or what gives one row.

    Of a few rows a small share may be none at all, or a large one all of them;
    then the row is held out, or left, whose hash comes first, or last.
    """
    found = self.files
    if (
      not self.validation
      or any(file.kind == "plain" for file in found)
      or sum(file.size for file in found) > SMALL
    ):
      return self.validation
    places = [
      fold(document.id)
      for file in found
      for part, _ in SPLITTERS[file.kind](*file[:3], file.size)
      for document in READERS[part[0]](*part[1:], self.field)
    ]
    if len(places) < 2:
      return self.validation
    places.sort()
    above = math.nextafter(places[0], 1.0)  # holds out just the first
    return min(max(self.validation, above), places[-1])

  def _part(self, name, path, size, split, by_tail) -> tuple[int, int]:
    """The bytes of a plain file that belong to `split`."""
    held_out = split == "validation"
    if split == ALL:
      return 0, size
    if not by_tail:
      whole = is_held_out(name, self.validation) == held_out
      return (0, size) if whole else (0, 0)
    if self.validation == 0:
      return (0, 0) if held_out else (0, size)
    with files.readable(path) as f:
      cut = _cut(f, int(size * (1 - self.validation)), size, size)
    return (cut, size) if held_out else (0, cut)

  def read(self, job: Job, split: str) -> Iterator[Document]:
    """The documents of a job, in order."""
    held_out = split == "validation"
    for kind, *part in job.parts:
      try:
        if kind == "plain":  # divided when the jobs were made
          yield _read_plain(*part)
          continue
        for document in READERS[kind](*part, self.field):
          if split == ALL or (
            is_held_out(document.id, self.fraction) == held_out
          ):
            yield document
      except OSError as e:
        raise BadData(f"{part[1]}: cannot be read: {e}") from e

  def unchanged(self) -> bool:
    """Whether the files are what the fingerprint says."""
    return self._state(self._statuses()) == self.state


def _name(path: str) -> str:
  """What to call it: the file or folder, of a glob what stands before it."""
  while glob.has_magic(path) and not os.path.exists(path):
    path = os.path.dirname(path)
  return Path(path).stem or "text"


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
  with files.readable(path) as f:
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


def _read_plain(name, path, start, stop, starts, ends) -> Document:
  with files.readable(path) as f:
    f.seek(start)
    data = f.read(stop - start)
  if len(data) != stop - start:
    raise BadData(f"{path}: became shorter while it was read; run again")
  return Document(name, data, starts, ends)


def _remembered(path: Path) -> str | None:
  try:
    kept = files.read_json(path, 4096)
    return records.check(kept, {"content": SHA256}, str(path))["content"]
  except BadData:
    return None


def _remember(path: Path, content: str) -> None:
  """A convenience: that it cannot be written harms nobody."""
  with contextlib.suppress(OSError, StorageFailure):
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, {"content": content})
