"""Stores that lie below a root, and sets that were made of those of columns.

Only these are read: no source is, and nothing is written.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from aigc_jax import files
from aigc_jax.data import columns
from aigc_jax.data.columns import Columns
from aigc_jax.data.store import read_manifest
from aigc_jax.data.stream import EvalSet, first_fingerprint
from aigc_jax.errors import BadData

MOST = 10_000  # choices of stores among which a set is looked for
Choice = tuple[Columns, ...]
# What reads the manifest of a store, by the folder below a root that it is in.
READERS = {
  "stores": read_manifest,
  **dict.fromkeys(("images", "captions", "sound"), columns.read_manifest),
}


def stores_in(folder: Path, opened=Columns) -> list[Columns]:
  """All that can be opened, by name; opened: what opens one, or BadData."""
  found = []
  for path in sorted(folder.glob("*")):
    try:
      found.append(opened(path))
    except BadData:
      continue  # it cannot be one that was read
  return found


def damaged(root: str) -> str:
  """Why a store below root is none that could be read; "" where all can be.

  Such a one is passed over where a set is looked for among them.
  """
  for place, read in READERS.items():
    for path in sorted((files.expanded(root) / place).glob("*")):
      if not path.is_dir() or path.suffix == ".building":
        continue
      try:
        read(path)
      except BadData as refusal:
        return str(refusal)
  return ""


def of_split(stores: Iterable[Columns], split: str) -> list[Columns]:
  return [store for store in stores if store.manifest["split"] == split]


def choices(each: Iterable[Sequence[Columns]]) -> Iterator[Choice]:
  """One store of each list, in every way; not endlessly."""
  yield from itertools.islice(itertools.product(*each), MOST)


def known_set(
  choices: Iterable[Choice],
  fingerprints: Sequence[str],
  batches: int | None,
  fingerprint: Callable[[Choice], str],
  made: Callable[[Choice], EvalSet],
) -> tuple[Choice, EvalSet] | None:
  """The stores of one of these fingerprints, checked, and the set of them.

  batches: of the set, where it is not all. fingerprint, made: what the whole
  set of some stores has for a fingerprint, and that set. Raises BadData for
  stores that are damaged.
  """
  for choice in choices:
    whole = fingerprint(choice)
    own = whole if batches is None else first_fingerprint(whole, batches)
    if not {whole, own} & set(fingerprints):
      continue
    check(choice)
    found = made(choice)
    found = found if batches is None else found.first(batches)
    if found.fingerprint in fingerprints:
      return choice, found
  return None


def check(choice: Choice) -> None:
  for store in choice:
    store.check(remember=False)
