"""Beam search: the likeliest continuations, several kept at each step.

As `transformers.generate(num_beams=...)` has it. A finished continuation of n
tokens is worth its log probability / n ** length_penalty. At each step the
2 W likeliest ways to go on are looked at (more, with several stop tokens), so
that W can go on however many end; of those that end, the W best ever are kept.
A prompt is done when what goes on is worth less than the worst it has kept.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax import lax

from aigc_jax import tree
from aigc_jax.data import check_ids
from aigc_jax.errors import BadConfig, NonFinite
from aigc_jax.sampling.decode import NOT, bucket
from aigc_jax.sampling.decodes import Forward, Hears
from aigc_jax.sampling.text import Completion, finished, reader

NOTHING = -1e9  # the score of what is not there


@dataclasses.dataclass(frozen=True)
class Beams:
  """How many continuations are kept, and what length does to their worth.

  length_penalty: above 0 favours long ones, 0 and below short ones.
  """

  width: int
  length_penalty: float = 1.0

  def check(self, vocab: int) -> "Beams":
    """Itself; raises BadConfig for a value that cannot be meant."""
    if not 1 <= self.width <= vocab:
      raise BadConfig(
        f"beams={self.width}: expected from 1 to {vocab}, the vocabulary's size"
      )
    if not np.isfinite(self.length_penalty):
      raise BadConfig(
        f"length_penalty={self.length_penalty}: expected a finite number (1 "
        "compares by the mean log probability of a token)"
      )
    return self


@struct.dataclass
class Search:
  """Of U prompts with W beams each; at most N new tokens."""

  cache: tree.Tree  # of U * W rows
  start_U: jax.Array  # where the first new token of a prompt stands
  made: jax.Array  # how many tokens each beam has
  tokens_UWN: jax.Array  # of those that go on
  scores_UW: jax.Array
  kept_UWN: jax.Array  # of those that ended
  kept_scores_UW: jax.Array
  kept_lengths_UW: jax.Array  # 0 where none has ended
  open_U: jax.Array  # whether something better may still come
  finite: jax.Array  # whether there was always something to choose from


class BeamSearch:
  """Compiled beam search with one model and its parameters.

  unrolled, start: as `Forward` takes them; stop_ids end a continuation.
  positions: how many the model has, 0 for no limit.
  """

  def __init__(
    self,
    model: nn.Module,
    params: tree.Tree,
    *,
    beams: Beams,
    stop_ids: Sequence[int],
    positions: int,
    unrolled: bool,
    start: int | None = None,
  ):
    self.beams = beams.check(model.vocab)
    self.model, self.positions = model, positions
    self.forward = Forward(model, unrolled, start)
    self.stop_ids = tuple(int(i) for i in stop_ids)
    self._ready = jax.jit(self.forward.ready)
    self._params = self._ready(params)
    self._begin = jax.jit(self._prefill, static_argnames=("S", "N"))
    self._go = jax.jit(
      self._advance, static_argnames=("uniform",), donate_argnames=("search",)
    )

  def use(self, params: tree.Tree) -> None:
    """Other parameters of the same model, without compiling again."""
    self._params = self._ready(params)

  def check(self, prompt: int, max_tokens: int) -> None:
    """Raises BadConfig unless a prompt of that many tokens can be continued."""
    self.forward.check(prompt, max_tokens, self.positions)

  def __call__(
    self,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    poll: Callable[[], None] | None = None,
    steps: int = 32,
  ) -> list[list[tuple[float, list[int]]]]:
    """For each prompt (score, tokens) of those kept, the best first.

    The token that ends one is among its tokens. poll is called every `steps`
    tokens. Raises NonFinite where the model predicts nothing to choose from.
    """
    longest = max(len(p) for p in prompts)
    for prompt in prompts:
      self.check(len(prompt), max_tokens)
    U, P = bucket(len(prompts), 1), bucket(longest)
    S = bucket(self.forward.positions_of(longest, max_tokens))
    if self.positions:
      S = min(S, self.positions)
      P = P if self.model.source else min(P, S)
    tokens_UP, lengths_U = np.zeros((U, P), np.int32), np.ones(U, np.int32)
    for u, prompt in enumerate(prompts):
      tokens_UP[u, : len(prompt)] = prompt
      lengths_U[u] = len(prompt)
    real_U = np.arange(U) < len(prompts)
    alike = len(set(lengths_U[real_U])) == 1
    if alike:  # also the rows that fill the bucket
      lengths_U[:] = lengths_U[0]
    uniform = alike or self.model.source  # of which targets start alike
    search = self._begin(
      self._params, tokens_UP, lengths_U, real_U, S=S, N=max_tokens
    )
    if not search.finite:
      raise NonFinite(f"the model's predictions for the prompt {NOT}")
    while np.any(np.asarray(search.open_U)):
      if poll:
        poll()
      search = self._go(self._params, search, np.int32(steps), uniform=uniform)
      if not search.finite:
        raise NonFinite(f"the model's predictions after what it wrote {NOT}")
    return _results(search, len(prompts))

  # Compiled from here on.

  def _prefill(self, params, tokens_UP, lengths_U, real_U, *, S: int, N: int):
    logits_UV, cache, _, lengths_U = self.forward.first(
      params, tokens_UP, lengths_U, S
    )
    U, W = len(lengths_U), self.beams.width
    # All beams of a prompt are alike: only the first one counts.
    scores_UW = jnp.full((U, W), NOTHING).at[:, 0].set(0.0)
    search = Search(
      cache=self.forward.rows(cache, jnp.repeat(jnp.arange(U), W)),
      start_U=lengths_U,
      made=jnp.int32(0),
      tokens_UWN=jnp.zeros((U, W, N), jnp.int32),
      scores_UW=scores_UW,
      kept_UWN=jnp.zeros((U, W, N), jnp.int32),
      kept_scores_UW=jnp.full((U, W), NOTHING),
      kept_lengths_UW=jnp.zeros((U, W), jnp.int32),
      open_U=real_U,
      finite=jnp.bool_(True),
    )
    logits_UWV = jnp.broadcast_to(logits_UV[:, None], (U, W, self.model.vocab))
    return self._grow(search, logits_UWV)

  def _advance(self, params, search: Search, steps, *, uniform: bool):
    """Up to `steps` more tokens of each beam that goes on."""
    U, W, _ = search.tokens_UWN.shape

    def unfinished(state):
      i, search = state
      return (i < steps) & jnp.any(search.open_U)

    def one(state):
      i, search = state
      last = search.made - 1
      token_UW = jnp.take(search.tokens_UWN, last, axis=2)
      at_U = search.start_U + last
      at_B1 = at_U[:1, None] if uniform else jnp.repeat(at_U, W)[:, None]
      readout, cache = self.forward.next(
        params, token_UW.reshape(U * W, 1), at_B1, search.cache
      )
      logits_UWV = readout.logits().reshape(U, W, -1)
      return i + 1, self._grow(search.replace(cache=cache), logits_UWV)

    return lax.while_loop(unfinished, one, (jnp.int32(0), search))[1]

  def _grow(self, search: Search, logits_UWV) -> Search:
    """One more token: what goes on, what ended, and what is still open."""
    U, W, N = search.tokens_UWN.shape
    V = logits_UWV.shape[-1]
    n = search.made + 1  # tokens, with the new one
    sound_U = jnp.all(jnp.isfinite(logits_UWV), axis=(1, 2))
    scores_UWV = jax.nn.log_softmax(logits_UWV) + search.scores_UW[..., None]
    K = min(max(2, 1 + len(self.stop_ids)) * W, W * V)
    scores_UK, index_UK = lax.top_k(scores_UWV.reshape(U, W * V), K)
    beam_UK, token_UK = index_UK // V, (index_UK % V).astype(jnp.int32)
    tokens_UKN = _of_rows(search.tokens_UWN, beam_UK)
    tokens_UKN = lax.dynamic_update_slice(
      tokens_UKN, token_UK[..., None], (0, 0, search.made)
    )
    stops = jnp.array(self.stop_ids, jnp.int32)
    ended_UK = jnp.any(token_UK[..., None] == stops, axis=-1) | (n == N)

    # What goes on: the best W that have not ended.
    going_UK = jnp.where(ended_UK, scores_UK + NOTHING, scores_UK)
    going_UW, on_UW = lax.top_k(going_UK, W)
    beam_UW = jnp.take_along_axis(beam_UK, on_UW, axis=1)
    rows_B = (jnp.arange(U)[:, None] * W + beam_UW).reshape(-1)

    # What ended: among the W best of all, and worth more than what is kept.
    worth_UK = scores_UK / _power(n, self.beams.length_penalty)
    counts_UK = ended_UK & (jnp.arange(K) < W) & search.open_U[:, None]
    worth_UK = jnp.where(counts_UK, worth_UK, worth_UK + NOTHING)
    joined = [
      jnp.concatenate(pair, axis=1)
      for pair in (
        (search.kept_scores_UW, worth_UK),
        (search.kept_UWN, tokens_UKN),
        (search.kept_lengths_UW, jnp.where(counts_UK, n, 0)),
      )
    ]
    kept_scores_UW, best_UW = lax.top_k(joined[0], W)
    kept_UWN, kept_lengths_UW = (_of_rows(x, best_UW) for x in joined[1:])

    full_U = jnp.all(kept_lengths_UW > 0, axis=1)
    worst_U = jnp.where(full_U, jnp.min(kept_scores_UW, axis=1), NOTHING)
    hoped_U = going_UW[:, 0] / _power(n, self.beams.length_penalty)
    open_U = search.open_U & (hoped_U > worst_U) & ~jnp.all(ended_UK, axis=1)
    return search.replace(
      cache=self.forward.rows(search.cache, rows_B, memory=False),
      made=n,
      tokens_UWN=_of_rows(tokens_UKN, on_UW),
      scores_UW=going_UW,
      kept_UWN=kept_UWN,
      kept_scores_UW=kept_scores_UW,
      kept_lengths_UW=kept_lengths_UW,
      open_U=open_U,
      finite=search.finite & jnp.all(sound_U | ~search.open_U),
    )


def _of_rows(x, index_UW):
  """x[u, index[u, w]], whatever axes follow."""
  index = index_UW.reshape(*index_UW.shape, *[1] * (x.ndim - 2))
  return jnp.take_along_axis(x, index, axis=1)


def _power(n, exponent: float):
  return n.astype(jnp.float32) ** exponent


def _results(search: Search, prompts: int):
  scores, lengths, tokens = (
    np.asarray(x)
    for x in (search.kept_scores_UW, search.kept_lengths_UW, search.kept_UWN)
  )
  return [
    [
      (float(scores[u, w]), tokens[u, w, : lengths[u, w]].tolist())
      for w in range(scores.shape[1])
      if lengths[u, w]
    ]
    for u in range(prompts)
  ]


def search_texts(
  search: BeamSearch,
  tokenizer,
  prompts: Sequence[str],
  *,
  max_tokens: int,
  num_samples: int = 1,
  stops: Sequence[str] = (),
  batch: int,
  read: Callable[..., tuple[int, ...]] | None = None,
  poll: Callable[[], None] | None = None,
) -> list[Completion]:
  """The `num_samples` best continuations of each prompt, best first.

  Arguments as `text.generate` takes them; `batch` counts beams. Where fewer
  have ended there are fewer. Raises BadConfig, or BadData for a prompt with ids
  that the model lacks, before doing anything.
  """
  width = search.beams.width
  if not 1 <= num_samples <= width:
    raise BadConfig(
      f"num_samples={num_samples} of beams={width}: expected from 1 to {width}"
    )
  rows, read = [], read or reader(search.model)
  for prompt in prompts:
    ids = read(tokenizer, prompt)
    if not isinstance(search.model, Hears):  # whose prompts are no ids
      check_ids(tokenizer, ids, search.model.vocab)
    search.check(len(ids), max_tokens)
    rows.append(ids)
  order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
  together = max(1, batch // width)
  done: dict[int, list[Completion]] = {}
  for at in range(0, len(order), together):
    part = order[at : at + together]
    found = search([rows[i] for i in part], max_tokens, poll)
    for i, beams in zip(part, found, strict=True):
      after = () if search.model.source else rows[i]
      done[i] = [
        finished(
          tokenizer, i, sample, prompts[i], after, tokens, stops,
          search.stop_ids, max_tokens, score,
        )
        for sample, (score, tokens) in enumerate(beams[:num_samples])
      ]  # fmt: skip
  return [completion for i in range(len(rows)) for completion in done[i]]
