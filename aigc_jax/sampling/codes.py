"""Images by their codes: one code after another, or many at once.

A causal prior is asked for each code after those before it, with a cache. A
masked one is asked for all that are hidden, of which those that it is surest
of stay, so many that a share cos(pi s / 2) is hidden after a part s of the
steps (MaskGIT, arXiv:2202.04200). Codes follow from the seed, an image's number
and its label or caption alone.
"""

import contextlib
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.objectives.labels import NO_TOKEN
from aigc_jax.sampling.images import Batches, DrawsByCodes, keys_of
from aigc_jax.tree import Tree

# Of the noise beside what the model is sure of, at the first step; none at the
# last. With less of it, images are alike.
RANDOM = 4.5
LOST = -1  # in place of a code that could not be drawn


class CodeSampler(Batches):
  """Images of a model that DrawsByCodes, and its variables.

  guidance: of logits, as images.guided has it of images. steps: of a masked
  prior, at most as many as an image has codes. mean, std, library: as of
  `Batches`.
  """

  def __init__(
    self,
    model: DrawsByCodes,
    variables: Tree,
    *,
    mean,
    std,
    steps: int,
    guidance: float,
    seed: int,
    library: Callable = contextlib.nullcontext,
  ):
    self.model = model

    def draw(variables, numbers_B, told):
      keys_B = keys_of(seed, numbers_B)
      prior, vq = (_below(variables, name) for name in ("prior", "vq"))
      how = dict(guidance=guidance)
      if model.masked:
        codes_BT = unmasked(model, prior, keys_B, told, steps=steps, **how)
      else:
        codes_BT = one_by_one(model, prior, keys_B, told, **how)
      images = model.vq.apply(vq, jnp.maximum(codes_BT, 0), method="decode")
      lost_B = jnp.any(codes_BT == LOST, axis=1)
      return jnp.where(lost_B[:, None, None, None], jnp.nan, images)

    super().__init__(variables, draw, mean, std, library)


def _below(variables: Tree, name: str) -> Tree:
  """The variables of a part."""
  return {kind: x[name] for kind, x in variables.items() if name in x}


def one_by_one(
  model: DrawsByCodes,
  variables: Tree,
  keys_B: jax.Array,
  told: jax.Array,
  *,
  guidance: float,
) -> jax.Array:
  """Codes (B, T) of a causal prior with these variables.

  told: labels (B,), or captions (B, S). LOST where no code could be drawn.
  """
  B, T = len(told), model.length
  lead_BP = model.lead(_twice(told, model, guidance))
  P = lead_BP.shape[1]

  def following(ids_BI, first, cache):
    """Logits (B, V) of what comes after ids from the place `first` on."""
    positions = first + jnp.arange(ids_BI.shape[1], dtype=jnp.int32)[None]
    readout, cache = model.prior.apply(
      variables, ids_BI, positions, cache, method="next"
    )
    readout = model.told(readout.replace(
      features_BTD=readout.features_BTD[:, -1:]
    ))  # fmt: skip
    return _guided(readout.logits()[:, 0], guidance), cache

  def drawn(logits_BV, t):
    key_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, t)
    return _drawn(key_B, logits_BV)

  def one(carry, t):
    code_B, cache = carry
    ids_B1 = jnp.tile(code_B, len(lead_BP) // B)[:, None]
    logits_BV, cache = following(ids_B1, P + t - 1, cache)
    code_B = drawn(logits_BV, t)
    return (code_B, cache), code_B

  cache = model.prior.apply(
    variables, {"tokens": lead_BP}, P + T - 1, method="begin"
  )
  logits_BV, cache = following(lead_BP, 0, cache)
  first_B = drawn(logits_BV, 0)
  places = jnp.arange(1, T, dtype=jnp.int32)
  _, codes_TB = jax.lax.scan(one, (first_B, cache), places)
  return jnp.concatenate([first_B[:, None], codes_TB.T], axis=1)


def unmasked(
  model: DrawsByCodes,
  variables: Tree,
  keys_B: jax.Array,
  told: jax.Array,
  *,
  guidance: float,
  steps: int,
) -> jax.Array:
  """Codes (B, T) of a masked prior with these variables.

  told: labels (B,), or captions (B, S). LOST where no code could be drawn.
  """
  B, T = len(told), model.length
  left = hidden_after(T, steps)
  each_told = _twice(told, model, guidance)
  again = len(each_told) // B

  def one(carry, step):
    codes_BT, hidden_BT = carry
    i, left = step
    shown = (jnp.tile(x, (again, 1)) for x in (codes_BT, hidden_BT))
    output = model.prior.apply(variables, model.asked(each_told, *shown))
    logits_BTV = _guided(model.told(output).logits(), guidance)
    key_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, i)
    code_B, noise_B = jax.vmap(jax.random.split, out_axes=1)(key_B)
    new_BT = _drawn(code_B, logits_BTV)
    codes_BT = jnp.where(hidden_BT, new_BT, codes_BT)
    logp_BTV = jax.nn.log_softmax(logits_BTV)
    sure_BT = jnp.take_along_axis(logp_BTV, codes_BT[..., None], -1)[..., 0]
    noise_BT = jax.vmap(lambda key: jax.random.gumbel(key, (T,)))(noise_B)
    sure_BT += RANDOM * (1 - (i + 1) / len(lefts)) * noise_BT
    # What is shown stays so.
    sure_BT = jnp.where(hidden_BT, sure_BT, jnp.inf)
    rank_BT = jnp.argsort(jnp.argsort(sure_BT, axis=-1), axis=-1)
    return (codes_BT, rank_BT < left), None

  lefts = jnp.asarray(left, jnp.int32)
  start = (
    jnp.zeros((B, T), jnp.int32),
    jnp.ones((B, T), bool),
  )
  each = (jnp.arange(len(left), dtype=jnp.int32), lefts)
  (codes_BT, _), _ = jax.lax.scan(one, start, each)
  return codes_BT


def _drawn(key_B: jax.Array, logits: jax.Array) -> jax.Array:
  """Codes of the rows, each drawn with its key; LOST of what is not finite."""
  codes = jax.vmap(jax.random.categorical)(key_B, logits)
  sound = jnp.all(jnp.isfinite(logits), axis=-1)
  return jnp.where(sound, codes.astype(jnp.int32), LOST)


def hidden_after(T: int, steps: int) -> np.ndarray:
  """How many of T codes are hidden after each of the steps; at last none.

  Each step shows one at least, so that there are no more steps than codes.
  """
  steps = min(steps, T)
  left = [math.floor(T * math.cos(math.pi / 2 * (i + 1) / steps))
          for i in range(steps)]  # fmt: skip
  for i in range(steps):
    before = left[i - 1] if i else T
    left[i] = max(min(left[i], before - 1), steps - 1 - i)
  return np.asarray(left)


def _twice(told: jax.Array, model: DrawsByCodes, guidance: float):
  """What is told, and for guidance as many rows that are told nothing."""
  if guidance == 1.0:
    return told
  nothing = model.classes if told.ndim == 1 else NO_TOKEN
  return jnp.concatenate([told, jnp.full_like(told, nothing)])


def _guided(logits: jax.Array, guidance: float) -> jax.Array:
  """Logits of the rows, by those that are told something and those not."""
  if guidance == 1.0:
    return logits
  told, free = jnp.split(logits, 2)
  return free + guidance * (told - free)
