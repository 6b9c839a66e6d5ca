"""Where images with captions come from: folders, tables, Parquet, packages.

  folder   images anywhere below PATH; beside NAME.jpg a NAME.txt, whose lines
           are its captions
  table    a file of JSON lines, or of tab- or comma-separated columns with a
           head: which image (from the table's own folder on), and its caption;
           in JSON it may be a list of several
  parquet  rows with the bytes of an image and a caption, or a list of them
  package  small images of a package, captioned here

Each gives records {"image": the bytes of a file, "captions": a JSON list} to a
store (data/columns.py). An image without a caption, or a caption without an
image, is refused before anything is made, with the names of the first. An image
that cannot be used is left out, counted and told, as of labelled ones.
"""

import abc
import csv
import functools
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aigc_jax import files
from aigc_jax.data import listing
from aigc_jax.data.columns import BYTES, Drop, Record
from aigc_jax.data.documents import Job, grouped, job_size
from aigc_jax.data.images.sources import (
  PACKAGES,
  SUFFIXES,
  Pictured,
  netpbm,
)
from aigc_jax.data.rows import _parquet
from aigc_jax.errors import BadData, choose, nearest

COLUMNS = {"image": BYTES, "captions": BYTES}
SPLITS = ("train", "validation", "all")
LARGEST_TABLE = 1 << 30
LARGEST_TEXT = 1 << 20  # bytes of the captions of one image
LARGEST_IMAGE = 1 << 30
SHOWN = 5  # names of what lacks something


class Captioned(Pictured):
  """Images with captions. A subclass gives `_records` and jobs."""

  columns = COLUMNS

  def about(self, split: str) -> dict:
    return {}

  @property
  def division(self) -> str:
    return f"held out {self.validation}"

  def read(self, job: Job, split: str, drop: Drop) -> Iterator[Record]:
    """The records of a job whose images are as they should be."""
    for name, data, captions in self._records(job, split):
      if self.usable(name, data, drop):
        yield {"image": data, "captions": json.dumps(captions).encode()}

  @abc.abstractmethod
  def _records(
    self, job: Job, split: str
  ) -> Iterator[tuple[str, bytes, list[str]]]:
    """(name, bytes, captions) of the images of a job."""

  def _check_split(self, split: str) -> None:
    if split not in SPLITS:
      raise BadData(
        f"{self.name}: no split {split!r}{nearest(split, SPLITS)} (its splits: "
        f"{', '.join(SPLITS)})"
      )

  def _of_split(self, name: str, split: str) -> bool:
    return split == "all" or not self._held_out(name, split)


def cleaned(value, where: str) -> list[str]:
  """The captions that a value holds: a text, or a list of some; none for null.

  Spaces at the ends go, and so do captions of nothing else. Raises BadData for
  what is no text.
  """
  given = value if isinstance(value, list) else [value]
  found = []
  for text in given:
    if text is None:
      continue
    if not isinstance(text, str):
      raise BadData(
        f"{where}: a caption is {type(text).__name__}, expected a text or a "
        "list of texts"
      )
    if text.strip():
      found.append(text.strip())
  return found


def refuse(source: str, what: str, names: list[str], mend: str) -> None:
  """Raises BadData naming what lacks something, if anything does."""
  if names:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    raise BadData(
      f"{source}: {len(names):,} {what}: {', '.join(names[:SHOWN])}{more}; "
      f"{mend}"
    )


class Entry(NamedTuple):
  """An image in a file of its own."""

  name: str  # told, and what it is held out by
  path: Path
  captions: list[str]


class OfFiles(Captioned):
  """Images in files. A subclass lists them."""

  def __init__(self, path, split, validation, damaged):
    listing.check_local(path, "path of a source of images")
    self.path = Path(os.path.abspath(files.expanded(path)))
    if not self.path.exists():
      raise BadData(f"{str(path)!r}: no such file or folder")
    super().__init__(self.path.stem, split, validation, damaged)

  @abc.abstractmethod
  def _listed(self) -> list[Entry]:
    """All images there are; BadData for what lacks a caption or a file."""

  @functools.cached_property
  def _entries(self) -> list[Entry]:
    return self._listed()

  @functools.cached_property
  def fingerprint(self) -> str:
    return self._stamp(self._entries)

  def unchanged(self) -> bool:
    return self._stamp(self._listed()) == self.fingerprint

  @staticmethod
  def _stamp(entries: list[Entry]) -> str:
    """sha256 over names, sizes, times of change, and all captions."""
    digest = hashlib.sha256(b"captioned files 1")
    for name, path, captions in entries:
      found = os.stat(path)
      line = json.dumps([name, found.st_size, found.st_mtime_ns, captions])
      digest.update(line.encode() + b"\n")
    return digest.hexdigest()

  def jobs(self, split: str) -> list[Job]:
    self._check_split(split)
    wanted = [
      ((i,), os.path.getsize(entry.path) or 1)
      for i, entry in enumerate(self._entries)
      if self._of_split(entry.name, split)
    ]
    return grouped(wanted, job_size(sum(size for _, size in wanted)))

  def _records(self, job, split):
    for (i,) in job.parts:
      entry = self._entries[i]
      data = files.content(entry.path, limit=LARGEST_IMAGE)
      yield entry.name, data, entry.captions


