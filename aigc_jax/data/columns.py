"""A store of records: columns of numbers, or of bytes of any length.

FOLDER/manifest.json          counts, sha256 of everything, what sources said
FOLDER/NAME-00000.npy ...     a column's numbers, or all its bytes in a row
FOLDER/NAME_ends-00000.npy    of bytes: where those of each record end, int64
FOLDER.checked                which files were found to be as they should

Built as token stores are (writer.py): in FOLDER.building, a shard for each job
of the source, whose record comes last, so that what has one is whole and is
kept when the work starts again; the folder is renamed when all of it is there.
"""

import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from aigc_jax import files, records
from aigc_jax.data.arrays import AGAIN, HEADER
from aigc_jax.data.documents import Job, changed, reading
from aigc_jax.data.store import seal
from aigc_jax.data.verified import (
  Expected,
  Verified,
  beside,
  check_manifest,
)
from aigc_jax.data.writer import (
  ELSEWHERE,
  ArrayWriter,
  Progress,
  start_aside,
)
from aigc_jax.errors import BadData
from aigc_jax.records import COUNT, SHA256

FORMAT = 1
LARGEST_MANIFEST = 256 << 20
BYTES = "bytes"  # the type of a column of bytes; others are "<i4" and the like
ENDS = "_ends"  # of the name of the column beside it
FILE = {"count": COUNT, "sha256": SHA256}
SHARD = {"records": COUNT, "files": {str: FILE}}
LEFT_OUT = {str: {"count": COUNT, "first": [str]}}  # {why: ...}
# Of a finished shard, while the others are made.
RECORD = SHARD | {"left_out": LEFT_OUT}
FORM = {
  "format": int,
  "name": str,
  "split": str,
  "source": str,
  "columns": {str: "bytes|<i4|<i8|<f4"},
  "about": dict,
  "left_out": LEFT_OUT,
  "records": COUNT,
  "fingerprint": SHA256,
  "shards": [SHARD],
  "seal": SHA256,
}
LARGEST = 2**62  # of a number in a column
Record = Mapping[str, Any]
LeftOut = dict[str, dict]  # as LEFT_OUT says
SHOWN = 3  # records that are named of each kind that was left out
Drop = Callable[[str, str], None]  # (why, which)


class Source(Protocol):
  """What records are read from: plain values but for what it caches.

  columns: {name: type}. state: of all its files, before any of them was read;
  unchanged(): whether it still is that. about(split): what the records mean, as
  JSON, such as the names of labels. read: the records of a job; `drop` is told
  of one that is left out. check(split, records, left_out) raises BadData where
  that is too much, or no record is left.
  """

  name: str
  fingerprint: str
  state: str
  columns: Mapping[str, str]

  def about(self, split: str) -> dict: ...

  def jobs(self, split: str) -> list[Job]: ...

  def read(self, job: Job, split: str, drop: Drop) -> Iterator[Record]: ...

  def check(self, split: str, kept: int, left_out: "LeftOut") -> None: ...

  def unchanged(self) -> bool: ...


def write(
  folder: Path,
  source: Source,
  split: str,
  *,
  say: Callable[[str], None],
  progress: Progress | None = None,
) -> "Columns":
  """The store of one split of a source, written if it is not there.

  Raises BadData where the source cannot be read or has nothing in this split,
  StorageFailure where the folder cannot be written.
  """
  folder = Path(folder)
  with (
    files.storage(folder, ELSEWHERE),
    files.locked(beside(folder, ".lock"), say),
  ):
    if not folder.is_dir():
      _build(folder, source, split, progress)
    return Columns(folder)


def _build(folder: Path, source: Source, split: str, progress) -> None:
  aside = beside(folder, ".building")
  with reading():
    jobs = source.jobs(split)
    state = source.state
  start_aside(aside, jobs, state)
  total, done, found = max(1, sum(job.size for job in jobs)), 0, []
  for i, job in enumerate(jobs):
    found.append(
      _finished(aside, i) or _write_shard(aside, i, source, split, job)
    )
    done += job.size
    if progress:
      progress(done, total)
  left_out: LeftOut = {}
  for why, some in itertools.chain(*(r["left_out"].items() for r in found)):
    _note(left_out, why, some["first"], some["count"])
  shards = [{key: r[key] for key in SHARD} for r in found]
  kept = sum(s["records"] for s in shards)
  try:
    with reading():
      if not source.unchanged():
        raise changed(source.name)
    source.check(split, kept, left_out)
  except BadData:  # what it has then is another source, or asked for otherwise
    shutil.rmtree(aside)
    raise
  manifest = {
    "format": FORMAT,
    "name": source.name.encode("utf-8", "replace").decode(),
    "split": split,
    "source": source.fingerprint,
    "columns": dict(source.columns),
    "about": source.about(split),
    "left_out": left_out,
    "records": kept,
    "shards": shards,
  }
  manifest["fingerprint"] = _fingerprint(manifest)
  manifest["seal"] = seal(manifest)
  files.write_json(aside / "manifest.json", manifest)
  names = {"manifest.json"}.union(*(shard["files"] for shard in shards))
  for path in aside.iterdir():  # records, and what dead writers began
    if path.name not in names:
      path.unlink()
  files.sync(aside)
  if folder.is_dir():  # where locks do not work another builder was first
    shutil.rmtree(aside, ignore_errors=True)
    return
  os.rename(aside, folder)
  files.sync(folder.parent)


