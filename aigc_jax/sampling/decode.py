"""Decoding with a cache: prompts in, tokens out, in fixed shapes.

Prompts lie right-padded in a batch, each row at its own position. What is
compiled depends on buckets only: of rows, of prompt length, of total length.
A row's tokens are a function of its prompt, its sample number and the seed,
not of the rows and the padding beside it.
"""

import dataclasses
import functools
import time
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax import lax

from aigc_jax import sharding, tree
from aigc_jax.errors import NonFinite
from aigc_jax.sampling.decodes import Forward
from aigc_jax.sampling.logits import Sampling, check_seed, choose

NOT = "are not finite: no token can be chosen from them"
SMALLEST = 16  # positions; shorter buckets would save nothing


@dataclasses.dataclass(frozen=True)
class Row:
  """One continuation to make: number `sample` of those of a prompt."""

  prompt: tuple[int, ...]
  sample: int = 0


@struct.dataclass
class Carry:
  """What decoding hands from one dispatch to the next, for B rows."""

  cache: tree.Tree  # a tuple over layers, where these are unrolled
  token_B: jax.Array  # the newest token, which the cache does not hold yet
  position_B: jax.Array  # where that token stands
  left_B: jax.Array  # how many tokens a row may still make; 0 when finished
  lost_B: jax.Array  # whether there was nothing to choose one of them from
  prompt_B: jax.Array  # uint32 checksum of the prompt, part of the row's key
  sample_B: jax.Array
  seen_BV: jax.Array | None  # which tokens a row has, where that matters


def bucket(n: int, smallest: int = SMALLEST) -> int:
  """The least of 16, 24, 32, 48, 64, 96, ... that holds n."""
  size = smallest
  while size < n:
    grown = size * 3 // 2
    if size & (size - 1) == 0 and grown >= n and size > 1:
      return grown
    size = size * 2
  return size