class Folder(OfFiles):
  """Images to the bottom of a folder, each with NAME.txt beside it."""

  def _listed(self) -> list[Entry]:
    if not self.path.is_dir():
      raise BadData(f"{self.path}: expected a folder of images")
    found, lacking = [], []
    for place, folders, names in os.walk(self.path):
      folders[:] = sorted(name for name in folders if name[0] != ".")
      for name in sorted(names):
        path = Path(place, name)
        if name[0] == "." or path.suffix.lower() not in SUFFIXES:
          continue
        beside = path.with_suffix(".txt")
        text = _text(beside, LARGEST_TEXT) if beside.is_file() else ""
        captions = cleaned(text.splitlines(), str(beside))
        entry = Entry(path.relative_to(self.path).as_posix(), path, captions)
        (found if captions else lacking).append(entry)
    refuse(
      str(self.path), "image(s) without a caption", [e.name for e in lacking],
      "write what is on NAME.jpg into NAME.txt beside it, or move it away",
    )  # fmt: skip
    if not found:
      raise BadData(f"{self.path}: no image in it ({', '.join(SUFFIXES)})")
    return sorted(found)


class Table(OfFiles):
  """A file with a row for each image."""

  def __init__(self, path, split, image, caption, validation, damaged):
    super().__init__(path, split, validation, damaged)
    self._image, self._caption = image, caption

  def _listed(self) -> list[Entry]:
    found, lacking, gone = [], [], []
    for number, row in self._rows():
      where = f"row {number}"
      name, value = (
        _field(row, f"{self.path} {where}", key, word)
        for word, key in (("image", self._image), ("caption", self._caption))
      )
      captions = cleaned(value, f"{self.path} {where}")
      if not isinstance(name, str) or not name:
        raise BadData(
          f"{self.path} {where}: {self._image!r} names no file: {name!r}"
        )
      path = self.path.parent / name
      if not captions:
        lacking.append(f"{where} ({name})")
      elif not path.is_file():
        gone.append(f"{where} ({name})")
      else:
        found.append(Entry(name, path, captions))
    refuse(
      str(self.path), "row(s) without a caption", lacking,
      f"write one into {self._caption!r}, or take the row out",
    )  # fmt: skip
    refuse(
      str(self.path), "row(s) whose image is not there", gone,
      f"files are looked for from {self.path.parent} on; put them there, or "
      "take the rows out",
    )  # fmt: skip
    if not found:
      raise BadData(f"{self.path}: it has no row")
    return found

  def _rows(self) -> Iterator[tuple[int, dict]]:
    suffix = self.path.suffix.lower()
    if suffix not in (".jsonl", ".json", ".ndjson", ".tsv", ".csv"):
      raise BadData(
        f"{self.path}: expected JSON lines (.jsonl) or columns (.tsv, .csv)"
      )
    content = _text(self.path, LARGEST_TABLE)
    if suffix in (".tsv", ".csv"):
      tabs = dict(delimiter="\t", quoting=csv.QUOTE_NONE)
      how = tabs if suffix == ".tsv" else {}
      rows = csv.DictReader(io.StringIO(content), **how)
      try:
        yield from enumerate(rows, 1)
      except csv.Error as e:
        raise BadData(f"{self.path} line {rows.line_num}: {e}") from None
      return
    for number, line in enumerate(content.splitlines(), 1):
      if line.strip():
        where = f"{self.path} row {number}"
        row = files.parse_json(line.encode(), where)
        if not isinstance(row, dict):
          raise BadData(f"{where}: expected an object, got {line[:60]!r}")
        yield number, row


def _field(row: dict, where: str, key: str, word: str):
  if key not in row:
    names = [str(name)[:40] for name in row][:20]
    raise BadData(
      f"{where}: no {key!r}{nearest(key, names)} (it has: {', '.join(names)}); "
      f"{word}=NAME of the source names it"
    )
  return row[key]


def _text(path: Path, limit: int) -> str:
  try:
    return files.content(path, limit=limit).decode("utf-8-sig")
  except UnicodeDecodeError as e:
    raise BadData(f"{path}: not UTF-8: {e}") from None