def _note(left_out: LeftOut, why: str, first: list[str], count: int) -> None:
  some = left_out.setdefault(why, {"count": 0, "first": []})
  some["count"] += count
  some["first"] = (some["first"] + first)[:SHOWN]


def told(left_out: LeftOut) -> str:
  """What was left out or read by a policy, in words; "" for nothing."""
  parts = []
  for why, some in sorted(left_out.items()):
    count, first = some["count"], some["first"]
    more = f" and {count - len(first)} more" if count > len(first) else ""
    parts.append(f"{count} {why}: {', '.join(first)}{more}")
  return "; ".join(parts)


def _fingerprint(manifest: Mapping) -> str:
  """sha256 over what the records are."""
  keys = ("columns", "about", "shards")
  return files.sha256_json(["records 1", *(manifest[key] for key in keys)])


def _names(column: str, kind: str, i: int) -> tuple[str, ...]:
  """The files of a column of shard i: its numbers, or its bytes and ends."""
  whole = f"{column}-{i:05d}.npy"
  return (whole, f"{column}{ENDS}-{i:05d}.npy") if kind == BYTES else (whole,)


def _dtypes(kind: str) -> tuple[np.dtype, ...]:
  if kind == BYTES:
    return np.dtype("u1"), np.dtype("<i8")
  return (np.dtype(kind),)


def _finished(aside: Path, i: int) -> dict | None:
  """The record of a shard that is whole, or None."""
  path = aside / f"shard-{i:05d}.json"
  try:
    record = records.check(files.read_json(path), RECORD, str(path))
    for name, file in record["files"].items():
      if files.sha256_file(aside / name, HEADER) != file["sha256"]:
        return None
    return record
  except (OSError, BadData):
    return None


def _write_shard(aside: Path, i: int, source: Source, split: str, job) -> dict:
  """One job into the files of its columns; its record."""
  writers = {
    column: [
      (name, ArrayWriter(aside / name, dtype))
      for name, dtype in zip(
        _names(column, kind, i), _dtypes(kind), strict=True
      )
    ]
    for column, kind in source.columns.items()
  }
  left_out: LeftOut = {}

  def drop(why: str, which: str) -> None:
    # A name of a file may be no text, and what is noted is read back as text.
    shown = which.encode("utf-8", "backslashreplace").decode()
    _note(left_out, why, [shown], 1)

  count = 0
  for record in _records(source, job, split, drop):
    for column, kind in source.columns.items():
      whole = writers[column][0][1]
      if kind == BYTES:
        whole.append(np.frombuffer(record[column], np.uint8))
        writers[column][1][1].append(np.array([whole.count]))
      else:
        whole.append(np.array([record[column]]))
    count += 1
  made = {
    name: {"count": writer.count, "sha256": writer.close()}
    for name, writer in itertools.chain(*writers.values())
  }
  record = {"records": count, "files": made, "left_out": left_out}
  files.write_json(aside / f"shard-{i:05d}.json", record)
  return record


def _records(source: Source, job, split: str, drop: Drop) -> Iterator[Record]:
  with reading():
    yield from source.read(job, split, drop)


