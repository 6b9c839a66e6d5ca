"""Where labelled images come from: folders, Parquet, TFDS, arrays of packages.

Each gives records {"image": the bytes of a file, "label": a number} to a store
(data/columns.py). An image that cannot be used is left out, counted and told;
more of them than a share of all is refused, for then something else is wrong.
A label that is missing is refused at once, naming its record: no number could
stand for it.
"""

import abc
import functools
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from aigc_jax import files
from aigc_jax.data import listing
from aigc_jax.data.arrays import State, state_of
from aigc_jax.data.columns import BYTES, Drop, LeftOut, Record, told
from aigc_jax.data.documents import (
  Job,
  fold,
  grouped,
  is_held_out,
  job_size,
  none_of,
  reading,
)
from aigc_jax.data.entries import Kinds
from aigc_jax.data.images.decoding import Unusable, checked
from aigc_jax.data.images.parquet import ParquetFiles
from aigc_jax.data.sources import Tfds, _find
from aigc_jax.errors import BadConfig, BadData, choose, nearest
from aigc_jax.terminal import counted

COLUMNS = {"image": BYTES, "label": "<i4"}
SUFFIXES = (
  ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".pgm", ".ppm", ".pnm"
)  # fmt: skip
FOLDERS = {  # what folders of a split are called
  "train": ("train", "training"),
  "validation": ("validation", "val", "valid"),
  "test": ("test",),
}


class Pictured(abc.ABC):
  """What all sources of images share. A subclass gives jobs and `read`.

  damaged: the largest share of images that may be left out.
  """

  columns: Mapping[str, str]

  def __init__(self, name: str, split: str, validation: float, damaged: float):
    self.name, self.split = name, split
    self.validation, self._damaged = validation, damaged
    self._ends: set[str] = set()  # names: the first and last that are divided

  state = ""  # of files: arrays of a package and prepared datasets stay

  def unchanged(self) -> bool:
    """Whether all is as it was when the fingerprint was taken."""
    return True

  def usable(self, name: str, data: bytes, drop: Drop) -> bool:
    """Whether bytes are an image; `drop` is told what there is to tell."""
    try:
      for note in checked(data):
        drop(f"read: {note}", name)
    except Unusable as e:
      drop(str(e), name)
      return False
    return True

  def check(self, split: str, kept: int, left_out: LeftOut) -> None:
    """Raises BadData where too many images were left out, or none is there."""
    bad = {why: some for why, some in left_out.items() if not _is_note(why)}
    lost = sum(some["count"] for some in bad.values())
    if lost > self._damaged * (kept + lost):
      raise BadData(
        f"source {self.name!r}: {lost} of {kept + lost} images cannot be used "
        f"({told(bad)}); mend or remove them, or name the share that may be "
        "left out: --config.data.most_damaged="
        f"{-(-lost * 1000 // (kept + lost)) / 1000}"
      )
    if not kept:
      raise BadData(
        f"source {self.name!r} has no image of the split {split!r}"
        f"{none_of(split, self.validation, self._ends)}"
      )

  def _held_out(self, name: str, split: str) -> bool:
    """Whether a record is of another split, of those made here by its name."""
    names = self._ends | {name}
    self._ends = {min(names, key=fold), max(names, key=fold)}
    return is_held_out(name, self.validation) != (split == "validation")


def _is_note(why: str) -> bool:
  return why.startswith("read: ")


class Labelled(Pictured):
  """Images with labels. A subclass gives `_records`, jobs and splits."""

  columns = COLUMNS
  labels: tuple[str, ...]

  def about(self, split: str) -> dict:
    return {"labels": list(self.labels)}

  def read(self, job: Job, split: str, drop: Drop) -> Iterator[Record]:
    """The records of a job whose images are as they should be."""
    for name, data, label in self._records(job, split):
      if not 0 <= label < len(self.labels):
        raise BadData(
          f"{name}: label {label}, and there are labels "
          f"from 0 to {len(self.labels) - 1}: mend it, or leave it out"
        )
      if self.usable(name, data, drop):
        yield {"image": data, "label": label}

  @abc.abstractmethod
  def _records(self, job: Job, split: str) -> Iterator[tuple[str, bytes, int]]:
    """(name, bytes, label) of the images of a job."""


