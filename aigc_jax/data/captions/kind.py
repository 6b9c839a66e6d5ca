"""Images with captions as data: what is seen, and what is said of it.

A batch is a dict of global arrays; B is the batch, T the length of a text:

  images   (B, Y, X, C) float32  as of labelled images (data/images)
  tokens   (B, T) int32          a caption, its end of text, then padding
  weights  (B,) float32          1, and 0 where a held-out batch is padded
  draw     (B, 2) uint32         with draw=True: a key for noise in a loss

Of several captions of an image one is drawn each time that it comes; held out,
the first counts. One that is too long is cut, its end of text stays: how many
of the first are is told at each start.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from aigc_jax import records
from aigc_jax.data.arrays import AGAIN
from aigc_jax.data.captions.sources import COLUMNS, SOURCES
from aigc_jax.data.columns import Columns
from aigc_jax.data.draw import Draw
from aigc_jax.data.ids import flags_of, vocab_of
from aigc_jax.data.images.kind import Images
from aigc_jax.data.pairs import check_ids_of, trained_on
from aigc_jax.data.spec import Array, Spec
from aigc_jax.data.stream import check_batch
from aigc_jax.data.tokenizers import load_tokenizer
from aigc_jax.errors import BadConfig, BadData

LOOKED_AT = 1000  # captions of a source, for how many are too long


@dataclasses.dataclass(frozen=True, kw_only=True)
class Captions(Images):
  """What `data` of a config says of captioned images; see presets/captions.py.

  As of labelled images, and: tokenizer, where "sentencepiece" is trained on the
  captions of the first source, to tokenizer_vocab pieces. length: tokens of a
  text, end included. start: an id that texts begin with, None for none. pad:
  what comes after the end, None for the end itself once more. Raises BadConfig
  for what no data could mend.
  """

  tokenizer: str
  tokenizer_vocab: int
  length: int
  start: int | None
  pad: int | None

  kinds: ClassVar[Mapping] = SOURCES
  place: ClassVar[str] = "captions"

  def __post_init__(self):
    super().__post_init__()
    check_batch(length=self.length)
    if self.length < self._extra + 1:
      raise BadConfig(
        f"data.length={self.length} has no room for a text: at least "
        f"{self._extra + 1}"
      )
    for key in ("start", "pad"):
      value = getattr(self, key)
      if value is not None and value < 0:
        raise BadConfig(f"data.{key}={value}: expected an id, or None")
    if self.augmentation.mixes:
      raise BadConfig(
        "data.augment: mixup and cutmix make one image of two, which no "
        "caption tells: leave them None"
      )

  @property
  def _extra(self) -> int:
    """Tokens of a row besides those of the text."""
    return 1 + (self.start is not None)

  def _spec_beside(self) -> Spec:
    shape = (self.batch, self.length)
    return {"tokens": Array("BT", shape, np.dtype("i4"))}

  def check_model(self, model: Mapping) -> None:
    """Raises BadConfig where the model cannot take what the data gives."""
    super().check_model(model)
    longest = model.get("text_length")
    if longest is not None and longest < self.length:
      raise BadConfig(
        f"data.length={self.length}, but the model reads "
        f"model.text_length={longest} tokens at most: "
        f"--config.data.length={longest}"
      )
    if self.tokenizer == "sentencepiece":
      check_ids_of(model, self.tokenizer_vocab, self.tokenizer)
    else:
      self._check_text_model(model, load_tokenizer(self.tokenizer))

  def _check_text_model(self, model: Mapping, tokenizer) -> None:
    check_ids_of(model, tokenizer.text_vocab, tokenizer.name)
    vocab = vocab_of(model, tokenizer.vocab)
    for key in ("start", "pad"):
      id = getattr(self, key)
      if id is not None and id >= vocab:
        raise BadConfig(
          f"data.{key}={id} is no id of model.vocab={vocab}: "
          f"{flags_of(model, 'vocab', id + 1)} has it"
        )
    end = model.get("text_end")
    if end is not None and end != tokenizer.eot:
      raise BadConfig(
        f"model.text_end={end}, where texts are read, but the tokenizer "
        f"({tokenizer.name}) ends them with {tokenizer.eot}: "
        f"{flags_of(model, 'text_end', tokenizer.eot)}"
      )

  def find_tokenizer(self, say=print):
    """The tokenizer, trained where it is missing."""
    if self.tokenizer != "sentencepiece":
      return load_tokenizer(self.tokenizer)
    source = self.sources[0]
    store = self._store(source, source["split"], say, None)
    texts = [text for some in captions_of(store) for text in some]
    return trained_on(
      texts, self.place, self.root, self.tokenizer_vocab, say,
      called="the captions",
    )  # fmt: skip

  def labelled(self, sources: Sequence[Mapping]) -> Images:
    """Labelled images that are made as those of the captions are."""
    own = {f.name: getattr(self, f.name) for f in dataclasses.fields(Images)}
    return Images(**own | {"sources": sources})

  def _how(self, tokenizer) -> tuple:
    return (
      *super()._how(tokenizer), tokenizer.fingerprint, self.length, self.start,
      self.pad,
    )  # fmt: skip

  def _opened(self, folder: Path) -> Columns:
    """A store of such images. Raises BadData."""
    return Columns(folder, COLUMNS)

  def _kinds_of(self, about: Mapping) -> str:
    return "with captions"

  def _checked(
    self, stores: Sequence[Columns], model: Mapping, tokenizer, say=None
  ) -> dict:
    """Nothing that is to be kept; says how many captions are cut."""
    self._check_text_model(model, tokenizer)
    for store in stores if say else ():
      texts = [text for some in captions_of(store, LOOKED_AT) for text in some]
      cut = sum(
        len(ids) > self.length - self._extra
        for ids in tokenizer.encode_documents(texts)
      )
      if cut:
        say(
          f"{store.name!r} ({store.manifest['split']}): {cut:,} of the first "
          f"{len(texts):,} captions are longer than data.length={self.length} "
          "tokens and are cut"
        )
    return {}

  def _beside(self, tokenizer, rows: Mapping, draw: Draw | None) -> dict:
    u = None if draw is None else draw.uniform("caption")
    texts = []
    for i, data in enumerate(rows["captions"]):
      some = texts_of(data) if data else [""]
      texts.append(some[0 if u is None else int(u[i] * len(some))])
    return {"tokens": self.tokens_of(tokenizer, texts)}

  def tokens_of_all(self, tokenizer, texts: Sequence[str]) -> np.ndarray:
    """`tokens_of`; BadConfig for a text of which it would leave out a part."""
    room = self.length - self._extra
    for text, ids in zip(
      texts, tokenizer.encode_documents(list(texts)), strict=True
    ):
      if len(ids) > room:
        raise BadConfig(
          f"{text!r} has {len(ids)} tokens, and captions have {room} at most "
          f"(data.length={self.length}): expected a shorter one"
        )
    return self.tokens_of(tokenizer, texts)

  def tokens_of(self, tokenizer, texts: Sequence[str]) -> np.ndarray:
    """Texts as a batch has them, (n, length) int32."""
    pad = tokenizer.eot if self.pad is None else self.pad
    found = np.full((len(texts), self.length), pad, np.int32)
    for row, ids in zip(
      found, tokenizer.encode_documents(list(texts)), strict=True
    ):
      ids = ids[: self.length - self._extra]
      begin = 0
      if self.start is not None:
        row[0], begin = self.start, 1
      row[begin : begin + len(ids)] = ids
      row[begin + len(ids)] = tokenizer.eot
    return found


def captions_of(store: Columns, most: int | None = None) -> list[list[str]]:
  """The captions of the records of a store, or of the first of them."""
  return [texts_of(data) for data in store.column("captions")[:most]]


def texts_of(data: bytes) -> list[str]:
  """The captions of a record. Raises BadData for what is none."""
  try:
    found = json.loads(data)
  except (ValueError, RecursionError):
    found = None
  if not found or not records.fits(found, [str]):
    raise BadData(
      f"a record of a store has no captions: {data[:60]!r}: it was changed; "
      f"{AGAIN}"
    )
  return found
