"""Likelihood of a text over all the ways in which it may be heard.

Connectionist temporal classification, Graves et al., ICML 2006: each step says
a token or the blank; of a run of equal tokens one counts, then blanks are left
out. The sum over alignments is Optax's.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from aigc_jax.metrics import Mean

Batch = Mapping[str, jax.Array]


def ctc(predict: Callable, batch: Batch) -> dict[str, Mean]:
  """Negative log likelihood of "targets" (B, T) under "weights" (B, T).

  The model gives `layers.readout.Aligned`. What weighs 0, and the blank, such
  as an end of text, is no part of a text. Returns "loss" and "nll", nats per
  token of the texts that can be heard at all, and "too_short", the share of
  texts for which there are fewer steps than tokens and, between two that are
  the same, blanks: no alignment is one of those, and they have no part in the
  loss.
  """
  found = predict(batch)
  logits_BTV = found.readout.logits()
  steps_BT = jnp.arange(logits_BTV.shape[1]) < found.lengths_B[:, None]
  targets_BT = batch["targets"]
  is_text_BT = (batch["weights"] > 0) & (targets_BT != found.blank)
  labels_BT, is_text_BT = to_the_front(targets_BT, is_text_BT)
  count_B = jnp.sum(is_text_BT, axis=-1)
  again_BT = is_text_BT[:, 1:] & (labels_BT[:, 1:] == labels_BT[:, :-1])
  needed_B = count_B + jnp.sum(again_BT, axis=-1)
  fits_B = needed_B <= found.lengths_B
  nll_B = optax.ctc_loss(
    logits_BTV, 1.0 - steps_BT, labels_BT, 1.0 - is_text_BT,
    blank_id=found.blank,
  )  # fmt: skip
  # There is text in it: what pads a batch has none.
  real_B = count_B > 0
  # Chosen before it is summed: of what does not fit, no gradient is wanted.
  nll = Mean(
    jnp.sum(jnp.where(fits_B & real_B, nll_B, 0.0)),
    jnp.sum(jnp.where(fits_B, count_B, 0)).astype(jnp.float32),
  )
  too_short = Mean.of(~fits_B, real_B.astype(jnp.float32))
  return {"loss": nll, "nll": nll, "too_short": too_short}


def to_the_front(
  ids_BT: jax.Array, which_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Those of each row that are wanted, in their order, before the others.

  Returns both arrays so ordered.
  """
  order_BT = jnp.argsort(~which_BT, axis=-1, stable=True)
  ids_BT, which_BT = (
    jnp.take_along_axis(x, order_BT, axis=-1) for x in (ids_BT, which_BT)
  )
  return jnp.where(which_BT, ids_BT, 0), which_BT