class Folder(Labelled):
  """PATH/CLASS/IMAGE or PATH/SPLIT/CLASS/IMAGE; classes by name.

  Where there is no folder for a split, "validation" is held out of the others
  by a hash of the image's name. Hidden files and what is no image by its name
  are not looked at.
  """

  def __init__(self, path, split, validation, damaged):
    listing.check_local(path, "path of a source of images")
    self.path = Path(os.path.abspath(files.expanded(path)))
    if not self.path.is_dir():
      raise BadData(
        f"{str(path)!r}: no such folder; expected one with a folder of images "
        "for each label, or those below train, validation"
      )
    super().__init__(self.path.name, split, validation, damaged)

  @functools.cached_property
  def _splits(self) -> dict[str, Path]:
    """The folders of splits that there are; none where classes are on top."""
    found = {
      split: self.path / name
      for split, names in FOLDERS.items()
      for name in reversed(names)
      if (self.path / name).is_dir()
    }
    return found if "train" in found else {}

  @property
  def division(self) -> str:
    own = "validation" in self._splits
    return "its own" if own else f"held out {self.validation}"

  def _top(self, split: str) -> Path:
    if not self._splits:
      if split not in ("train", "validation", "all"):
        raise BadData(
          f"{self.path} has no folder {split!r} (its splits: train, validation)"
        )
      return self.path
    name = split
    if split == "validation" and split not in self._splits:
      name = "train"
    if name not in self._splits:
      raise BadData(
        f"{self.path} has no split {split!r}{nearest(split, self._splits)} (it "
        f"has: {', '.join(sorted(self._splits))})"
      )
    return self._splits[name]

  @functools.cached_property
  @reading()
  def labels(self) -> tuple[str, ...]:
    top = self._splits.get("train", self.path)
    names = sorted(
      p.name for p in top.iterdir() if p.is_dir() and p.name[0] != "."
    )
    if not names:
      raise BadData(
        f"{top}: no folder in it; expected one of images for each label"
      )
    for name in names:
      files.check_text(name, f"{top}: the label")
    return tuple(names)

  @functools.lru_cache(4)  # noqa: B019
  @reading()
  def _images(self, split: str) -> list[tuple[str, State]]:
    """(path below the split's folder, state of the file), by name."""
    top, found = self._top(split), []
    for label in sorted(p.name for p in top.iterdir() if p.is_dir()):
      if label[0] == ".":
        continue
      if label not in self.labels:
        raise BadData(
          f"{top / label}: no such label in the training split "
          f"({counted(len(self.labels), 'label')}, such as {self.labels[0]!r})"
        )
      for path in listing.below(top / label):
        if path.suffix.lower() in SUFFIXES:
          state = state_of(files.regular(path))
          found.append((path.relative_to(top).as_posix(), state))
    return sorted(found)

  @functools.cached_property
  def fingerprint(self) -> str:
    """sha256 over names, sizes and times of change of all images."""
    digest = hashlib.sha256(b"images of folders 1")
    for split in [*self._splits] or ["all"]:
      for name, (_, size, written, _) in self._images(split):
        line = f"\n{split} {name} {size} {written}"
        digest.update(os.fsencode(line))  # names are bytes
    return digest.hexdigest()

  @functools.cached_property
  def state(self) -> str:
    found = [self._images(split) for split in [*self._splits] or ["all"]]
    return files.sha256_json([self.labels, [*self._splits], found])

  def unchanged(self) -> bool:
    again = Folder(self.path, self.split, self.validation, self._damaged)
    return again.state == self.state

  def jobs(self, split: str) -> list[Job]:
    _ = self.labels  # a folder without any is told so
    images = [((name,), state[1]) for name, state in self._images(split)]
    return grouped(images, job_size(sum(size for _, size in images)))

  def _records(self, job, split):
    top = self._top(split)
    divided = split not in self._splits and split != "all"
    if "validation" in self._splits:
      divided = False
    for (name,) in job.parts:
      if divided and self._held_out(name, split):
        continue
      data = files.content(top / name, limit=1 << 30)
      yield str(top / name), data, self.labels.index(name.split("/")[0])


