"""Masked tokens, and whether one text follows another (arXiv:1810.04805)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from aigc_jax import errors
from aigc_jax.layers.readout import readout_of
from aigc_jax.metrics import Mean
from aigc_jax.objectives.tokens import LOGITS, Batch, Terms, of_readout


def masked(
  predict: Callable,
  batch: Batch,
  *,
  chunk: int | None = None,
  logits: str = "float32",
  next_sentence: bool = False,
) -> dict[str, Mean]:
  """Negative log likelihood of "targets" (B, M) under "weights" (B, M).

  The batch says at which positions the model predicts, "at" (B, M), so that no
  others have logits. Returns "nll" (nats per token), "accuracy" (share of the
  tokens that are the likeliest, of equal ones the first) and "loss" = nll.

  next_sentence: the loss has that of "follows" (B,) too, 0 where the second
  text of a row follows the first. A pair counts as M tokens do, so that loss =
  nll + next_nll where no place of a row is empty, and parts of a batch add up
  to the whole; there are "next_nll" and "next_accuracy" then.

  chunk and logits: as `tokens` has them. Raises BadConfig for a model without
  the heads.
  """
  dtype = errors.choose(logits, LOGITS, "objective.logits")
  found = predict(batch)
  readout = readout_of(found)
  terms = Terms(0.0, readout.softcap, chunk, dtype, hits=True)
  sums, weight = of_readout(readout, batch, terms)
  means = {
    "loss": Mean(sums.loss, weight),
    "nll": Mean(sums.nll, weight),
    "accuracy": Mean(sums.hits, weight),
  }
  if next_sentence:
    means |= _of_pairs(found, batch)
    places = batch["weights"].shape[1]
    added = places * means["next_nll"].sum
    means["loss"] = Mean(sums.loss + added, weight)
  return means


def _of_pairs(found, batch: Batch) -> dict[str, Mean]:
  if getattr(found, "follows_BC", None) is None:
    raise errors.BadConfig(
      "objective.next_sentence=True needs a model that says whether one text "
      "follows another: --config.model.pooler=True "
      "--config.model.next_sentence=True"
    )
  follows_B = batch["follows"]
  z_BC = found.follows_BC.astype(jnp.float32)
  nll_B = -jnp.take_along_axis(
    jax.nn.log_softmax(z_BC), follows_B[:, None], axis=-1
  )[:, 0]
  right_B = (jnp.argmax(z_BC, axis=-1) == follows_B).astype(jnp.float32)
  # A row that pads the last batch of a set has no text, and is no pair.
  real_B = jnp.any(batch["segments"] > 0, axis=1).astype(jnp.float32)
  return {
    "next_nll": Mean.of(nll_B, real_B),
    "next_accuracy": Mean.of(right_B, real_B),
  }
