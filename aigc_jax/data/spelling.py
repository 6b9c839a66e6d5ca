"""Ids to text as they come: each character once, and none taken back.

What comes out, put together, is the text that decoding all ids at once gives.
So a piece of text is let out when no id that may follow can change it. Whether
one can is decided by the tokenizer's decoder: a ByteFallback decoder spells a
run of byte ids as characters if the whole run is UTF-8, and else each of its
bytes as U+FFFD; others drop a space at the beginning, or look for patterns.
"""

import codecs
import dataclasses
import json
import re
from collections.abc import Callable, Collection, Sequence

BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")  # the piece of a single byte
# Decoders that treat each piece by itself, but for the first one of a text.
APART = ("Metaspace", "WordPiece", "ByteFallback")

Push = Callable[[int | None, bool], str]  # (an id or None, whether the last)


@dataclasses.dataclass(frozen=True)
class Rules:
  """Where the text of some ids may be cut, so that the parts decode apart.

  decode: ids to text. silent: whether decoding passes over an id, as if it
  were not there. bytes: ids of single bytes, of which a run is decoded as a
  whole. held: characters that what follows may still change. anchor: an id
  whose text ends in a letter; what is decoded after it is no beginning. None
  says that nothing may be cut: all text comes at the end.
  """

  decode: Callable[[Sequence[int]], str]
  silent: Callable[[int], bool]
  bytes: Collection[int]
  held: str
  anchor: int | None


class Spelling:
  """One text, spelled by `rules`, in continuation of the ids `after`."""

  def __init__(self, rules: Rules, after: Sequence[int]):
    self._rules = rules
    kept = [i for i in after if not rules.silent(i)]
    self._begun = bool(rules.decode(kept))  # does the text before have letters
    # Ids whose text is not out; those of a text that is empty so far count.
    self._waiting = [] if self._begun else kept
    self._before = ""
    if self._begun and rules.anchor is None:
      self._waiting, self._before = kept, rules.decode(kept)

  def __call__(self, i: int | None, final: bool) -> str:
    """The text that is certain now; with `final`, all of it."""
    rules = self._rules
    if i is not None and not rules.silent(i):
      self._waiting.append(i)
      if i in rules.bytes and not final:
        return ""
    elif not final:
      return ""
    if rules.anchor is None and not final:
      return ""
    text = self._text()
    if not final and (not text or text[-1] in rules.held):
      return ""
    self._begun, self._waiting = self._begun or bool(text), []
    return text

  def _text(self) -> str:
    rules = self._rules
    if rules.anchor is None:
      return rules.decode(self._waiting)[len(self._before) :]
    if not self._begun:
      return rules.decode(self._waiting)
    whole = rules.decode([rules.anchor, *self._waiting])
    return whole[len(rules.decode([rules.anchor])) :]


def of_bytes(spell: Callable[[int], bytes]) -> Push:
  """For tokenizers whose text is the bytes of the ids, one after the other."""
  utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
  return lambda i, final: utf8.decode(b"" if i is None else spell(i), final)


def anchor_of(
  decode: Callable[[Sequence[int]], str], ids: Collection[int], held: str
) -> int | None:
  """The first of `ids` that can stand before others; see `Rules`."""
  for i in ids:
    text = decode([i])
    ends = text[-1:].isascii() and text[-1:].isalpha()
    if ends and not set(text) & set(held) and decode([i, i]).startswith(text):
      return i
  return None


def chain_of(decoder: dict | None) -> list[dict]:
  """The decoders of a tokenizer.json, one after the other."""
  if decoder is None:
    return []
  if decoder.get("type") == "Sequence":
    return [part for d in decoder["decoders"] for part in chain_of(d)]
  return [decoder]


def held_by(chain: Sequence[dict]) -> str | None:
  """Characters after which these decoders allow no cut; None for all.

  Once the pieces are joined, a later decoder sees the whole text, and only
  few of those leave what is out alone.
  """
  held, joined = "", False
  for part in chain:
    kind = part["type"]
    if kind == "Fuse":
      joined = True
    elif kind == "ByteLevel" and not joined:
      held, joined = held + "\ufffd", True
    elif kind == "Strip":  # at the beginning it is done with the first letter
      if joined and part["stop"]:
        return None
    elif kind == "Replace":
      if joined and "String" not in part["pattern"]:
        return None
      if joined:
        held += part["pattern"]["String"] + part["content"]
    elif kind not in APART or joined:
      return None
  return held


def rules_of(hf) -> Rules:
  """The rules of a tokenizer of the `tokenizers` library."""
  special = {i for i, t in hf.get_added_tokens_decoder().items() if t.special}

  def decode(ids: Sequence[int]) -> str:
    return hf.decode(list(ids), skip_special_tokens=True)

  def silent(i: int) -> bool:
    return i in special or hf.id_to_token(i) is None

  pieces = hf.get_vocab(with_added_tokens=True)
  chain = chain_of(json.loads(hf.to_str())["decoder"])
  held = held_by(chain)
  fallback = any(part["type"] == "ByteFallback" for part in chain)
  bytes_ = {i for p, i in pieces.items() if fallback and BYTE.fullmatch(p)}
  letters = sorted(
    i
    for piece, i in pieces.items()
    if i not in special and i not in bytes_ and re.search("[A-Za-z]$", piece)
  )
  anchor = None if held is None else anchor_of(decode, letters, held)
  return Rules(decode, silent, frozenset(bytes_), held or "", anchor)


def spell_of(hf) -> Callable[[int], bytes] | None:
  """The bytes of an id, where a tokenizer's text is those bytes joined."""
  chain = chain_of(json.loads(hf.to_str())["decoder"])
  if [part["type"] for part in chain] != ["ByteLevel"]:
    return None
  special = {i for i, t in hf.get_added_tokens_decoder().items() if t.special}
  values = {letter: byte for byte, letter in enumerate(byte_letters())}

  def spell(i: int) -> bytes:
    piece = None if i in special else hf.id_to_token(i)
    if piece is None:
      return b""
    if all(c in values for c in piece):
      return bytes(values[c] for c in piece)
    return piece.encode()

  return spell


def byte_letters() -> list[str]:
  """The character that a byte-level vocabulary writes for each byte.

  Printable ones stand for themselves, the others are moved beyond 255.
  """
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [b for b in range(256) if b not in printable]
  letters = {b: chr(b) for b in printable}
  letters |= {b: chr(256 + i) for i, b in enumerate(others)}
  return [letters[b] for b in range(256)]
