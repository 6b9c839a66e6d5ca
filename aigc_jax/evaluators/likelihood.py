"""Log likelihoods of texts after contexts, and of whole texts.

Texts become ids, and long ones windows, as lm-evaluation-harness does it
(lm_eval 0.4: TemplateLM and HFLM), so that scores can be compared.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from aigc_jax.data import check_ids
from aigc_jax.errors import BadConfig, BadData
from aigc_jax.layers.readout import Readout
from aigc_jax.sampling.decode import bucket

LENGTH = 2048  # tokens read at once, of a model that names no length
AT_ONCE = 4096  # tokens whose logits exist together


@dataclasses.dataclass(frozen=True)
class Likelihood:
  """log p(text | context), and whether greedy decoding would write the text."""

  logprob: float
  greedy: bool
  tokens: int


class Scorer:
  """Scores texts with one model.

  length: the most tokens the model reads at once; what is longer loses its
  beginning. batch: rows scored together. Compiled once for each bucket.
  """

  def __init__(
    self, model: nn.Module, params, tokenizer, *, length: int, batch: int
  ):
    if length < 1 or batch < 1:
      raise BadConfig(f"length={length}, batch={batch}: expected at least 1")
    self.tokenizer, self.length, self.batch = tokenizer, length, batch
    self.compiles = 0
    self._params = params
    self._run = jax.jit(self._measure)
    self._model = model

  @property
  def prefix(self) -> int:
    """The id that stands before a text without context."""
    return (
      self.tokenizer.start[-1] if self.tokenizer.start else (self.tokenizer.eot)
    )

  def encode(self, text: str) -> list[int]:
    """The ids of a text, after what the tokenizer puts before one."""
    return [*self.tokenizer.start, *self.tokenizer.encode(text).tolist()]

  def pair(self, context: str, text: str) -> tuple[list[int], list[int]]:
    """The ids of both. Spaces that end a context go to the text.

    Raises BadData where no id is left for the text: it has none, or its ids
    and those of the context become fewer when they stand together.
    """
    bare = context.rstrip()
    text = context[len(bare) :] + text
    if bare:
      before = self.encode(bare)
      ids = self.encode(bare + text)[len(before) :]
    else:
      before, ids = [self.prefix], self.tokenizer.encode(text).tolist()
      if ids[:1] == before:
        ids = ids[1:]
    if not ids:
      raise BadData(
        f"the text {text[:80]!r} after {context[-80:]!r} has no token of its "
        "own, so it cannot be scored: change or remove this item"
      )
    return before, ids

  def pairs(
    self,
    pairs: Sequence[tuple[str, str]],
    poll: Callable[[], None] | None = None,
  ) -> list[Likelihood]:
    """The likelihood of each text after its context."""
    return self.ids([self.pair(*p) for p in pairs], poll)

  def rolling(
    self, text: str, poll: Callable[[], None] | None = None
  ) -> Likelihood:
    """Of a text by itself: each token once, in windows side by side."""
    ids = self.tokenizer.encode(text).tolist()
    found = self.ids(windows(ids, self.prefix, self.length), poll)
    return Likelihood(
      sum(f.logprob for f in found), all(f.greedy for f in found), len(ids)
    )

  def ids(
    self,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    poll: Callable[[], None] | None = None,
  ) -> list[Likelihood]:
    """The likelihood of the second of each pair of ids after the first."""
    rows = [self._row(*pair) for pair in pairs]
    for ids, _ in rows:
      check_ids(self.tokenizer, ids, self._model.vocab)
    # The longest first: what does not fit shows at once.
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]))
    found: list[Likelihood | None] = [None] * len(rows)
    for at in range(0, len(order), self.batch):
      if poll:
        poll()
      part = order[at : at + self.batch]
      scored = self._together([rows[i] for i in part])
      for i, one in zip(part, scored, strict=True):
        found[i] = one
    return found

  def _row(self, context, text) -> tuple[np.ndarray, int]:
    """(the newest ids, as many as can be read; how many of them count)."""
    ids = np.array([*context, *text], np.int32)[-(self.length + 1) :]
    return ids, min(len(text), len(ids) - 1)

  def _together(self, rows) -> list[Likelihood]:
    longest = max(len(ids) for ids, _ in rows) - 1
    B, T = bucket(len(rows), 1), min(bucket(max(longest, 1)), self.length)
    tokens_BT = np.zeros((B, T), np.int32)
    targets_BT = np.zeros((B, T), np.int32)
    counts_BT = np.zeros((B, T), bool)
    for i, (ids, count) in enumerate(rows):
      n = len(ids) - 1
      tokens_BT[i, :n], targets_BT[i, :n] = ids[:-1], ids[1:]
      counts_BT[i, n - count : n] = True
    sums_B, greedy_B = self._run(self._params, tokens_BT, targets_BT, counts_BT)
    sums_B, greedy_B = np.asarray(sums_B, np.float64), np.asarray(greedy_B)
    if not np.isfinite(sums_B[: len(rows)]).all():
      raise BadData("the model's predictions are not finite")
    return [
      Likelihood(float(s), bool(g), count)
      for s, g, (_, count) in zip(sums_B, greedy_B, rows, strict=False)
    ]

  def _measure(self, params, tokens_BT, targets_BT, counts_BT):
    self.compiles += 1
    readout = self._model.apply({"params": params}, {"tokens": tokens_BT})
    logprob_BT, hit_BT = token_logprobs(readout, targets_BT)
    sums_B = jnp.sum(jnp.where(counts_BT, logprob_BT, 0.0), axis=-1)
    return sums_B, jnp.all(hit_BT | ~counts_BT, axis=-1)


def token_logprobs(readout: Readout, targets_BT: jax.Array):
  """(log p of each target, whether it is the likeliest), both (B, T).

  The logits of at most AT_ONCE tokens exist together.
  """
  B, T = targets_BT.shape
  most = max(1, AT_ONCE // B)
  size = next(c for c in range(min(most, T), 0, -1) if T % c == 0)

  def some(part):
    x_BTD, y_BT = part
    z_BTV = readout.replace(features_BTD=x_BTD).logits()
    hit_BT = jnp.argmax(z_BTV, axis=-1) == y_BT
    own_BT = jnp.take_along_axis(z_BTV, y_BT[..., None], axis=-1)[..., 0]
    return own_BT - jax.nn.logsumexp(z_BTV, axis=-1), hit_BT

  if size == T:
    return some((readout.features_BTD, targets_BT))

  def cut(x):
    parts = x.reshape(B, T // size, size, *x.shape[2:])
    return jnp.moveaxis(parts, 1, 0)

  found = lax.map(some, (cut(readout.features_BTD), cut(targets_BT)))
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(B, T), found)


def windows(
  ids: Sequence[int], prefix: int, length: int
) -> list[tuple[list[int], list[int]]]:
  """(context, text) pairs that score each id once.

  The first window predicts `length` ids after the prefix, each later one the
  next `length`; the last has as full a context as the others.
  """
  ids = list(ids)
  found = [([prefix], ids[:length])] if ids else []
  for start in range(length, len(ids), length):
    end = min(start + length, len(ids))
    found.append((ids[end - length - 1 : start], ids[start:end]))
  return found