class Engine:
  """Compiled decoding for one model, its parameters, and one way to choose.

  unrolled, start: as `Forward` takes them. positions: how many the model has
  (learned ones), 0 for no limit. group: the most tokens one dispatch makes.
  """

  def __init__(
    self,
    model: nn.Module,
    params: tree.Tree,
    *,
    sampling: Sampling,
    stop_ids: Sequence[int],
    positions: int,
    unrolled: bool,
    group: int,
    seed: int,
    start: int | None = None,
  ):
    self.sampling = sampling.check(model.vocab)
    self.forward = Forward(model, unrolled, start)
    self.model, self.positions, self.group = model, positions, group
    self.stop_ids = tuple(int(i) for i in stop_ids)
    self.seed = np.uint32(check_seed(seed))
    self.compiles = 0
    # Of dispatches that had nothing to compile: what decoding costs.
    self.tokens, self.seconds = 0, 0.0
    self._ready = jax.jit(self.forward.ready)
    self._params = self._ready(params)
    self._begin = jax.jit(self._prefill, static_argnames=("S",))
    self._go = jax.jit(
      self._advance, static_argnames=("uniform",), donate_argnames=("carry",)
    )

  def use(self, params: tree.Tree) -> None:
    """Other parameters of the same model, without compiling again."""
    self._params = self._ready(params)

  def drop(self) -> None:
    """Lets go of the parameters; `use` gives it others."""
    self._params = None

  def start(self, rows: Sequence[Row], max_tokens: int) -> "Session":
    """Reads the prompts; raises BadConfig where the positions do not suffice.

    NonFinite where the model predicts nothing that can be chosen from.
    """
    longest = max(len(row.prompt) for row in rows)
    self.check(longest, max_tokens)
    return Session(self, rows, max_tokens)

  def check(self, prompt: int, max_tokens: int) -> None:
    """Raises BadConfig unless a prompt of that many tokens can be continued."""
    self.forward.check(prompt, max_tokens, self.positions)

  def length(self, n: int) -> int:
    """The bucket for n positions."""
    return min(bucket(n), self.positions or bucket(n))

  # Compiled from here on.

  def _prefill(self, params, tokens_UP, lengths_U, index_B, carry, *, S):
    """Reads U prompts, spreads them over B rows, makes each row's first token.

    `carry` comes without cache, token and position.
    """
    self.compiles += 1
    logits_UV, cache, tokens_UT, lengths_U = self.forward.first(
      params, tokens_UP, lengths_U, S
    )
    U, T = tokens_UT.shape
    # Junk behind a prompt is causal: only the rows' own ends can be bad.
    finite = jnp.all(jnp.isfinite(logits_UV))
    seen_BV = None
    if self.sampling.remembers:
      V = logits_UV.shape[-1]
      held_UT = jnp.arange(T) < lengths_U[:, None]
      ids_UT = jnp.where(held_UT, tokens_UT, V)
      seen_UV = jnp.zeros((U, V), bool)
      row_U1 = jnp.arange(U)[:, None]
      seen_UV = seen_UV.at[row_U1, ids_UT].set(True, mode="drop")
      seen_BV = seen_UV[index_B]
    if U != len(index_B):
      cache = self.forward.rows(cache, index_B)
    carry = carry.replace(
      cache=cache,
      position_B=lengths_U[index_B] - 1,
      token_B=jnp.zeros_like(index_B),
      seen_BV=seen_BV,
    )
    carry = self._chosen(carry, logits_UV[index_B])
    return self._placed(carry), carry.token_B, finite

  def _chosen(self, carry: Carry, logits_BV) -> Carry:
    """One more token for each row that is not finished."""
    position_B = carry.position_B + 1
    sound_B = jnp.all(jnp.isfinite(logits_BV), axis=-1)
    lost_B = carry.lost_B | ((carry.left_B > 0) & ~sound_B)
    key_B = self._keys(carry, position_B)
    token_B = choose(logits_BV, carry.seen_BV, self.sampling, key_B)
    seen_BV = carry.seen_BV
    if seen_BV is not None:
      seen_BV = seen_BV.at[jnp.arange(len(token_B)), token_B].set(True)
    stops = jnp.array(self.stop_ids, jnp.int32)
    stopped_B = jnp.any(token_B[:, None] == stops, axis=-1)
    left_B = jnp.where(stopped_B, 0, jnp.maximum(carry.left_B - 1, 0))
    return carry.replace(
      token_B=token_B, position_B=position_B, left_B=left_B, lost_B=lost_B,
      seen_BV=seen_BV,
    )  # fmt: skip

  def _keys(self, carry: Carry, position_B):
    if self.sampling.temperature == 0:
      return None
    seed = jax.random.key(self.seed)

    def key(*numbers):
      return functools.reduce(jax.random.fold_in, numbers, seed)

    return jax.vmap(key)(carry.prompt_B, carry.sample_B, position_B)

  def _advance(self, params, carry: Carry, steps, *, uniform: bool):
    """Up to `steps` tokens for each row: (carry, tokens (B, group), counts)."""
    self.compiles += 1
    B, (S,) = len(carry.token_B), self._slots(carry.cache)
    out_BG = jnp.zeros((B, self.group), jnp.int32)

    def unfinished(state):
      i, carry, _, _ = state
      return (i < steps) & jnp.any(carry.left_B > 0)

    def one(state):
      i, carry, out_BG, count_B = state
      alive_B = carry.left_B > 0
      # A finished row goes on computing, over its own last slot.
      at_B1 = jnp.minimum(carry.position_B, S - 1)[:, None]
      readout, cache = self.forward.next(
        params, carry.token_B[:, None],
        at_B1[:1] if uniform else at_B1, carry.cache,
      )  # fmt: skip
      carry = self._chosen(carry.replace(cache=cache), readout.logits()[:, 0])
      out_BG = lax.dynamic_update_slice(
        out_BG, carry.token_B[:, None], (jnp.zeros_like(i), i)
      )
      return i + 1, self._placed(carry), out_BG, count_B + alive_B

    count_B = jnp.zeros_like(carry.token_B)
    state = (jnp.zeros((), jnp.int32), carry, out_BG, count_B)
    _, carry, out_BG, count_B = lax.while_loop(unfinished, one, state)
    whole = sharding.constrain
    return self._placed(carry), whole(out_BG, ".."), whole(count_B, ".")

  def _slots(self, cache) -> tuple[int]:
    return (jax.tree.leaves(cache)[0].shape[-3],)

  def _placed(self, carry: Carry) -> Carry:
    """The carry as it lies on the mesh, the same in and out of a dispatch."""
    letters = "BSKH" if self.forward.unrolled else "LBSKH"

    def place(a):
      return sharding.constrain(a, letters[: a.ndim])

    whole = {
      f.name: sharding.constrain(getattr(carry, f.name), ".")
      for f in dataclasses.fields(carry)
      if f.name.endswith("_B")
    }
    seen_BV = carry.seen_BV
    if seen_BV is not None:
      seen_BV = sharding.constrain(seen_BV, "BV")
    return carry.replace(
      cache=jax.tree.map(place, carry.cache), seen_BV=seen_BV, **whole
    )


