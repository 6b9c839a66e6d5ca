"""Everything before the device: sources in, batches out.

corpora, sources -> tokenizers -> writer, store -> views, tasks -> stream ->
placement

What `data.kind` chooses is in KINDS: a class whose keyword arguments are the
other keys of config.data. Of the config alone it says what a batch is (`spec`)
and counts (`units`); `stream` gives the training Stream, `heldout` a held-out
EvalSet. Both prepare missing stores below `root` and say so; `known` only
looks. See `text`.
"""

from aigc_jax.data.captions import Captions
from aigc_jax.data.images import Images
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

__all__ = [
  "KINDS", "Array", "Decoder", "EvalSet", "Store", "Stream", "batches", "build",
  "build_eval", "bytes_of", "check_ids", "check_vocab", "encode_special",
  "find_eval", "find_tokenizer", "first_example", "load", "load_tokenizer",
  "open_stores", "place", "prepare", "prepared", "save",
]  # fmt: skip