class Parquet(Labelled):
  """Rows with the bytes of an image and a label, a number or a word."""

  def __init__(self, path, split, image, label, validation, damaged):
    self._rows = ParquetFiles(path, dict(image=image, label=label))
    self.path = self._rows.path
    super().__init__(self._rows.name, split, validation, damaged)

  @property
  def division(self) -> str:
    return f"held out {self.validation}"

  @functools.cached_property
  def fingerprint(self) -> str:
    return self._rows.stamp("images of Parquet 1")

  @property
  def state(self) -> str:
    return self._rows.state

  def unchanged(self) -> bool:
    return self._rows.unchanged()

  @functools.cached_property
  def labels(self) -> tuple[str, ...]:
    """Words by name; of numbers, as many as the largest needs."""
    words, largest = set(), -1
    column = self._rows.columns["label"]
    for _, path in self._rows.files:
      for row, value in enumerate(self._rows.column(path, "label")):
        if isinstance(value, bool) or not isinstance(value, int | str):
          raise BadData(
            f"{path} row {row}: label {value!r}, expected a number or a word "
            f"in every row of {column!r}: mend it, or leave it out"
          )
        if isinstance(value, str):
          words.add(value)
        elif not 0 <= value < 2**31:
          raise BadData(f"{path} row {row}: label {value}, expected 0 or more")
        else:
          largest = max(largest, value)
    if words and largest >= 0:
      raise BadData(
        f"{self.path}: {column!r} holds numbers and words: write all of "
        "them as words, or all as numbers"
      )
    return tuple(sorted(words) or map(str, range(largest + 1)))

  def jobs(self, split: str) -> list[Job]:
    return self._rows.jobs()

  def _records(self, job, split):
    if split not in ("train", "validation", "all"):
      raise BadData(f"{self.path}: its splits are train, validation and all")
    for name, path, row, data, (label,) in self._rows.records(job, ("label",)):
      if split != "all" and self._held_out(f"{name}@{row}", split):
        continue
      number = self.labels.index(label) if isinstance(label, str) else label
      yield f"{path} row {row}", data, number


class TfdsImages(Labelled):
  """A prepared TFDS dataset with an image and a label, by its folder."""

  def __init__(self, name, split, image, label, validation, damaged):
    self._tfds = Tfds(name, _find(name), split, image, validation)
    if not self._tfds.present:
      self._tfds.obtain(False, lambda text: None)
    self._image, self._label = image, label
    super().__init__(self._tfds.name, split, validation, damaged)

  @property
  def division(self) -> str:
    return self._tfds.division

  @property
  def fingerprint(self) -> str:
    return self._tfds.fingerprint

  @functools.cached_property
  def labels(self) -> tuple[str, ...]:
    feature = self._features.get(self._label)
    names = getattr(feature, "names", None)
    if not names:
      raise BadData(
        f"tfds {self.name}: {self._label!r} is no label with names (its "
        f"features: {', '.join(self._features)}); label= of the source names it"
      )
    return tuple(names)

  @property
  def _features(self):
    features = dict(self._tfds._builder.info.features.items())
    if self._image not in features:
      raise BadData(
        f"tfds {self.name}: no feature {self._image!r}"
        f"{nearest(self._image, features)}; image= of the source names it"
      )
    return features

  def _source(self, split: str):
    import tensorflow_datasets as tfds

    skip = {self._image: tfds.decode.SkipDecoding()}
    return self._tfds._records(split, skip)

  def jobs(self, split: str) -> list[Job]:
    _ = self._features
    return self._tfds.jobs(split)

  def _records(self, job, split):
    records, where = self._source(split), self._tfds._where(split)
    part = self._tfds.hashed and split in ("validation", self._tfds.split)
    for start, stop in job.parts:
      for number in range(start, stop):
        name = f"{self.name}/{where}@{number}"
        if part and self._held_out(name, split):
          continue
        (row,) = self._tfds._rows(records, [number])
        yield name, _as_bytes(row[self._image]), int(row[self._label])


