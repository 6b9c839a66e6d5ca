"""SentencePiece: trained here without loss for any text, or an existing model.

A model trained here keeps text as it is: no normalisation, no dummy prefix, no
squeezing of spaces, and bytes for what has no piece. What SentencePiece itself
would lose is the character U+2581, which stands for a space in its pieces. So
text is escaped before it and unescaped after it: U+2581 becomes DLE 'u', and
DLE (U+0010, "data link escape") becomes DLE DLE. Pieces are joined as bytes,
and bytes are unescaped, so decoding needs no look at the pieces themselves.
Special pieces cannot be spelled in text: SentencePiece never matches them.

Text is cut into blocks of a few lines, from the start of a document, because
BPE takes longer than linear time. The cut belongs to the tokenizer: encoding a
document in one call or many gives the same ids.

An existing .model is recognised as such a model by trying; any other one is
used as it is, and what it normalises away is lost.
"""

import codecs
import functools
import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
import sentencepiece

from aigc_jax.data import special, spelling
from aigc_jax.errors import BadConfig, BadData

EOT = "<|endoftext|>"
BLOCK = re.compile(r"[\s\S]{1000}[^\n]{0,3000}\n{0,64}|[\s\S]+")
LOST = re.compile("[\u2581\x10]")
ESCAPES = {"\u2581": "\x10u", "\x10": "\x10\x10"}
MEANINGS = {b"\x10u": "\u2581".encode(), b"\x10\x10": b"\x10"}
ESCAPED = re.compile(b"\x10[u\x10]")
SURROGATES = re.compile("[\ud800-\udfff]")
# Kept as it is by a model that loses nothing.
PROBE = "  a  b\n\n\t\u00c5 \u2163 \ufb01 e\u0301 \u3000x\r\n \x00 "
BYTES = "--config.data.tokenizer=bytes (with --config.model.vocab=257)"
SMALLEST = 300  # 256 bytes, two special ids, and some pieces


def escape(text: str) -> str:
  """Text as SentencePiece sees it; lone surrogates become U+FFFD."""
  if not text.isascii():
    text = SURROGATES.sub("\ufffd", text)
  elif "\x10" not in text:
    return text
  return LOST.sub(lambda m: ESCAPES[m[0]], text)


def unescape(data: bytes) -> bytes:
  """The inverse of `escape` on UTF-8; a stray DLE is kept."""
  if b"\x10" not in data:
    return data
  return ESCAPED.sub(lambda m: MEANINGS[m[0]], data)


class Unescaper:
  """UTF-8 decoding, after `unescape`, of bytes that come a piece at a time."""

  def __init__(self):
    self._held = b""  # a DLE that waits for its second byte
    self._text = codecs.getincrementaldecoder("utf-8")(errors="replace")

  def push(self, data: bytes, final: bool = False) -> str:
    """The text that is certain now; with `final`, all of it."""
    data = self._held + data
    # An odd run of DLE at the end is an escape whose rest has not come.
    run = len(data) - len(data.rstrip(b"\x10"))
    cut = len(data) - run % 2 if not final else len(data)
    self._held = data[cut:]
    return self._text.decode(unescape(data[:cut]), final)


def fingerprint(model: bytes) -> str:
  """sha256 of all that decides the ids, known before the model is read."""
  return hashlib.sha256(b"sentencepiece 1" + model).hexdigest()


