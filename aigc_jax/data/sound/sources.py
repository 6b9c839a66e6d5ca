"""Where utterances come from: sound files, and what is said in them.

  folder       NAME.wav or NAME.flac, and beside it the transcript, NAME.txt
  table        a file of JSON lines, or of tab- or comma-separated columns with
               a head: which file (from the table's own folder on), what is said
  librispeech  *.trans.txt, each line a NAME and what NAME.flac beside it says

Each gives records {"audio": 16-bit samples at RATE, "samples": how many,
"text", and where it is wanted "speaker": a number} to a store
(data/columns.py). An utterance that cannot be used is left out, counted and
told with its name; more of them than a share of all is refused, for then
something else is wrong.
"""

import abc
import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from aigc_jax import files
from aigc_jax.data import listing, tables
from aigc_jax.data.arrays import State, state_of
from aigc_jax.data.columns import BYTES, Drop, LeftOut, Record, told
from aigc_jax.data.documents import (
  Job,
  grouped,
  is_held_out,
  job_size,
  none_of,
  reading,
)
from aigc_jax.data.entries import Kinds
from aigc_jax.data.example import LOOKED_AT
from aigc_jax.data.sound.decoding import LARGEST_FILE, RATE, Unusable, decoded
from aigc_jax.errors import BadData, nearest

COLUMNS = {"audio": BYTES, "samples": "<i4", "text": BYTES}
SUFFIXES = (".wav", ".flac")
OTHERS = (".mp3", ".ogg", ".opus", ".m4a", ".aac", ".aiff", ".aif")
SPLITS = ("train", "validation", "all")
SPLIT_BY = ("file", "folder", "text")
LARGEST_TEXT = 1 << 20  # bytes of one transcript


def columns_of(speakers: bool) -> dict[str, str]:
  """Those of a store; speakers: whether it says who speaks."""
  return COLUMNS | ({"speaker": "<i4"} if speakers else {})


class Entry(NamedTuple):
  """One utterance; what is missing of it is None."""

  name: str  # told, and what it is held out by
  path: Path
  text: str | None


class How(NamedTuple):
  """What of config.data decides a store."""

  validation: float  # share that is held out
  split_by: str  # by a hash of what: file, folder or text
  damaged: float  # the largest share that may be left out
  channels: str
  speakers: bool = False  # whether it says who speaks