class Parquet(Captioned):
  """Rows with the bytes of an image, and captions.

  The image is a column of bytes, or of {"bytes": ..., "path": ...} as Hugging
  Face's datasets write it.
  """

  def __init__(self, path, split, image, caption, validation, damaged):
    listing.check_local(path, "path of a source of images")
    self.path = os.path.abspath(files.expanded(path))
    found = listing.find(self.path, path, Path(os.devnull))
    self._files = [f for f in found.files if f[0].endswith(".parquet")]
    if not self._files:
      raise BadData(f"{str(path)!r}: no .parquet file there")
    self._image, self._caption = image, caption
    super().__init__(Path(self.path).stem, split, validation, damaged)

  @functools.cached_property
  def fingerprint(self) -> str:
    content = [(name, files.sha256_file(path)) for name, path, _ in self._files]
    return files.sha256_json(
      ["captions of Parquet 1", self._image, self._caption, *content]
    )

  @functools.cached_property
  def _captions(self) -> dict[str, list[list[str]]]:
    """{file: captions of its rows}; BadData where some have none."""
    found, lacking = {}, []
    for name, path, _ in self._files:
      file = _parquet(path)
      for word, key in (("image", self._image), ("caption", self._caption)):
        _field(dict.fromkeys(file.schema_arrow.names), path, key, word)
      column = _read(path, lambda f=file: f.read([self._caption]).column(0))
      found[name] = [
        cleaned(value, f"{path} row {row}")
        for row, value in enumerate(column.to_pylist())
      ]
      lacking += [
        f"{name} row {row}" for row, some in enumerate(found[name]) if not some
      ]
    refuse(
      self.path, "row(s) without a caption", lacking,
      f"write one into {self._caption!r}, or take the row out",
    )  # fmt: skip
    return found

  def jobs(self, split: str) -> list[Job]:
    self._check_split(split)
    _ = self._captions  # refused before anything is made
    parts = []
    for name, path, _ in self._files:
      meta = _parquet(path).metadata
      for i in range(meta.num_row_groups):
        parts.append(((name, path, i), meta.row_group(i).total_byte_size))
    return grouped(parts, job_size(sum(size for _, size in parts)))

  def _records(self, job, split):
    for name, path, group in job.parts:
      file = _parquet(path)
      at = sum(file.metadata.row_group(i).num_rows for i in range(group))
      table = _read(
        path, lambda f=file, g=group: f.read_row_group(g, [self._image])
      )
      images = table.column(self._image).to_pylist()
      for row, image in enumerate(images, start=at):
        if not self._of_split(f"{name}@{row}", split):
          continue
        data = image.get("bytes") if isinstance(image, dict) else image
        # Nothing is no image: it is counted with those that are damaged.
        yield f"{path} row {row}", data or b"", self._captions[name][row]


def _read(path: str, read: Callable):
  try:
    return read()
  except (ValueError, OSError) as e:  # pyarrow's errors are both
    raise BadData(f"{path}: damaged Parquet file: {e}") from e


class Package(Captioned):
  """Small images that a package has, each with captions of its label."""

  division = "its own"

  def __init__(self, name, split, validation, damaged):
    self._words, self._templates = choose(name, WORDS, "package of captions")
    self._load = PACKAGES[name]
    super().__init__(name, split, validation, damaged)

  @functools.cached_property
  def _arrays(self):
    return self._load()

  @functools.cached_property
  def fingerprint(self) -> str:
    digest = hashlib.sha256(f"captions of packages 1 {self.name}".encode())
    for array in self._arrays:
      digest.update(np.ascontiguousarray(array).data)
    digest.update(json.dumps([self._words, self._templates]).encode())
    return digest.hexdigest()

  def jobs(self, split: str) -> list[Job]:
    self._check_split(split)
    images, _, held_out = self._arrays
    which = np.arange(len(images))
    if split != "all":
      which = np.flatnonzero(held_out == (split == "validation"))
    size = images[0].size * len(which)
    return [Job(tuple(map(int, which)), size)]

  def _records(self, job, split):
    images, labels, _ = self._arrays
    for i in job.parts:
      word = self._words[labels[i]]
      captions = [template.format(word) for template in self._templates]
      yield f"{self.name}[{i}]", netpbm(images[i]), captions


# Of a package of images: a word for each label, and what is said of it.
WORDS = {
  "digits": (
    ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight",
     "nine"),
    ("a {}", "the digit {}", "a handwritten {}", "somebody wrote a {}"),
  ),
}  # fmt: skip

# kind -> (the maker, the keys that a source of this kind has besides weight)
SOURCES = {
  "folder": (Folder, ("path", "split")),
  "table": (Table, ("path", "split", "image", "caption")),
  "parquet": (Parquet, ("path", "split", "image", "caption")),
  "package": (Package, ("name", "split")),
}
