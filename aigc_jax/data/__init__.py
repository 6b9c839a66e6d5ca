"""Everything before the device: text in, batches of tokens out.

corpora, sources -> tokenizers -> writer, store -> tasks, mixture, loader

A batch is a dict of global arrays; B is the batch, T the length:
  tokens     (B, T) int32    what the model sees
  targets    (B, T) int32    what it should say at each position
  weights    (B, T) float32  how much each target counts; 0 is padding
  positions  (B, T) int32    with segments only: from 0 in each document
  segments   (B, T) int32    with segments only: the document, from 1; 0 padding

`build` gives the training Stream, `build_eval` a held-out EvalSet; both
prepare missing token stores below `root` and say so. `prepare` does it ahead
of time, `prepared` only looks.
"""

from aigc_jax.data.known import find_eval
from aigc_jax.data.loader import (
  EvalSet,
  Stream,
  batches,
  check_vocab,
  place,
)
from aigc_jax.data.mixture import first_example
from aigc_jax.data.preparation import (
  find_tokenizer,
  open_stores,
  prepare,
  prepared,
)
from aigc_jax.data.store import Store
from aigc_jax.data.tokenizers import (
  Decoder,
  bytes_of,
  check_ids,
  encode_special,
  load,
  load_tokenizer,
  save,
)

__all__ = [
  "Decoder", "EvalSet", "Store", "Stream", "batches", "build", "build_eval",
  "bytes_of", "check_ids", "check_vocab", "encode_special", "find_eval",
  "find_tokenizer", "first_example", "load", "load_tokenizer", "place",
  "prepare", "prepared", "save",
]  # fmt: skip


def build(
  *,
  sources: list[dict],
  tokenizer: str,
  tokenizer_vocab: int,
  task: dict,
  batch: int,
  length: int,
  segments: bool,
  shuffle: bool,
  validation: float,
  root: str,
  skip_steps,
  seed: int,
  say=print,
  workers: int = 0,
  progress=None,
) -> Stream:
  """The training stream of `sources`; missing stores are prepared.

  Raises BadConfig and BadData as the parts do; see `prepare` and `Stream`.
  """
  found, stores = open_stores(
    sources=sources,
    tokenizer=tokenizer,
    tokenizer_vocab=tokenizer_vocab,
    validation=validation,
    root=root,
    split=None,
    workers=workers,
    say=say,
    progress=progress,
  )
  return Stream(
    stores,
    [source.get("weight", 1.0) for source in sources],
    found,
    task=task,
    batch=batch,
    length=length,
    segments=segments,
    shuffle=shuffle,
    skip_steps=skip_steps,
    seed=seed,
  )


def build_eval(
  *,
  sources: list[dict],
  tokenizer: str,
  tokenizer_vocab: int,
  task: dict,
  split: str,
  batch: int,
  length: int,
  segments: bool,
  validation: float,
  root: str,
  say=print,
  workers: int = 0,
  progress=None,
) -> EvalSet:
  """`split` of all the sources as a set that is read exactly once.

  Stores that are missing are prepared; `find_eval` only looks.
  """
  found, stores = open_stores(
    sources=sources,
    tokenizer=tokenizer,
    tokenizer_vocab=tokenizer_vocab,
    validation=validation,
    root=root,
    split=split,
    workers=workers,
    say=say,
    progress=progress,
  )
  return EvalSet(
    stores, found, task=task, batch=batch, length=length, segments=segments
  )