def _as_bytes(image) -> bytes:
  if isinstance(image, np.ndarray) and image.dtype != object:
    return netpbm(image)
  return bytes(image.item() if isinstance(image, np.ndarray) else image)


class Arrays(Labelled):
  """Small images that a package has as an array; each a PNM file here."""

  def __init__(self, name, split, validation, damaged):
    self._load = choose(name, PACKAGES, "package of images")
    super().__init__(name, split, validation, damaged)

  division = "its own"

  @functools.cached_property
  def _arrays(self):
    """(images (n, Y, X, C) uint8, labels (n,), which are held out (n,))."""
    return self._load()

  @functools.cached_property
  def labels(self) -> tuple[str, ...]:
    return tuple(map(str, range(int(self._arrays[1].max()) + 1)))

  @functools.cached_property
  def fingerprint(self) -> str:
    digest = hashlib.sha256(f"images of packages 1 {self.name}".encode())
    for array in self._arrays:
      digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()

  def jobs(self, split: str) -> list[Job]:
    if split not in ("train", "validation"):
      raise BadData(f"{self.name}: its splits are train and validation")
    images, _, held_out = self._arrays
    which = np.flatnonzero(held_out == (split == "validation"))
    each = images[0].size
    return [
      Job(tuple(map(int, part)), each * len(part))
      for part in np.array_split(which, max(1, len(which) * each >> 20))
    ]

  def _records(self, job, split):
    images, labels, _ = self._arrays
    for i in job.parts:
      yield f"{self.name}[{i}]", netpbm(images[i]), int(labels[i])


def netpbm(image: np.ndarray) -> bytes:
  """(Y, X, 1 or 3) uint8 as the bytes of a file: the same on every machine."""
  Y, X, C = image.shape
  head = f"{'P5' if C == 1 else 'P6'}\n{X} {Y}\n255\n".encode()
  return head + np.ascontiguousarray(image, np.uint8).tobytes()


def _digits():
  """1,797 handwritten digits of 8 x 8 in 17 greys; every fifth held out."""
  try:
    from sklearn.datasets import load_digits
  except ImportError as e:
    raise BadConfig(
      "the digits are those of scikit-learn: pip install scikit-learn"
    ) from e
  found = load_digits()
  images = np.round(found.images * (255 / 16)).astype(np.uint8)[..., None]
  return images, found.target.astype(np.int32), np.arange(len(images)) % 5 == 0


PACKAGES = {"digits": _digits}

# kind -> (the maker, the keys that a source of this kind has besides weight)
SOURCES: Kinds = {
  "folder": (Folder, ("path", "split")),
  "parquet": (Parquet, ("path", "split", "image", "label")),
  "tfds": (TfdsImages, ("name", "split", "image", "label")),
  "package": (Arrays, ("name", "split")),
}


def open_source(
  spec: Mapping, validation: float, damaged: float, kinds=SOURCES
) -> Pictured:
  """The source of one entry of `data.sources`, which `check_source` passed.

  Raises BadData where there is nothing to read.
  """
  make, keys = kinds[spec["kind"]]
  given = {key: spec[key] for key in keys}
  return make(**given, validation=validation, damaged=damaged)


def safe(name: str) -> str:
  """A name for a folder."""
  return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[:40].strip(".") or "images"
