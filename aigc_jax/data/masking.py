"""Masked language modelling: some tokens are hidden, the model says which.

As BERT has it (arXiv:1810.04805): of the tokens that are asked for, most are
seen as the mask, some as another token, some as they are. RoBERTa
(arXiv:1907.11692) hides others each time an example comes; "still", as BERT's
own data were, an example always has the same hidden.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from aigc_jax.data.draw import Draw
from aigc_jax.data.ids import flags_of, vocab_of
from aigc_jax.data.spec import Array, Spec
from aigc_jax.data.words import begins
from aigc_jax.errors import BadConfig

MASK, FIRST, LAST = "[MASK]", "[CLS]", "[SEP]"
# What a tokenizer that is trained here has for this task.
SPECIAL = (FIRST, LAST, MASK)


class Ids(NamedTuple):
  """Of a tokenizer: its special tokens, and what may stand for another token.

  first, last: what a row begins and ends with, None where there is none.
  never: ids that are never asked for; ordinary: the others.
  """

  mask: int
  first: int | None
  last: int | None
  never: np.ndarray
  ordinary: np.ndarray


def masked(
  records: Mapping[str, np.ndarray],
  draw: Draw,
  *,
  eot: int,
  segments: bool,
  tokenizer,
  share: float = 0.15,
  as_mask: float = 0.8,
  as_other: float = 0.1,
  whole_words: bool = False,
  still: bool = False,
  edges: bool = False,
  next_sentence: bool = False,
  mask: int | None = None,
) -> dict[str, np.ndarray]:
  """A share of the tokens is to be said from all that is seen.

  tokens (B, T) int32: what is seen; at (B, M) int32: where tokens are asked
  for, in order, 0 in places that are empty; targets (B, M) int32: the tokens
  there; weights (B, M) float32: 0 in empty places; segments (B, T) int32: 1, 0
  in padding, or with `segments` from 1, one more at each end of text, and
  positions (B, T) int32 from 0 in each. Of a row's tokens round(share * n) are
  asked for, at least one; never a special one.

  as_mask, as_other: shares of those that are seen as the mask, and as any
  other token. whole_words: words are asked for as a whole, where that is not
  more than the share. still: always the same ones of an example. edges: a row
  begins with [CLS] and ends with [SEP], or how the tokenizer calls them; its
  text is two tokens shorter then. mask: the id of the mask, where it is not
  the tokenizer's.

  next_sentence: rows of two texts, [CLS] a [SEP] b [SEP], types (B, T) int32:
  1 in b; follows (B,) int32: 0 where b follows a, 1 where it is from another
  place, "other" of the records.
  """
  ids = ids_of(tokenizer, mask)
  draw = draw.still if still else draw
  window_BT, real_B = records["window"][:, :-1], records["count"] + 1
  T = window_BT.shape[1]
  real_B = np.where(records["count"] > 0, np.minimum(real_B, T), 0)
  batch: dict[str, np.ndarray] = {}
  if next_sentence:
    whole, batch = _paired(window_BT, records["other"], real_B, draw, ids)
  elif edges:
    whole, batch["segments"] = _edged(window_BT, real_B, ids)
  else:
    whole = window_BT.copy()
    batch["segments"] = _before(real_B, T)
  if segments:
    batch |= _documents(whole, batch["segments"] > 0, eot)
  free_BT = (batch["segments"] > 0) & ~np.isin(whole, ids.never)
  places = places_of(T, share)
  words_BT = None
  if whole_words:
    words_BT = np.cumsum(begins(tokenizer, whole), axis=1)
  at_BM, asked_BM = chosen(free_BT, words_BT, share, places, draw)
  targets = np.take_along_axis(whole, at_BM, axis=1)
  seen = _seen(targets, draw, ids, as_mask, as_other)
  tokens = whole.copy()
  rows = np.broadcast_to(np.arange(len(at_BM))[:, None], at_BM.shape)
  tokens[rows[asked_BM], at_BM[asked_BM]] = seen[asked_BM]
  return batch | {
    "tokens": tokens,
    "at": at_BM.astype(np.int32),
    "targets": np.where(asked_BM, targets, 0).astype(np.int32),
    "weights": asked_BM.astype(np.float32),
  }


def masked_spec(
  *,
  batch: int,
  length: int,
  segments: bool,
  share: float = 0.15,
  as_mask: float = 0.8,
  as_other: float = 0.1,
  edges: bool = False,
  next_sentence: bool = False,
) -> Spec:
  """What a batch of `masked` is. Raises BadConfig where it cannot be."""
  edges = edges or next_sentence
  _check(share, as_mask, as_other, edges, segments)
  if length < 8 and edges:
    raise BadConfig(
      f"data.length={length}: with the tokens at its edges a row of the masked "
      "task has 8 or more"
    )
  rows, places = (batch, length), (batch, places_of(length, share))
  whole, real = np.dtype(np.int32), np.dtype(np.float32)
  spec = {
    "segments": Array("BT", rows, whole),
    "tokens": Array("BT", rows, whole),
    "at": Array("B.", places, whole),
    "targets": Array("B.", places, whole),
    "weights": Array("B.", places, real),
  }
  if segments:
    spec["positions"] = Array("BT", rows, whole)
  if next_sentence:
    spec["types"] = Array("BT", rows, whole)
    spec["follows"] = Array("B", (batch,), whole)
  return spec


def places_of(length: int, share: float) -> int:
  """M: how many tokens of a row of this length are asked for, at most."""
  return max(1, round(share * length))


def _check(share, as_mask, as_other, edges: bool, segments: bool) -> None:
  if not 0 < share < 1:
    raise BadConfig(f"data.task.share={share}: expected above 0 and below 1")
  if not (as_mask >= 0 and as_other >= 0 and as_mask + as_other <= 1):
    raise BadConfig(
      f"data.task.as_mask={as_mask}, as_other={as_other}: expected two shares "
      "that add up to at most 1"
    )
  if edges and segments:
    raise BadConfig(
      "data.segments=True is for rows of several documents, and data.task has "
      "edges or next_sentence, for rows of one: --config.data.segments=False"
    )


def check(tokenizer, model: Mapping, **options) -> None:
  """Refuses a tokenizer without what the task needs, or a model without rows.

  model: the section of a config. Raises BadConfig.
  """
  more = flags_of(model, "vocab", tokenizer.vocab + 1)
  ids = ids_of(tokenizer, options.get("mask"), more)
  edges = options.get("edges") or options.get("next_sentence")
  if edges and None in (ids.first, ids.last):
    raise BadConfig(
      "data.task.edges and next_sentence put a token before and behind a text, "
      f"and the tokenizer ({tokenizer.name}) has none for that: "
      "--config.data.tokenizer=sentencepiece trains one that has, or "
      "--config.data.task.edges=False"
    )
  needed = max(i for i in ids[:3] if i is not None) + 1
  vocab = vocab_of(model, needed)
  if vocab < needed:
    raise BadConfig(
      f"model.vocab={vocab}, but the ids of the task's special tokens go up to "
      f"{needed - 1}: {flags_of(model, 'vocab', needed)}"
    )


@functools.lru_cache(maxsize=8)
def ids_of(tokenizer, mask: int | None = None, more: str = "") -> Ids:
  """The ids that the task needs. Raises BadConfig where there is no mask.

  more: the flags that give the model an id more than the tokenizer has.
  """
  words = tokenizer.special_words
  named = getattr(tokenizer, "named_special", {})

  def find(role: str, *spellings: str) -> int | None:
    known = (named.get(role), *spellings)
    return next((words[word] for word in known if word in words), None)

  found = find("mask_token", MASK, "<mask>") if mask is None else mask
  if found is None:
    raise BadConfig(
      f"data.task.kind='masked' hides tokens behind a mask, and the tokenizer "
      f"({tokenizer.name}) has none: --config.data.tokenizer=sentencepiece "
      f"trains one with {MASK}; a tokenizer_config.json of hf:FOLDER may name "
      "a mask_token; or an id of none of its tokens, --config.data.task.mask="
      f"{tokenizer.vocab} {more}".rstrip()
    )
  never = np.unique([found, tokenizer.eot, *words.values()])
  every = np.arange(min(tokenizer.text_vocab, tokenizer.vocab))
  return Ids(
    found,
    find("cls_token", FIRST, "<s>"),
    find("sep_token", LAST, "</s>"),
    never,
    np.setdiff1d(every, never).astype(np.int32),
  )


def _before(count_B: np.ndarray, T: int) -> np.ndarray:
  return (np.arange(T) < count_B[:, None]).astype(np.int32)


def _documents(tokens_BT, real_BT, eot: int) -> dict[str, np.ndarray]:
  """segments and positions of rows of several documents."""
  starts = tokens_BT == eot
  starts[:, 0] = True  # a document that goes on begins anew in its row
  at = np.broadcast_to(np.arange(tokens_BT.shape[1]), tokens_BT.shape)
  last = np.maximum.accumulate(np.where(starts, at, 0), axis=1)
  number = np.where(real_BT, np.cumsum(starts, axis=1), 0)
  return {
    "positions": (at - last).astype(np.int32),
    "segments": number.astype(np.int32),
  }


def _edged(window_BT, real_B, ids: Ids) -> tuple[np.ndarray, np.ndarray]:
  """(rows with their edges, segments); the text loses its last two tokens."""
  T = window_BT.shape[1]
  text_B = np.minimum(real_B, T - 2)
  whole = np.full_like(window_BT, ids.last)
  whole[:, 1:] = window_BT[:, :-1]
  whole[:, 0] = ids.first
  at = np.arange(T)
  whole = np.where(at <= text_B[:, None], whole, ids.last)
  return whole, _before(np.where(real_B > 0, text_B + 2, 0), T)


def _paired(
  window_BT, other_BT, real_B, draw: Draw, ids: Ids
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """(rows of two texts, their segments, types and whether they follow)."""
  B, T = window_BT.shape
  text_B = np.minimum(real_B, T - 3)
  # Neither text is shorter than a quarter of both.
  share_B = 0.25 + 0.5 * draw.uniform("cut", 1)[:, 0]
  first_B = np.clip((share_B * text_B).astype(int), 1, None)
  second_B = np.maximum(text_B - first_B, 1)
  follows_B = draw.below("follows", 2, 1)[:, 0]
  # b from its first token on: of the same window, or of the other's start.
  at = np.arange(T)
  begin_B1 = (first_B + 2)[:, None]
  goes_on = np.take_along_axis(
    window_BT, np.clip(at - begin_B1 + first_B[:, None], 0, T - 1), axis=1
  )
  elsewhere = np.take_along_axis(
    other_BT, np.clip(at - begin_B1, 0, T - 1), axis=1
  )
  second = np.where(follows_B[:, None] == 1, elsewhere, goes_on)
  end_B1 = begin_B1 + second_B[:, None]
  whole = np.full((B, T), ids.last, np.int32)
  whole[:, 1:] = window_BT[:, :-1]
  whole[:, 0] = ids.first
  whole = np.where(at == begin_B1 - 1, ids.last, whole)
  whole = np.where((at >= begin_B1) & (at < end_B1), second, whole)
  whole = np.where(at >= end_B1, ids.last, whole).astype(np.int32)
  length_B = np.where(real_B > 0, end_B1[:, 0] + 1, 0)
  segments = _before(length_B, T)
  types = ((at >= begin_B1) & (segments > 0)).astype(np.int32)
  return whole, {
    "segments": segments,
    "types": types,
    "follows": follows_B.astype(np.int32),
  }


def chosen(
  free_BT: np.ndarray,
  words_BT: np.ndarray | None,
  share: float,
  places: int,
  draw: Draw,
) -> tuple[np.ndarray, np.ndarray]:
  """(at (B, M), whether it is asked for (B, M)): which tokens are to be said.

  free: tokens that may be; words: a number for each word, the same for its
  tokens, or None for tokens on their own.
  """
  count_B = free_BT.sum(axis=1)
  wanted_B = np.minimum(np.maximum(np.rint(share * count_B), 1), count_B)
  wanted_B = np.minimum(wanted_B.astype(int), places)
  score_BT = draw.uniform("chosen", free_BT.shape[1])
  if words_BT is None:
    score_BT = np.where(free_BT, score_BT, 2.0)
    order = np.argsort(score_BT, axis=1, kind="stable")[:, :places]
    asked = np.arange(places) < wanted_B[:, None]
  else:
    order, asked = _whole_words(free_BT, words_BT, score_BT, wanted_B, places)
  # In the order of the row, empty places last.
  T = free_BT.shape[1]
  at = np.sort(np.where(asked, order, T), axis=1)
  asked = at < T
  return np.where(asked, at, 0), asked


def _whole_words(free_BT, words_BT, score_BT, wanted_B, places):
  """Words in a random order, each as a whole, those that are too many not."""
  B = len(free_BT)
  order = np.zeros((B, places), int)
  asked = np.zeros((B, places), bool)
  for b in range(B):
    free = np.flatnonzero(free_BT[b])
    words, first = np.unique(words_BT[b, free], return_index=True)
    ends = np.append(first, len(free))
    taken = 0
    for word in np.argsort(score_BT[b, free[first]], kind="stable").tolist():
      tokens = free[ends[word] : ends[word + 1]]
      if taken + len(tokens) <= wanted_B[b]:
        order[b, taken : taken + len(tokens)] = tokens
        taken += len(tokens)
      if taken == wanted_B[b]:
        break
    asked[b, :taken] = True
  return order, asked


def _seen(targets_BM, draw: Draw, ids: Ids, as_mask, as_other) -> np.ndarray:
  """What stands in the places that are asked for."""
  M = targets_BM.shape[1]
  how = draw.uniform("how", M)
  other = ids.ordinary[draw.below("other", len(ids.ordinary), M)]
  seen = np.where(how < as_mask + as_other, other, targets_BM)
  return np.where(how < as_mask, ids.mask, seen)