class Spoken(abc.ABC):
  """What all sources share. A subclass lists its entries."""

  def __init__(self, path: str, how: How):
    listing.check_local(path, "path of a source of sound")
    self.path = Path(os.path.abspath(files.expanded(path)))
    if not self.path.exists():
      raise BadData(f"{str(path)!r}: no such file or folder")
    self.name, self.how = self.path.stem, how
    self.columns = columns_of(how.speakers)

  @abc.abstractmethod
  def _listed(self) -> Iterator[Entry]:
    """All utterances there are, in any order."""

  @functools.cached_property
  @reading()
  def _entries(self) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    places: dict[str, str] = {}
    for entry in self._listed():
      place = os.path.normpath(entry.path)
      if place in places or entry.name in found:
        other = places.get(place, entry.name)
        also = f", as {other!r} too" * (other != entry.name)
        raise BadData(f"{self.path}: {entry.name!r} is there twice{also}")
      found[entry.name] = entry
      places[place] = entry.name
    return {name: found[name] for name in sorted(found)}

  def about(self, split: str) -> dict:
    about = {"channels": self.how.channels}
    if self.how.speakers:
      about["speakers"] = list(self._speakers)
    return about

  @functools.cached_property
  def _speakers(self) -> dict[str, int]:
    """{name: number} of all who speak, in whichever split."""
    for name in self._entries:
      if name[0] == "/" or {".", ".."} & set(name.split("/")):
        raise BadData(
          f"{self.path}: data.speakers=True takes the first folder of a "
          f"file's name for who speaks, and {name!r} tells none: write names "
          "from the table's folder on, such as ann/1.wav"
        )
    names = sorted({speaker_of(name) for name in self._entries})
    return {name: number for number, name in enumerate(names)}

  @functools.cached_property
  def _stamps(self) -> tuple[str, str]:
    return self._stamps_of(self._entries)

  @property
  def fingerprint(self) -> str:
    return self._stamps[0]

  @property
  def state(self) -> str:
    return self._stamps[1]

  def unchanged(self) -> bool:
    found = {entry.name: entry for entry in self._listed()}
    return self._stamps_of(found) == self._stamps

  @staticmethod
  def _stamps_of(entries: Mapping[str, Entry]) -> tuple[str, str]:
    """sha256 over names, sizes, times of writing, and all transcripts; and over
    all that changes when a file is touched."""
    digest, state = hashlib.sha256(b"utterances 1"), hashlib.sha256()
    for name in sorted(entries):
      found, text = _state(entries[name].path), entries[name].text
      line = json.dumps([name, found[1], found[2], text])
      digest.update(line.encode() + b"\n")
      state.update(json.dumps([name, found, text]).encode())
    return digest.hexdigest(), state.hexdigest()

  @property
  def division(self) -> str:
    return f"held out {self.how.validation} by {self.how.split_by}"

  def jobs(self, split: str) -> list[Job]:
    """Those of a split: "all", or "train" or "validation"."""
    if split not in SPLITS:
      raise BadData(
        f"{self.path} has no split {split!r}{nearest(split, SPLITS)} (its "
        f"splits: {', '.join(SPLITS)})"
      )
    wanted = [
      ((entry.name,), _state(entry.path)[1] or 1)
      for entry in self._entries.values()
      if split == "all" or self._held_out(entry) == (split == "validation")
    ]
    return grouped(wanted, job_size(sum(size for _, size in wanted)))

  def _held_out(self, entry: Entry) -> bool:
    return is_held_out(self._key(entry), self.how.validation)

  def _key(self, entry: Entry) -> str:
    """What it is held out by: those of one key stay together."""
    return {
      "file": entry.name,
      "folder": entry.name.rpartition("/")[0],
      "text": " ".join((entry.text or "").casefold().split()),
    }[self.how.split_by]

  def example(self, seconds: float) -> Entry | None:
    """An utterance of at most so many seconds, held out where one is."""
    apart = [e for e in self._entries.values() if self._held_out(e)]
    for entry in [*apart, *self._entries.values()][:LOOKED_AT]:
      if not (entry.text or "").strip() or not files.is_there(entry.path):
        continue
      found = next(self._usable(entry, lambda *_: None), None)
      if found is not None and found["samples"] <= seconds * RATE:
        return entry
    return None

  def read(self, job: Job, split: str, drop: Drop) -> Iterator[Record]:
    """The records of a job whose sound and text are as they should be."""
    for (name,) in job.parts:
      entry = self._entries[name]
      if entry.text is None:
        drop("without a transcript", name)
      elif not entry.text.strip():
        drop("with an empty transcript", name)
      elif not files.is_there(entry.path):
        drop("with a transcript and no sound", name)
      else:
        yield from self._usable(entry, drop)

  def _usable(self, entry: Entry, drop: Drop) -> Iterator[Record]:
    if _state(entry.path)[1] > LARGEST_FILE:
      drop(f"larger than {LARGEST_FILE >> 20} MB", entry.name)
      return
    data = files.content(entry.path, limit=LARGEST_FILE)
    try:
      samples_N, notes = decoded(data, self.how.channels)
    except Unusable as e:
      drop(str(e), entry.name)
      return
    for note in notes:
      drop(f"read: {note}", entry.name)
    text = " ".join(entry.text.split())
    record = {
      "audio": samples_N.tobytes(),
      "samples": len(samples_N),
      "text": text.encode("utf-8", "replace"),
    }
    if self.how.speakers:
      record["speaker"] = self._speakers[speaker_of(entry.name)]
    yield record

  def check(self, split: str, kept: int, left_out: LeftOut) -> None:
    """Raises BadData where too many were left out, or none is there."""
    bad = {k: some for k, some in left_out.items() if not k.startswith("read:")}
    lost = sum(some["count"] for some in bad.values())
    if lost > self.how.damaged * (kept + lost):
      raise BadData(
        f"source {self.name!r}: {lost} of {kept + lost} utterances cannot be "
        f"used ({told(bad)}); mend or remove them, or name the share that may "
        f"be left out: --config.data.most_damaged="
        f"{-(-lost * 1000 // (kept + lost)) / 1000}"
      )
    if not kept:
      keys = {self._key(entry) for entry in self._entries.values()}
      raise BadData(
        f"source {self.name!r} has no utterance of the split {split!r}"
        f"{none_of(split, self.how.validation, keys)}; data.split_by="
        f"{self.how.split_by!r} says by what they are divided"
      )


