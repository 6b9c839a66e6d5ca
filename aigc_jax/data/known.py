"""Held-out sets that a run has read, found again by their fingerprints.

A fingerprint says which stores a set is of, and the stores below a root say
their own. So nothing that a config names is opened, and nothing is written.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from aigc_jax import files
from aigc_jax.data.listing import check_local
from aigc_jax.data.store import Store, read_manifest
from aigc_jax.data.stream import EvalSet, first_fingerprint
from aigc_jax.data.windows import (
  eval_fingerprint,
  eval_of,
  texts_fingerprint,
)
from aigc_jax.errors import BadData

MOST = 200_000  # choices of stores that are looked at, a few seconds


def find_eval(
  fingerprints: Sequence[str],
  *,
  root: str,
  splits: Sequence[str],
  batches: int | None,
  tokenizer,
  task: dict,
  batch: int,
  length: int,
  segments: bool,
  texts: Sequence[str] = (),
) -> EvalSet | None:
  """The set with the first of these fingerprints that is there, or None.

  splits: that of each of its stores, in order. batches: how many of it are
  read, None for all. texts: if any, it has one of these texts_fingerprints.
  Raises BadData for a store that is damaged.
  """
  check_local(root, "data.root")
  settings = dict(task=task, batch=batch, length=length, segments=segments)
  known = list(_stores(files.expanded(root) / "stores", tokenizer.fingerprint))
  made: dict[str, tuple[Path, ...]] = {}
  choices = itertools.product(
    *([one for one in known if one.split == split] for split in splits)
  )
  for choice in itertools.islice(choices, MOST):
    folders = tuple(store.folder for store in choice)
    sizes = [store.bytes for store in choice]
    if texts and texts_fingerprint(sizes) not in texts:
      continue
    whole = eval_fingerprint([s.fingerprint for s in choice], **settings)
    made.setdefault(whole, folders)
    if batches is not None:
      made.setdefault(first_fingerprint(whole, batches), folders)
  for wanted in fingerprints:
    if wanted not in made:
      continue
    stores = [Store(folder) for folder in made[wanted]]
    for store in stores:
      store.check(remember=False)
    found = eval_of(stores, tokenizer, **settings)
    found = found if batches is None else found.first(batches)
    if found.fingerprint == wanted:
      return found
  return None


class _Known(NamedTuple):
  """What the manifest of a store says."""

  folder: Path
  split: str
  fingerprint: str
  bytes: int


def _stores(folder: Path, tokenizer: str) -> Iterator[_Known]:
  """Each store of a tokenizer's ids."""
  try:
    places = sorted(path for path in folder.iterdir() if path.is_dir())
  except OSError:
    return
  for place in places:
    try:
      manifest = read_manifest(place)
    except BadData:
      continue  # it cannot be the one that was read
    if manifest["tokenizer"]["fingerprint"] == tokenizer:
      keys = ("split", "fingerprint", "bytes")
      yield _Known(place, *(manifest[key] for key in keys))
