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
import functools
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aigc_jax import files
from aigc_jax.data import listing, tables
from aigc_jax.data.arrays import state_of
from aigc_jax.data.columns import BYTES, Drop, Record
from aigc_jax.data.documents import Job, grouped, job_size, reading
from aigc_jax.data.images.parquet import ParquetFiles
from aigc_jax.data.images.sources import (
  PACKAGES,
  SUFFIXES,
  Pictured,
  netpbm,
)
from aigc_jax.errors import BadData, choose, nearest
from aigc_jax.terminal import counted

COLUMNS = {"image": BYTES, "captions": BYTES}
SPLITS = ("train", "validation", "all")
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


def refuse(
  source: str, noun: str, what: str, names: list[str], mend: str
) -> None:
  """Raises BadData naming what lacks something, if anything does."""
  if names:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    raise BadData(
      f"{source}: {counted(len(names), noun)} {what}: "
      f"{', '.join(names[:SHOWN])}{more}; {mend}"
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
  @reading()
  def _entries(self) -> list[Entry]:
    return self._listed()

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
    return self._stamps_of(self._listed()) == self._stamps

  @staticmethod
  def _stamps_of(entries: list[Entry]) -> tuple[str, str]:
    """sha256 over names, sizes, times of writing, and all captions; and over
    all that changes when a file is touched."""
    digest, state = hashlib.sha256(b"captioned files 1"), hashlib.sha256()
    for name, path, captions in entries:
      found = state_of(files.regular(path))
      line = json.dumps([name, found[1], found[2], captions])
      digest.update(line.encode() + b"\n")
      state.update(json.dumps([name, found, captions]).encode())
    return digest.hexdigest(), state.hexdigest()

  def jobs(self, split: str) -> list[Job]:
    self._check_split(split)
    wanted = [
      ((i,), files.regular(entry.path).st_size or 1)
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
    for path in listing.below(self.path):
      if path.suffix.lower() not in SUFFIXES:
        continue
      beside = path.with_suffix(".txt")
      text = (
        tables.text_of(beside, LARGEST_TEXT) if files.is_there(beside) else ""
      )
      captions = cleaned(files.lines_of(text), str(beside))
      entry = Entry(path.relative_to(self.path).as_posix(), path, captions)
      (found if captions else lacking).append(entry)
    refuse(
      str(self.path), "image", "without a caption", [e.name for e in lacking],
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
    names: dict[str, str] = {}  # of a file; by it an image is held out
    for number, row in tables.rows(self.path):
      where = f"row {number}"
      name, value = (
        tables.field(row, f"{self.path} {where}", key, word)
        for word, key in (("image", self._image), ("caption", self._caption))
      )
      captions = cleaned(value, f"{self.path} {where}")
      if not isinstance(name, str) or not name:
        raise BadData(
          f"{self.path} {where}: {self._image!r} names no file: {name!r}"
        )
      path = self.path.parent / name
      other = names.setdefault(os.path.normpath(path), name)
      if other != name:
        raise BadData(
          f"{self.path} {where}: {name!r} and {other!r} are one file, and what "
          "is held out goes by the name: write one of them in all rows"
        )
      if not captions:
        lacking.append(f"{where} ({name})")
      elif not files.is_there(path):
        gone.append(f"{where} ({name})")
      else:
        found.append(Entry(name, path, captions))
    refuse(
      str(self.path), "row", "without a caption", lacking,
      f"write one into {self._caption!r}, or take the row out",
    )  # fmt: skip
    refuse(
      str(self.path), "row", "of an image that is not there", gone,
      f"files are looked for from {self.path.parent} on; put them there, or "
      "take the rows out",
    )  # fmt: skip
    if not found:
      raise BadData(f"{self.path}: it has no row")
    return found


class Parquet(Captioned):
  """Rows with the bytes of an image, and captions (images/parquet.py)."""

  def __init__(self, path, split, image, caption, validation, damaged):
    self._rows = ParquetFiles(path, dict(image=image, caption=caption))
    super().__init__(self._rows.name, split, validation, damaged)

  @functools.cached_property
  def fingerprint(self) -> str:
    return self._rows.stamp("captions of Parquet 1")

  @property
  def state(self) -> str:
    return self._rows.state

  def unchanged(self) -> bool:
    return self._rows.unchanged()

  @functools.cached_property
  def _captions(self) -> dict[str, list[list[str]]]:
    """{file: captions of its rows}; BadData where some have none."""
    found, lacking = {}, []
    for name, path in self._rows.files:
      found[name] = [
        cleaned(value, f"{path} row {row}")
        for row, value in enumerate(self._rows.column(path, "caption"))
      ]
      lacking += [
        f"{name} row {row}" for row, some in enumerate(found[name]) if not some
      ]
    refuse(
      self._rows.path, "row", "without a caption", lacking,
      f"write one into {self._rows.columns['caption']!r}, or take the row out",
    )  # fmt: skip
    return found

  def jobs(self, split: str) -> list[Job]:
    self._check_split(split)
    _ = self._captions  # refused before anything is made
    return self._rows.jobs()

  def _records(self, job, split):
    for name, path, row, data, _ in self._rows.records(job, ()):
      if self._of_split(f"{name}@{row}", split):
        yield f"{path} row {row}", data, self._captions[name][row]


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
