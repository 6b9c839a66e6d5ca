"""Which tokens begin a word, by the text of the tokenizer's ids."""

import functools

import numpy as np

SPACES = ("\u2581", "\u0120")  # what stands for a space in pieces


def begins(tokenizer, tokens_BT: np.ndarray) -> np.ndarray:
  """Where a word begins, booleans (B, T).

  A word is a run of letters, digits and underscores, with the space before it;
  everything else is a word by itself.
  """
  leads_V, opens_V, closes_V = _edges(tokenizer)
  tokens_BT = np.minimum(tokens_BT, len(leads_V) - 1)
  goes_on = opens_V[tokens_BT]
  goes_on[:, 1:] &= closes_V[tokens_BT[:, :-1]]
  goes_on[:, 0] = False
  return leads_V[tokens_BT] | ~goes_on


@functools.lru_cache(maxsize=8)
def _edges(tokenizer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Of each id: whether it begins a word, opens with a letter, closes with one.

  One more id stands for all that the tokenizer does not have.
  """
  pieces = [_text(tokenizer, i) for i in range(tokenizer.vocab)] + [""]
  prefix = getattr(tokenizer, "continues", "")
  if prefix:  # of WordPiece, whose pieces have no spaces
    leads = np.array([not piece.startswith(prefix) for piece in pieces])
    every = np.ones(len(pieces), bool)
    return leads, every, every
  opens = np.array([_is_letter(piece[:1]) for piece in pieces])
  closes = np.array([_is_letter(piece[-1:]) for piece in pieces])
  return ~opens, opens, closes


def _text(tokenizer, i: int) -> str:
  if tokenizer.kind == "hf":
    piece = tokenizer.piece(i)
    for space in SPACES:
      piece = piece.replace(space, " ")
    return piece
  # A byte of a character of several is a part of a word.
  return tokenizer.decode_bytes([i]).decode("utf-8", "replace")


def _is_letter(character: str) -> bool:
  return character.isalnum() or character in ("_", "\ufffd")