class SentencePiece:
  """A SentencePiece model; see the module.

  `eot` is the model's end-of-sentence id; a model without one gets an id more.
  """

  kind = "sentencepiece"
  start = ()
  special_fingerprint = ""

  def __init__(self, model: bytes, name: str):
    self._model = model
    self.name = name
    try:
      sp = sentencepiece.SentencePieceProcessor(model_proto=model)
    except Exception as e:  # a RuntimeError or a pybind type of it
      raise BadData(f"{name}: not a SentencePiece model: {e}") from e
    self._sp = sp
    pieces = sp.piece_size()
    self.eot = sp.eos_id() if sp.eos_id() >= 0 else pieces
    self.vocab = self.text_vocab = max(pieces, self.eot + 1)
    self.special = special.ids({}, self.eot, self.vocab)
    try:
      self._bytes = [self._piece(i) for i in range(self.vocab)]
      self.special_words = {
        sp.id_to_piece(i): i for i in range(pieces) if sp.is_control(i)
      }
    except ValueError as e:  # a piece in no UTF-8, or of a byte that is none
      raise BadData(f"{name}: not a SentencePiece model: {e}") from e
    if self.eot == pieces:
      self.special_words[EOT] = pieces
    self.byte_lengths = np.array([len(b) for b in self._bytes], np.int32)
    self.fingerprint = fingerprint(model)
    self.lossless = self._keeps(PROBE)

  def __reduce__(self):
    return type(self), (self._model, self.name)

  def _piece(self, i: int) -> bytes:
    sp = self._sp
    if i >= sp.piece_size() or sp.is_control(i):
      return b""
    piece = sp.id_to_piece(i)
    if sp.is_byte(i):
      return bytes([int(piece[1:-1], 16)])
    if sp.is_unknown(i):
      return "\ufffd".encode()
    return piece.replace("\u2581", " ").encode()

  def _of(self, i: int) -> bytes:
    """The bytes of an id; of one that only the model has, none."""
    return self._bytes[i] if 0 <= i < self.vocab else b""

  def _keeps(self, text: str) -> bool:
    ids = self._sp.encode(text)
    return b"".join(self._bytes[i] for i in ids) == text.encode()

  def encode(self, text: str) -> np.ndarray:
    """The ids of a text, int32; no special ids."""
    return self.encode_documents([text])[0]

  def encode_documents(self, texts: list[str]) -> list[np.ndarray]:
    """`encode` of each text, in one call."""
    if not self.lossless:
      texts = [SURROGATES.sub("\ufffd", text) for text in texts]
      return [np.asarray(ids, np.int32) for ids in self._sp.encode(texts)]
    blocks = [BLOCK.findall(escape(text)) for text in texts]
    ids = self._sp.encode(list(chain.from_iterable(blocks)), num_threads=1)
    flat = np.fromiter(chain.from_iterable(ids), np.int32)
    sizes = np.fromiter(map(len, ids), np.int64, len(ids))
    ends = np.concatenate([[0], np.cumsum(sizes)])
    counts = np.cumsum([0] + [len(b) for b in blocks])
    return [
      flat[ends[a] : ends[b]]
      for a, b in zip(counts[:-1], counts[1:], strict=True)
    ]

  def decode_bytes(self, ids) -> bytes:
    """The bytes of the ids; special ids are nothing."""
    data = b"".join(self._of(i) for i in np.asarray(ids).ravel().tolist())
    return unescape(data) if self.lossless else data

  def decode(self, ids) -> str:
    """The text of the ids; the inverse of `encode` if `lossless`."""
    if not self.lossless:
      ids = [i for i in np.asarray(ids).ravel().tolist()
             if 0 <= i < self._sp.piece_size()]  # fmt: skip
      return self._sp.decode(ids)
    return self.decode_bytes(ids).decode("utf-8", "replace")

  def decoder(self, after=()):
    """A function for ids that come one at a time; see `tokenizers.Decoder`."""
    if not self.lossless:
      return spelling.Spelling(self._rules, after)
    unescaper = Unescaper()
    return lambda i, final: unescaper.push(
      b"" if i is None else self._of(i), final
    )

  @functools.cached_property
  def _rules(self) -> spelling.Rules:
    sp, pieces = self._sp, range(self._sp.piece_size())
    held = frozenset(i for i in pieces if sp.is_byte(i))
    others = (i for i in pieces if i not in held and not sp.is_unknown(i))
    anchor = spelling.anchor_of(self.decode, others, "")
    return spelling.Rules(
      self.decode, lambda i: i not in pieces, held, "", anchor
    )

  def files(self) -> dict[str, bytes]:
    """What `tokenizers.save` writes."""
    return {"tokenizer.model": self._model}


def train(
  texts: Iterable[str], vocab: int, name: str, special: Sequence[str] = ()
) -> SentencePiece:
  """A BPE model of `vocab` ids for `texts`; the same texts, the same model.

  special: words of ids, among the `vocab`, that no text makes. One thread: the
  number of threads is written into the model. Raises BadConfig where `vocab`
  does not suit the text, naming what would.
  """
  if vocab < SMALLEST:
    raise BadConfig(
      f"data.tokenizer_vocab={vocab}: a SentencePiece tokenizer needs at least "
      f"{SMALLEST}, 256 of them single bytes: "
      f"--config.data.tokenizer_vocab={SMALLEST} or more (with "
      f"--config.model.vocab={SMALLEST}, or as many), or {BYTES}"
    )
  blocks = [b for text in texts for b in BLOCK.findall(escape(text))]
  if not any(map(str.strip, blocks)):
    raise BadData(f"{name}: no text to train a tokenizer on")
  out = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(_common(blocks, (vocab - 258) // 2)),
      model_writer=out,
      model_type="bpe",
      vocab_size=vocab,
      character_coverage=1.0,
      byte_fallback=True,
      normalization_rule_name="identity",
      add_dummy_prefix=False,
      remove_extra_whitespaces=False,
      allow_whitespace_only_pieces=True,
      max_sentence_length=1 << 20,
      unk_id=0,
      eos_id=1,
      bos_id=-1,
      pad_id=-1,
      eos_piece=EOT,
      control_symbols=list(special),
      num_threads=1,
      minloglevel=2,
    )
  except RuntimeError as e:
    most = re.search(r"value <= (\d+)", str(e))
    least = most and int(most[1])
    if not least:
      raise BadData(f"{name}: SentencePiece cannot be trained: {e}") from e
    way_out = (
      f"--config.data.tokenizer_vocab={least} or less (with "
      f"--config.model.vocab={least}, or as many), or "
      if least >= SMALLEST
      else ""
    )
    raise BadConfig(
      f"data.tokenizer_vocab={vocab}: {name} has too little text for so many "
      f"pieces; {way_out}{BYTES}"
    ) from e
  return SentencePiece(out.getvalue(), name)


def _common(blocks: list[str], most: int) -> list[str]:
  """The blocks, cut at rare characters, which are left out.

  Kept are the commonest characters that make up 0.9995 of the text, `most` of
  them at most: the others would take pieces away from words, and bytes spell
  them anyway. (SentencePiece itself insists on covering 0.98 of a text.)
  """
  counts: Counter[str] = Counter()
  for block in blocks:
    counts.update(block)
  left = 0.9995 * counts.total()
  kept = set()
  # By count, then by character: equal counts must not follow the text's order.
  for character, n in sorted(counts.items(), key=lambda x: (-x[1], x[0])):
    if left <= 0 or len(kept) == most:
      break
    kept.add(character)
    left -= n
  rare = "".join(map(re.escape, sorted(counts.keys() - kept)))
  if not rare:
    return blocks
  cut = re.compile(f"[{rare}]")
  return [part for block in blocks for part in cut.split(block) if part]