class Folder(Spoken):
  """Sound files to the bottom of a folder, each with NAME.txt beside it."""

  def _listed(self) -> Iterator[Entry]:
    if not self.path.is_dir():
      raise BadData(f"{self.path}: expected a folder of sound files")
    for path in listing.below(self.path):
      if path.suffix.lower() in (*SUFFIXES, *OTHERS):
        beside = path.with_suffix(".txt")
        text = (
          tables.text_of(beside, LARGEST_TEXT)
          if files.is_there(beside)
          else None
        )
        yield Entry(path.relative_to(self.path).as_posix(), path, text)


class Librispeech(Spoken):
  """Folders with lists of transcripts, as LibriSpeech (openslr.org/12)."""

  def _listed(self) -> Iterator[Entry]:
    if not self.path.is_dir():
      raise BadData(f"{self.path}: expected a folder with *.trans.txt in it")
    for path in listing.below(self.path):
      if not path.name.endswith(".trans.txt"):
        continue
      lines = files.lines_of(tables.text_of(path, tables.LARGEST))
      for number, line in enumerate(lines, 1):
        if line.strip():
          name, _, text = line.strip().partition(" ")
          if name[0] == "/" or ".." in name.split("/"):
            raise BadData(
              f"{path} line {number}: {name[:200]!r} leads out of this folder: "
              "expected a NAME, of NAME.flac beside it"
            )
          where = (path.parent / name).relative_to(self.path).as_posix()
          yield Entry(where, _sound(path.parent / name), text)


class Table(Spoken):
  """A file with a row for each utterance."""

  def __init__(self, path: str, audio: str, text: str, how: How):
    super().__init__(path, how)
    self._columns = dict(audio=audio, text=text)

  def _listed(self) -> Iterator[Entry]:
    for number, row in tables.rows(self.path):
      given, text = (self._field(row, number, w) for w in self._columns)
      if not given:
        column = self._columns["audio"]
        raise BadData(f"{self.path} row {number}: {column!r} is empty")
      yield Entry(given, self.path.parent / given, text)

  def _field(self, row: Mapping, number: int, word: str) -> str | None:
    where, column = f"{self.path} row {number}", self._columns[word]
    value = tables.field(row, where, column, word)
    if value is not None and not isinstance(value, str):
      raise BadData(
        f"{where}: {column!r} holds {type(value).__name__}, expected text"
      )
    return value


def speaker_of(name: str) -> str:
  """Who says it: the first folder of its name, "" where it is in none."""
  return name.split("/")[0] if "/" in name else ""


def _sound(stem: Path) -> Path:
  """The file of this name that is there, or the first that could be."""
  found = [stem.parent / f"{stem.name}{suffix}" for suffix in SUFFIXES[::-1]]
  return next(filter(files.is_there, found), found[0])


def _state(path: Path) -> State:
  """What changes with a file, or zeros where there is no such file."""
  try:
    return state_of(os.stat(path))
  except (OSError, ValueError):
    return 0, 0, 0, 0


# kind -> (the maker, the keys that a source of this kind has besides weight)
SOURCES: Kinds = {
  "folder": (Folder, ("path",)),
  "librispeech": (Librispeech, ("path",)),
  "table": (Table, ("path", "audio", "text")),
}


def open_source(spec: Mapping, how: How) -> Spoken:
  """The source of one entry of `data.sources`, which `check_source` passed.

  Raises BadData where there is nothing to read.
  """
  make, keys = SOURCES[spec["kind"]]
  return make(**{key: spec[key] for key in keys}, how=how)
