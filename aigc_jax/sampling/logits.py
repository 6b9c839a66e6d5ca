"""From logits to a token: processors, then the largest or a random draw.

Each processor is the one of the same name in `transformers.generate`, applied
in the same order. Thresholds are found by bisection over the bits of the
logits, not by sorting: 32 sums over the vocabulary, which fuse, and which need
no exchange of logits between devices that share the vocabulary.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from aigc_jax.errors import BadConfig

# Of temperatures that are not 0, and of penalties: beyond, nothing is left of
# the logits, or float32 does not hold them.
LEAST, MOST = 1e-6, 1e6
SEEDS = range(2**32)


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How a token is chosen; constant under jit.

  temperature 0 takes the largest logit. top_k 0, top_p 1, min_p 0 and
  repetition_penalty 1 do nothing. As in transformers, only the penalty acts
  when the largest is taken.
  """

  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  repetition_penalty: float = 1.0

  def check(self, vocab: int) -> "Sampling":
    """Itself; raises BadConfig for a value that cannot be meant."""
    t = self.temperature
    if not (math.isfinite(t) and t >= 0):
      raise BadConfig(
        f"temperature={t}: expected a finite number of at least 0 (0 is greedy)"
      )
    if 0 < t < LEAST:
      raise BadConfig(
        f"temperature={t}: logits divided by it overflow; expected 0, which "
        f"takes the likeliest, or at least {LEAST}"
      )
    if t > MOST:
      raise BadConfig(
        f"temperature={t}: every token is as likely as any other by then; "
        f"expected at most {MOST:.0e}"
      )
    if not 0 <= self.top_k <= vocab:
      raise BadConfig(
        f"top_k={self.top_k}: expected 1 to {vocab}, the size of the "
        "vocabulary, or 0 for all of it"
      )
    if not LEAST <= self.top_p <= 1:
      raise BadConfig(
        f"top_p={self.top_p}: expected at least {LEAST} and at most 1 (1 is "
        "off; top_k=1 takes the likeliest)"
      )
    if not 0 <= self.min_p <= 1:
      raise BadConfig(f"min_p={self.min_p}: expected 0 (off) to 1")
    penalty = self.repetition_penalty
    if not LEAST <= penalty <= MOST:
      raise BadConfig(
        f"repetition_penalty={penalty}: expected {LEAST} to {MOST:.0e} (1 is "
        "off)"
      )
    return self

  @property
  def remembers(self) -> bool:
    """Whether the tokens of a row so far matter to its next one."""
    return self.repetition_penalty != 1.0


def check_seed(seed: int, name: str = "seed") -> int:
  """The seed; raises BadConfig for one that 32 bits do not hold."""
  if seed not in SEEDS:
    shown = seed if abs(seed) < 2**70 else "(a number of more than 70 bits)"
    raise BadConfig(f"{name}={shown}: expected 0 to {SEEDS[-1]} (32 bits)")
  return seed


def choose(
  logits_BV: jax.Array, seen_BV: jax.Array | None, how: Sampling, key_B
) -> jax.Array:
  """The next token of each row (B,), each drawn with its own key."""
  logits_BV = process(logits_BV, seen_BV, how)
  if how.temperature == 0:
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  return jax.vmap(jax.random.categorical)(key_B, logits_BV).astype(jnp.int32)


def process(
  logits_BV: jax.Array, seen_BV: jax.Array | None, how: Sampling
) -> jax.Array:
  """Logits after penalty, temperature, top-k, top-p, min-p, in that order."""
  logits_BV = logits_BV.astype(jnp.float32)
  if how.remembers:
    logits_BV = penalise(logits_BV, seen_BV, how.repetition_penalty)
  if how.temperature == 0:
    return logits_BV
  logits_BV = logits_BV / how.temperature
  if how.top_k:
    logits_BV = keep_top_k(logits_BV, how.top_k)
  if how.top_p < 1:
    logits_BV = keep_top_p(logits_BV, how.top_p)
  if how.min_p > 0:
    logits_BV = keep_min_p(logits_BV, how.min_p)
  return logits_BV


def penalise(logits_BV, seen_BV, penalty: float):
  """Tokens seen before made less likely (arXiv:1909.05858, section 4.1)."""
  less = jnp.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty)
  return jnp.where(seen_BV, less, logits_BV)


def keep_top_k(logits_BV, k: int):
  """The k largest; what equals the k-th stays too."""
  keys_BV = ordered(logits_BV)

  def enough(t_B):
    return jnp.sum(keys_BV >= t_B[:, None], axis=-1) >= k

  return _cut(logits_BV, keys_BV, enough)


def keep_top_p(logits_BV, p: float):
  """The smallest set of most likely tokens whose mass reaches p.

  (arXiv:1904.09751.) What equals the least likely of them stays too.
  """
  keys_BV = ordered(logits_BV)
  probs_BV = jax.nn.softmax(logits_BV, axis=-1)

  def enough(t_B):
    kept_BV = keys_BV >= t_B[:, None]
    return jnp.sum(jnp.where(kept_BV, probs_BV, 0.0), axis=-1) >= p

  return _cut(logits_BV, keys_BV, enough)


def keep_min_p(logits_BV, p: float):
  """Tokens at least p times as likely as the likeliest (arXiv:2407.01082)."""
  probs_BV = jax.nn.softmax(logits_BV, axis=-1)
  floor_B1 = p * jnp.max(probs_BV, axis=-1, keepdims=True)
  return jnp.where(probs_BV < floor_B1, -jnp.inf, logits_BV)


def ordered(x: jax.Array) -> jax.Array:
  """uint32 words in the order of the float32 numbers they stand for."""
  x = x.astype(jnp.float32)
  # -0.0 equals 0.0. To add zero would not do: XLA leaves that out.
  bits = lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), jnp.uint32)
  sign = jnp.uint32(1 << 31)
  return jnp.where(bits & sign, ~bits, bits | sign)


def _cut(logits_BV, keys_BV, enough: Callable):
  """Hides what lies below the largest threshold t for which enough(t)."""

  def bit(i, t_B):
    higher_B = t_B | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
    return jnp.where(enough(higher_B), higher_B, t_B)

  zeros_B = jnp.zeros(keys_BV.shape[0], jnp.uint32)
  t_B = lax.fori_loop(0, 32, bit, zeros_B)
  return jnp.where(keys_BV >= t_B[:, None], logits_BV, -jnp.inf)
