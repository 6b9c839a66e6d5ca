"""Python's own source and documentation, found beside the running Python.

Real code and real English: the modules of the standard library with their
docstrings, and the language reference that `help()` prints, one document for
each topic. Train and validation are split by file: a file, or a topic, is
wholly in one of them. The content is a function of the Python installation.
"""

import ast
import contextlib
import functools
import hashlib
import io
import os
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from aigc_jax.errors import BadData

# Tests repeat themselves; encodings are tables; the rest is not Python's own.
SKIPPED_FOLDERS = frozenset(
  "__pycache__ dist-packages encodings idle_test site-packages test tests "
  "turtledemo".split()
)
SKIPPED_FILES = ("html/entities.py", "pydoc_data/topics.py")
TOPICS = "pydoc_data/topics.py"
LARGEST_FILE = 512 << 10  # anything larger is a generated table
VALIDATION = 0.065  # of the documents; about 600 kB


def fold(name: str) -> float:
  """A number in [0, 1) that depends on the name alone."""
  word = hashlib.sha256(b"stdlib " + name.encode()).digest()[:8]
  return int.from_bytes(word, "big") / 2**64


@functools.cache
def documents() -> dict[str, bytes]:
  """All documents by name, in order; one of several equal ones is kept.

  Raises BadData where this Python has no sources.
  """
  root = Path(sysconfig.get_paths()["stdlib"])
  found: dict[str, bytes] = {}
  for folder, folders, files in os.walk(root):
    folders[:] = sorted(
      f
      for f in folders
      if f not in SKIPPED_FOLDERS and not f.startswith("config-")
    )
    for file in sorted(files):
      path = Path(folder, file)
      name = path.relative_to(root).as_posix()
      if path.suffix != ".py" or name in SKIPPED_FILES:
        continue
      if "sysconfigdata" in file or path.stat().st_size > LARGEST_FILE:
        continue
      found[name] = path.read_bytes()
  found.update(_topics(root / TOPICS))
  by_text: dict[bytes, str] = {}
  for name in sorted(found):
    if found[name].strip():
      by_text.setdefault(found[name], name)
  if sum(map(len, by_text)) < 1 << 20:
    raise BadData(
      f"corpus 'stdlib': {root} holds less than 1 MB of Python sources; "
      "install the sources of the standard library, or train on your own "
      "text: --config=configs/text_file.py --config.data.path=PATH"
    )
  return {name: text for text, name in by_text.items()}


def _topics(path: Path) -> dict[str, bytes]:
  """The texts of `help()`: a dict literal, parsed and never executed."""
  if not path.is_file():
    return {}
  for node in ast.parse(path.read_bytes()).body:
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
      topics = ast.literal_eval(node.value)
      return {
        f"pydoc_data/topics/{name}.txt": text.strip().encode() + b"\n"
        for name, text in topics.items()
      }
  return {}


@functools.cache
def fingerprint() -> str:
  """sha256 over the names and contents of all documents."""
  digest = hashlib.sha256(b"stdlib 1")
  for name, text in documents().items():
    digest.update(f"\n{name} {len(text)} ".encode())
    digest.update(hashlib.sha256(text).digest())
  return digest.hexdigest()


class Stdlib(tfds.core.GeneratorBasedBuilder):
  """Files of the Python standard library and topics of its documentation."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "Split by file."}

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=__doc__,
      features=tfds.features.FeaturesDict(
        {"name": tfds.features.Text(), "text": tfds.features.Text()}
      ),
      homepage="https://docs.python.org/3/library/",
    )

  def _split_generators(self, dl_manager) -> dict:
    del dl_manager  # nothing is downloaded
    return {
      "train": self._generate_examples(held_out=False),
      "validation": self._generate_examples(held_out=True),
    }

  def _generate_examples(self, held_out: bool) -> Iterator[tuple[str, dict]]:
    for name, text in documents().items():
      if (fold(name) < VALIDATION) == held_out:
        yield name, {"name": name, "text": text}


def prepare(data_dir: Path, say: Callable[[str], None]) -> Path:
  """The folder of the prepared dataset below `data_dir`, written if missing.

  Each state of the standard library has its own folder, so that a change of
  Python is a new dataset and never a mixture of two.
  """
  builder = Stdlib(
    data_dir=str(Path(data_dir, fingerprint()[:16])), file_format="array_record"
  )
  folder = Path(str(builder.data_dir))
  if not folder.is_dir():
    say(f"preparing corpus 'stdlib' in {folder}")
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # it speaks of downloads
      builder.download_and_prepare()
  return folder
