"""Everything before the device: sources in, batches out.

corpora, sources -> tokenizers -> writer, store -> views, tasks -> stream ->
placement

What `data.kind` chooses is in KINDS: a class whose keyword arguments are the
other keys of config.data. Of the config alone it says what a batch is (`spec`)
and counts (`units`); `stream` gives the training Stream, `heldout` a held-out
EvalSet. Both prepare missing stores below `root` and say so; `known` only
looks. See `text`.
"""

from collections.abc import Mapping
from typing import Any

from aigc_jax.data import entries, pair_sources, sources
from aigc_jax.data.captions import Captions
from aigc_jax.data.captions import sources as captioned
from aigc_jax.data.images import Images
from aigc_jax.data.images import sources as pictured
from aigc_jax.data.known import find_eval
from aigc_jax.data.mixture import first_example
from aigc_jax.data.pairs import Pairs
from aigc_jax.data.placement import batches, place
from aigc_jax.data.preparation import (
  find_tokenizer,
  open_stores,
  prepare,
  prepared,
)
from aigc_jax.data.sound import Sound
from aigc_jax.data.sound import sources as spoken
from aigc_jax.data.spec import Array
from aigc_jax.data.store import Store
from aigc_jax.data.stream import EvalSet, Stream
from aigc_jax.data.text import Text, build, build_eval
from aigc_jax.data.tokenizers import (
  Decoder,
  bytes_of,
  check_ids,
  encode_special,
  load,
  load_tokenizer,
  save,
)
from aigc_jax.data.windows import check_vocab

# The kinds a config may name.
KINDS = {
  "captions": Captions,
  "images": Images,
  "pairs": Pairs,
  "sound": Sound,
  "text": Text,
}

# The kinds of sources of each: name -> (what reads it, ..., its keys).
SOURCES: dict[str, Mapping[str, tuple]] = {
  "captions": captioned.SOURCES,
  "images": pictured.SOURCES,
  "pairs": pair_sources.KINDS,
  "sound": spoken.SOURCES,
  "text": sources.SOURCES,
}


def source_keys(
  kind: object, of: object, lacking: Any
) -> dict[str, Any] | None:
  """{key: its default, or `lacking`} of a kind of source, None where none is.

  of: the kind of data that it is a source of.
  """
  made = SOURCES.get(str(of), {}).get(str(kind))
  if made is None:
    return None
  path = ("path",) if of == "pairs" else ()
  keys = (*path, *made[-1], "weight")
  return {key: entries.BY_DEFAULT.get(key, lacking) for key in keys}


__all__ = [
  "KINDS", "Array", "Decoder", "EvalSet", "Store", "Stream", "batches", "build",
  "build_eval", "bytes_of", "check_ids", "check_vocab", "encode_special",
  "find_eval", "find_tokenizer", "first_example", "load", "load_tokenizer",
  "open_stores", "place", "prepare", "prepared", "save",
]  # fmt: skip
