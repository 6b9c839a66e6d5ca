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

import contextlib
import functools
import glob
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

from aigc_jax import files
from aigc_jax.data.documents import (
  Document,
  Job,
  grouped,
  is_held_out,
  job_size,
)
from aigc_jax.data.rows import READERS, SPLITTERS
from aigc_jax.errors import BadConfig, BadData, StorageFailure, nearest

FEW = 20  # held-out files that a split by file should give, at least
NEAR = 64 << 10  # how far a cut looks for the end of a line
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz", ".7z")


class Files:
  """Plain text, .jsonl, .jsonl.gz and .parquet files as a source.

  `path` is a file, a folder (searched to the bottom; hidden and binary files
  are left out) or a glob. `field` is the text field of JSON lines and Parquet.
  Raises BadData where there is nothing to read.
  """

  splits = ("train", "validation")
  present = True

  def __init__(self, path: str, field: str, validation: float, cache: Path):
    self.path = os.path.abspath(os.path.expanduser(path))
    self.given = path
    self.field = field
    self.validation = validation
    self.division = f"held out {validation}"
    self._cache = cache
    self.listing = _listing(self.path, path)  # [(name, path, size)]
    self.name = _name(self.path)

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
    self._state_then = state = self._state()
    kept = Path(self._cache, f"{state[:32]}.json")
    content = _remembered(kept)
    if not content:
      content = self._content()
      _remember(kept, content)
    return hashlib.sha256(f"{content} {self.field}".encode()).hexdigest()

  def _state(self) -> str:
    """sha256 over path, size and time of change of every file."""
    state = hashlib.sha256(b"state 1")
    for _, path, _ in self.listing:
      try:
        stat = os.stat(path)
        line = f"{path}\n{stat.st_size} {stat.st_mtime_ns} {stat.st_ino}\n"
      except OSError:
        line = f"{path}\ngone\n"
      state.update(line.encode("utf-8", "surrogateescape"))
    return state.hexdigest()

  def _content(self) -> str:
    digest = hashlib.sha256(b"files 1")
    for name, path, size in self.files:
      try:
        content = files.sha256_file(path)
      except OSError as e:
        raise BadData(f"{path}: cannot be read: {e}") from e
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
    try:
      return self._jobs(split)
    except OSError as e:
      raise BadData(f"{self.given}: cannot be read: {e}") from e

  def _jobs(self, split: str) -> list[Job]:
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
        parts += SPLITTERS[kind](name, path, bytes_, size)
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
    held_out = split == "validation"
    for kind, *part in job.parts:
      try:
        if kind == "plain":  # divided when the jobs were made
          yield _read_plain(*part)
          continue
        for document in READERS[kind](*part, self.field):
          if is_held_out(document.id, self.validation) == held_out:
            yield document
      except OSError as e:
        raise BadData(f"{part[1]}: cannot be read: {e}") from e

  def unchanged(self) -> bool:
    """Whether the files are what the fingerprint says."""
    return self._state() == self._state_then


def _name(path: str) -> str:
  """What to call it: the file or folder, of a glob what stands before it."""
  while glob.has_magic(path) and not os.path.exists(path):
    path = os.path.dirname(path)
  return Path(path).stem or "text"


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


def _read_plain(name, path, start, stop, starts, ends) -> Document:
  with open(path, "rb") as f:
    f.seek(start)
    data = f.read(stop - start)
  if len(data) != stop - start:
    raise BadData(f"{path}: became shorter while it was read; run again")
  return Document(name, data, starts, ends)


def _remembered(path: Path) -> str | None:
  try:
    kept = files.read_json(path, 4096).get("content")
    return kept if isinstance(kept, str) and len(kept) == 64 else None
  except BadData:
    return None


def _remember(path: Path, content: str) -> None:
  """A convenience: that it cannot be written harms nobody."""
  with contextlib.suppress(OSError, StorageFailure):
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, {"content": content})