class Session:
  """Rows being continued together."""

  def __init__(self, engine: Engine, rows: Sequence[Row], max_tokens: int):
    self.engine, self.rows = engine, list(rows)
    unique = list(dict.fromkeys(row.prompt for row in rows))
    B, U = bucket(len(rows), 1), bucket(len(unique), 1)
    longest = max(len(p) for p in unique)
    S = engine.length(engine.forward.positions_of(longest, max_tokens))
    # A source has no part in the positions of what is written.
    P = bucket(longest) if engine.model.source else min(bucket(longest), S)
    tokens_UP = np.zeros((U, P), np.int32)
    lengths_U = np.ones(U, np.int32)
    for u, prompt in enumerate(unique):
      tokens_UP[u, : len(prompt)] = prompt
      lengths_U[u] = len(prompt)
    where = {prompt: u for u, prompt in enumerate(unique)}
    lacking = (0, B - len(rows))
    index_B = np.array([where[r.prompt] for r in rows], np.int32)
    sums = [zlib.crc32(np.array(r.prompt, "<i4").tobytes()) for r in rows]
    carry = Carry(
      cache=None,
      token_B=None,
      position_B=None,
      left_B=np.pad(np.full(len(rows), max_tokens, np.int32), lacking),
      lost_B=np.zeros(B, bool),
      prompt_B=np.pad(np.array(sums, np.uint32), lacking),
      sample_B=np.pad(np.array([r.sample for r in rows], np.uint32), lacking),
      seen_BV=None,
    )
    index_B = np.pad(index_B, lacking)
    # Of a source, all rows start alike.
    alike = len({len(p) for p in unique}) == 1
    self._uniform = alike or engine.model.source
    self._carry, first_B, finite = engine._begin(
      engine._params, tokens_UP, lengths_U, index_B, carry, S=S
    )
    if not finite:
      raise NonFinite(f"the model's predictions for the prompt {NOT}")
    self._first_B: np.ndarray | None = np.asarray(first_B)

  @property
  def done(self) -> bool:
    """Whether no row will get another token."""
    if self._first_B is not None:
      return False
    return not np.any(np.asarray(self._carry.left_B)[: len(self.rows)])

  def advance(self, steps: int) -> list[np.ndarray]:
    """Up to `steps` (at most the engine's group) new tokens of each row.

    The token a row stops at is among them. NonFinite where the model predicts
    nothing that one of them can be chosen from.
    """
    if self._first_B is not None:
      first_B, self._first_B = self._first_B, None
      return [first_B[i : i + 1] for i in range(len(self.rows))]
    engine = self.engine
    steps = np.int32(min(steps, engine.group))
    compiles, started = engine.compiles, time.perf_counter()
    self._carry, out_BG, count_B = engine._go(
      engine._params, self._carry, steps, uniform=self._uniform
    )
    out_BG, count_B = np.asarray(out_BG), np.asarray(count_B)
    if np.any(np.asarray(self._carry.lost_B)):
      raise NonFinite(f"the model's predictions after what it wrote {NOT}")
    if compiles == engine.compiles:
      engine.seconds += time.perf_counter() - started
      engine.tokens += int(count_B[: len(self.rows)].sum())
    return [out_BG[i, : count_B[i]] for i in range(len(self.rows))]

  def stop(self, stopped: Sequence[int]) -> None:
    """Finishes these rows; the others are not touched."""
    if not len(stopped):
      return
    old_B = self._carry.left_B
    left_B = np.array(old_B)
    left_B[list(stopped)] = 0
    # Laid out as before, or it would be compiled again.
    left_B = jax.device_put(left_B, old_B.sharding)
    self._carry = self._carry.replace(left_B=left_B)