class Columns(Verified):
  """Reads a store of records; a view of them, see `views`.

  columns, about: what its reader takes records to have, and the form (records)
  of what they mean; None where any will do. Raises BadData where the folder is
  no such store or holds other bytes than its manifest names.
  """

  def __init__(self, folder, columns: Mapping | None = None, about=dict):
    folder = Path(folder)
    self.manifest = m = read_manifest(folder)
    if columns is not None and m["columns"] != dict(columns):
      raise BadData(
        f"{folder}: its records have {', '.join(m['columns']) or 'nothing'}, "
        f"expected {', '.join(columns)}; {AGAIN}"
      )
    records.check(m["about"], about, f"{folder}: about")
    self.name, self.fingerprint = m["name"], m["fingerprint"]
    self.columns: dict[str, str] = m["columns"]
    self.about: dict = m["about"]
    sizes = [shard["records"] for shard in m["shards"]]
    self._ends = np.cumsum([0] + sizes)
    arrays = {}
    for i, shard in enumerate(m["shards"]):
      for column, kind in self.columns.items():
        for name, dtype in zip(
          _names(column, kind, i), _dtypes(kind), strict=True
        ):
          file = shard["files"][name]
          arrays[name] = Expected(
            dtype, file["count"], file["sha256"], LARGEST, -LARGEST
          )
    super().__init__(folder, m["seal"], arrays)

  def __len__(self) -> int:
    return self.manifest["records"]

  def gather(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
    """{column: (n,)} of records by number: bytes as objects, -1 as nothing.

    The record -1 is padding: no bytes, and zero.
    """
    found = {
      column: np.full(len(numbers), b"", object)
      if kind == BYTES
      else np.zeros(len(numbers), np.dtype(kind))
      for column, kind in self.columns.items()
    }
    for row, number in enumerate(np.asarray(numbers).tolist()):
      if number < 0:
        continue
      shard = int(np.searchsorted(self._ends, number, side="right")) - 1
      at = number - int(self._ends[shard])
      for column, kind in self.columns.items():
        read = self._bytes if kind == BYTES else self._number
        found[column][row] = read(column, kind, shard, at)
    return found

  def column(self, name: str) -> np.ndarray | list[bytes]:
    """All of a column at once, in order: numbers (n,), or the bytes of each."""
    kind, found = self.columns[name], []
    for shard in range(len(self._ends) - 1):
      arrays = []
      for file in map(self._open, _names(name, kind, shard)):
        arrays.append(np.empty(file.count, file.dtype))
        if file.count:
          file.fill(arrays[-1], 0)
      if kind == BYTES:
        whole, ends = arrays[0].tobytes(), arrays[1].tolist()
        starts = [0, *ends[:-1]] if ends else []
        if sorted([0, *ends, len(whole)]) != [0, *ends, len(whole)]:
          raise self.contradiction("its records do not follow each other")
        pairs = zip(starts, ends, strict=True)
        found += [whole[start:stop] for start, stop in pairs]
      else:
        found.append(arrays[0])
    if kind == BYTES:
      return found
    return np.concatenate([np.empty(0, np.dtype(kind)), *found])

  def contradiction(self, why: str) -> BadData:
    """The refusal of records that nothing which is read here could be."""
    return BadData(f"{self.folder}: {why}: it was changed; {AGAIN}")

  def _number(self, column: str, kind: str, shard: int, at: int):
    out = np.empty(1, np.dtype(kind))
    self._open(_names(column, kind, shard)[0]).fill(out, at)
    return out[0]

  def _bytes(self, column: str, kind: str, shard: int, at: int) -> bytes:
    whole, ends = map(self._open, _names(column, kind, shard))
    where = np.zeros(2, "<i8")
    ends.fill(where[1:] if at == 0 else where, max(at - 1, 0))
    start, stop = where.tolist()
    if not 0 <= start <= stop <= whole.count:
      raise BadData(
        f"{ends.path}: record {at} is said to lie from byte {start} to {stop} "
        f"of {whole.count}: it changed while it was read; {AGAIN}"
      )
    out = np.empty(stop - start, np.uint8)
    if len(out):
      whole.fill(out, start)
    return out.tobytes()


def read_manifest(folder: Path) -> dict:
  """The manifest of a store of records, sealed and free of contradictions."""
  path = folder / "manifest.json"
  check_manifest(path, "store of records")
  try:
    found = files.read_json(path, LARGEST_MANIFEST)
    if found.get("format") != FORMAT:
      version = records.shown(found.get("format"))
      raise BadData(f"{path}: format {version}, expected {FORMAT}")
    m = records.check(found, FORM, str(path))
    if seal(m) != m["seal"]:
      raise BadData(f"{path}: not what was written: its seal is another")
    whole = sum(shard["records"] for shard in m["shards"]) == m["records"]
    if not whole or m["fingerprint"] != _fingerprint(m):
      raise BadData(f"{path}: the manifest contradicts itself")
    for i, shard in enumerate(m["shards"]):
      for column, kind in m["columns"].items():
        *first, last = _names(column, kind, i)
        missing = [n for n in (*first, last) if n not in shard["files"]]
        if missing or shard["files"][last]["count"] != shard["records"]:
          raise BadData(f"{path}: shard {i} contradicts itself")
  except BadData as e:
    raise BadData(f"{e}; {AGAIN}") from None
  return m
