"""Where text comes from: an embedded corpus, a TFDS dataset, or text files.

A source has a `name`, a `fingerprint` (sha256 of what it holds), its
`splits`, and gives its documents in jobs: `jobs(split)` is a function of the
content alone, `read(job, split)` yields the documents of one. Sources are
plain values that can be sent to a worker process.
"""

import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from aigc_jax.data.corpora import CORPORA
from aigc_jax.data.disk import locked
from aigc_jax.data.documents import Document, Job, is_held_out, job_size
from aigc_jax.data.files import Files
from aigc_jax.data.rows import checked
from aigc_jax.errors import BadConfig, BadData, choose, nearest

AT_ONCE = 256  # records read in one call
LARGEST_HASHED = 256 << 20  # a dataset up to this size is hashed by content


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
    try:
      return tfds.builder_from_directory(self.folder)
    except Exception as e:  # anything may be wrong with the files of others
      raise BadData(f"tfds {self.given}: cannot read {self.folder}: {e}") from e

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
        with open(path, "rb") as f:
          digest.update(hashlib.file_digest(f, "sha256").digest())
    return digest.hexdigest()

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

  def _records(self, split: str):
    try:
      return self._builder.as_data_source(self._where(split))
    except (ValueError, NotImplementedError, OSError) as e:
      raise BadData(
        f"tfds {self.given}: {self.folder} cannot be read without TensorFlow: "
        f"{str(e).splitlines()[0]}; prepare it as ArrayRecord: "
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
    return tfds.builder_from_directory(self.folder)


def _corpus(name, split, *, validation, root, say, make):
  choose(name, CORPORA, "corpus")
  return Corpus(name, split, validation, root, say)


def _tfds(name, split, field, *, validation, root, say, make):
  folder = _find(name, say, make)
  return Tfds(name, folder, split, field, validation)


def _find(name: str, say, make: bool) -> Path | str:
  """The folder of a dataset: prepared already, or now if `make`, else ""."""
  if Path(name, "dataset_info.json").is_file():
    return Path(name)
  try:
    found = tfds.core.load.find_builder_dir(name)
  except Exception as e:  # a name that TFDS cannot parse
    raise BadConfig(f"tfds {name!r}: not a dataset name: {e}") from e
  if found:
    return Path(found)
  if not make:
    return ""
  way_out = (
    f"prepare it once, where there is a network: tfds build {name} "
    "--file_format=array_record (needs TensorFlow for some datasets), and set "
    "TFDS_DATA_DIR to the folder that holds it"
  )
  try:
    builder = tfds.builder(name, file_format="array_record")
  except Exception as e:
    known = tfds.list_builders(with_community_datasets=False)
    hint = nearest(name.split("/")[0].split(":")[0], known)
    raise BadData(
      f"tfds {name!r}: not prepared in {_data_dir()} and not a dataset that "
      f"TFDS can make here{hint} ({str(e).strip().splitlines()[0]}); {way_out}"
    ) from e
  say(f"tfds {name}: not prepared in {_data_dir()}; downloading")
  try:
    builder.download_and_prepare()
  except Exception as e:
    reason = (str(e).strip() or type(e).__name__).splitlines()[0]
    raise BadData(
      f"tfds {name!r}: not prepared in {_data_dir()} and it cannot be "
      f"downloaded: {reason}; {way_out}"
    ) from e
  return Path(str(builder.data_dir))


def _data_dir() -> str:
  return os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")


def _text(path, split, field, *, validation, root, say, make):
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


def open_source(
  spec: dict, *, validation: float, root, say=print, make: bool = True
):
  """The source of one entry of `data.sources`.

  make: a dataset that is not on this machine is downloaded; otherwise such a
  source is not `present`, and nothing else of it may be asked.

  Raises BadConfig for an unknown or missing key, BadData where there is
  nothing to read.
  """
  spec = dict(spec)
  if "kind" not in spec:
    raise BadConfig(f"source {spec}: no kind (one of: {', '.join(SOURCES)})")
  maker, keys = choose(spec.pop("kind"), SOURCES, "source kind")
  spec.pop("weight", None)
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
  return maker(**spec, validation=validation, root=root, say=say, make=make)
