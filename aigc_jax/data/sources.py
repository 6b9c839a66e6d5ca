"""Where text comes from: an embedded corpus, a TFDS dataset, or text files.

A source has a `name`, a `fingerprint` (sha256 of what it holds), its
`splits`, and gives its documents in jobs: `jobs(split)` is a function of the
content alone, `read(job, split)` yields the documents of one. Sources are
plain values that can be sent to a worker process.
"""

import contextlib
import difflib
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging

from aigc_jax.data.corpora import CORPORA
from aigc_jax.data.documents import Document, Job, is_held_out, job_size
from aigc_jax.data.entries import whole
from aigc_jax.data.files import Files
from aigc_jax.data.rows import checked
from aigc_jax.data.tfds_folders import check_folder, check_name
from aigc_jax.errors import BadConfig, BadData, choose, nearest
from aigc_jax.files import locked, readable

AT_ONCE = 256  # records read in one call
LARGEST_HASHED = 256 << 20  # a dataset up to this size is hashed by content


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Without the log lines of TFDS about every file it opens."""
  level = logging.get_verbosity()
  logging.set_verbosity(min(level, logging.WARNING))
  try:
    yield
  finally:
    logging.set_verbosity(level)


def _line(e: Exception) -> str:
  """The first line of an error, or its type."""
  return (str(e).strip() or type(e).__name__).splitlines()[0]


class Tfds:
  """A prepared TFDS dataset in ArrayRecord, by its folder.

  A split that the dataset lacks, named 'validation', is held out of the
  source's own `split` by a hash of the record's number, and left out of it.
  """

  def __init__(self, name, folder, split, field, validation):
    self.name = _dataset(name)
    self.given = name
    self.folder = str(folder)
    self.present = bool(folder)
    self.split = split
    self.field = field
    self.validation = validation

  def __getstate__(self):
    return {k: v for k, v in vars(self).items() if k != "_builder"}

  @functools.cached_property
  def _builder(self):
    check_folder(self.folder)
    try:
      with quiet():
        return tfds.builder_from_directory(self.folder)
    except Exception as e:  # anything may be wrong with the files of others
      raise BadData(f"tfds {self.given}: cannot read {self.folder}: {e}") from e

  def obtain(self, download: bool, say: Callable[[str], None]) -> None:
    """Makes an absent dataset present, by downloading, or raises BadData."""
    way_out = (
      "where there is a network: python -m aigc_jax.prepare "
      f"--tfds={self.given} --download, or: tfds build {self.given} "
      "--file_format=array_record (some datasets need TensorFlow to be made); "
      "TFDS_DATA_DIR names the folder of prepared datasets"
    )
    missing = f"tfds {self.given!r}: not prepared in {_data_dir()}"
    known = tfds.list_builders(with_community_datasets=False)
    # Not every dataset is listed, so only a near miss is worth a word.
    close = difflib.get_close_matches(self.name, known, n=1, cutoff=0.8)
    if close and close[0] != self.name:
      missing += f" (did you mean {close[0]!r}?)"
    if not download:
      raise BadData(f"{missing}; prepare it once, {way_out}")
    say(f"{missing}; downloading")
    try:
      with quiet():
        builder = tfds.builder(self.given, file_format="array_record")
        builder.download_and_prepare()
    except Exception as e:
      raise BadData(
        f"{missing}, and it cannot be downloaded here ({_line(e)}); {way_out}"
      ) from e
    self.folder, self.present = str(builder.data_dir), True

  @property
  def splits(self) -> tuple[str, ...]:
    return tuple(sorted({*self._builder.info.splits, "validation"}))

  @property
  def hashed(self) -> bool:
    """Whether 'validation' is made here, of the training records."""
    return "validation" not in self._builder.info.splits

  @property
  def division(self) -> str:
    """What decides which documents a split has, besides the dataset."""
    if not self.hashed:
      return "its own"
    return f"held out {self.validation} of {self.split}"

  @functools.cached_property
  def fingerprint(self) -> str:
    """sha256 over names and sizes of the dataset's files, and their content
    where they are small."""
    files = sorted(p for p in Path(self.folder).iterdir() if p.is_file())
    total = sum(p.stat().st_size for p in files)
    digest = hashlib.sha256(f"tfds 1 {self.field}".encode())
    for path in files:
      digest.update(f"\n{path.name} {path.stat().st_size} ".encode())
      if total <= LARGEST_HASHED:
        with readable(path) as f:
          digest.update(hashlib.file_digest(f, "sha256").digest())
    return digest.hexdigest()

  state = ""

  def unchanged(self) -> bool:
    """A prepared dataset is never changed."""
    return True

  def _where(self, split: str) -> str:
    """The split to read in the dataset for the split that is asked for."""
    if split == "validation" and self.hashed:
      return self.split
    base = re.match(r"\w*", split).group()
    have = self._builder.info.splits
    if base not in have:
      raise BadConfig(
        f"tfds {self.given} has no split {split!r}{nearest(base, have)} (it "
        f"has: {', '.join(sorted(have))})"
      )
    return split

  def _records(self, split: str, decoders=None):
    where = self._where(split)
    try:
      return self._builder.as_data_source(where, decoders=decoders)
    except (ValueError, NotImplementedError, OSError) as e:
      raise BadData(
        f"tfds {self.given}: {self.folder} cannot be read without TensorFlow: "
        f"{_line(e)}; prepare it as ArrayRecord: "
        f"tfds build {self.given} --file_format=array_record"
      ) from e

  def jobs(self, split: str) -> list[Job]:
    """Ranges of record numbers."""
    n = len(self._records(split))
    name = re.match(r"\w*", self._where(split)).group()
    info = self._builder.info.splits[name]
    each = max(1, (info.num_bytes or 1024 * n) // max(1, info.num_examples))
    step = max(1, job_size(each * n) // each)
    return [
      Job(((at, min(at + step, n)),), each * min(step, n - at))
      for at in range(0, n, step)
    ]

  def read(self, job: Job, split: str) -> Iterator[Document]:
    """The records of a job, less the held-out ones or only those."""
    records = self._records(split)
    where = self._where(split)
    # The dataset's own other splits (test) are whole.
    part = self.hashed and (split == "validation" or split == self.split)
    for start, stop in job.parts:
      for at in range(start, stop, AT_ONCE):
        numbers = list(range(at, min(at + AT_ONCE, stop)))
        for number, row in zip(numbers, self._rows(records, numbers),
                               strict=True):  # fmt: skip
          name = f"{self.name}/{where}@{number}"
          if part and (
            is_held_out(name, self.validation) != (split == "validation")
          ):
            continue
          data = checked(row, self.field, lambda name=name: name)
          if data:
            yield Document(name, data)

  def rows(self, split: str) -> Iterator[tuple[int, dict]]:
    """All records of a split with their numbers, in order."""
    records = self._records(split)
    for at in range(0, len(records), AT_ONCE):
      numbers = list(range(at, min(at + AT_ONCE, len(records))))
      yield from zip(numbers, self._rows(records, numbers), strict=True)

  def _rows(self, records, numbers):
    try:
      return records.__getitems__(numbers)
    except Exception as e:  # the reader's errors have many types
      raise BadData(
        f"tfds {self.given}: records {numbers[0]}..{numbers[-1]} in "
        f"{self.folder} are damaged: {e}; prepare the dataset again"
      ) from e


def _dataset(name: str) -> str:
  """lm1b of lm1b/config:1.0.0, or of the folder .../lm1b/1.0.0."""
  if Path(name, "dataset_info.json").is_file():
    return Path(name).resolve().parent.name
  return name.split("/")[0].split(":")[0]


class Corpus(Tfds):
  """An embedded corpus: its dataset is written when it is first read."""

  def __init__(self, name, split, validation, root, say):
    self._corpus = name
    self._root = str(root)
    super().__init__(name, "", split, "text", validation)
    self.present = True  # it is made from what is here
    self._say = say

  def __getstate__(self):
    # A worker finds the dataset prepared, so it has nothing to say.
    self.prepared()
    state = super().__getstate__()
    return {**state, "_say": None}

  def prepared(self) -> None:
    """Writes the dataset if it is missing."""
    if not self.folder:
      folder = Path(self._root, "corpora")
      with locked(folder / f"{self._corpus}.lock", self._say):
        self.folder = str(CORPORA[self._corpus].prepare(folder, self._say))

  hashed = False  # it has its own validation split

  @functools.cached_property
  def fingerprint(self) -> str:
    """Known from the corpus itself, without its dataset."""
    return CORPORA[self._corpus].fingerprint()

  @functools.cached_property
  def _builder(self):
    self.prepared()
    check_folder(self.folder)
    with quiet():
      return tfds.builder_from_directory(self.folder)


def _corpus(name, split, *, validation, root, say):
  choose(name, CORPORA, "corpus")
  return Corpus(name, split, validation, root, say)


def _tfds(name, split, field, *, validation, root, say):
  return Tfds(name, _find(name), split, field, validation)


def _find(name: str) -> Path | str:
  """The folder of a prepared dataset; "" where there is none."""
  if Path(name, "dataset_info.json").is_file():
    return Path(name)
  check_name(name)
  # Not builder_from_files, which would open it before it is checked.
  find = tfds.core.read_only_builder._find_builder_dir
  try:
    with quiet(), tfds.core.utils.error_utils.record_error_context():
      found = find(name)
  except Exception as e:  # a name that TFDS cannot parse, or found twice
    raise BadConfig(f"tfds {name!r}: {_line(e)}") from e
  return Path(str(found)) if found else ""


def _data_dir() -> str:
  return os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")


def _text(path, split, field, *, validation, root, say):
  if not path:
    raise BadConfig(
      "data path is empty: --config.data.path=PATH names a file, a folder or "
      "a glob"
    )
  return Files(path, field, validation, Path(root, "fingerprints"))


# kind -> (the maker, the keys that a source of this kind has besides weight)
SOURCES: dict[str, tuple[Callable, tuple[str, ...]]] = {
  "corpus": (_corpus, ("name", "split")),
  "tfds": (_tfds, ("name", "split", "field")),
  "text": (_text, ("path", "split", "field")),
}


def open_source(spec: dict, *, validation: float, root, say=print):
  """The source of one entry of `data.sources`.

  A TFDS dataset that is not on this machine gives a source that is not
  `present`: `obtain` it before anything else.
  Raises BadConfig for an unknown or missing key, BadData where there is
  nothing to read.
  """
  spec = dict(spec)
  if "kind" not in spec:
    raise BadConfig(f"source {spec}: no kind (one of: {', '.join(SOURCES)})")
  maker, keys = choose(spec.pop("kind"), SOURCES, "source kind")
  spec.pop("weight", None)
  spec = whole(spec, keys)
  for key in spec:
    if key not in keys:
      raise BadConfig(
        f"source: unknown key {key!r}{nearest(key, keys)} (it has: kind, "
        f"{', '.join(keys)}, weight)"
      )
  for key in keys:
    if key not in spec:
      raise BadConfig(
        f"source {json.dumps(spec)}: no {key!r} (it needs: kind, "
        f"{', '.join(keys)}, weight)"
      )
  if not 0 <= validation < 1:
    raise BadConfig(
      f"data.validation={validation}: expected a fraction from 0 to below 1"
    )
  return maker(**spec, validation=validation, root=root, say=say)
