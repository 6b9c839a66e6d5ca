"""Cross entropy of one label for each row, and how often it is right."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from aigc_jax import errors
from aigc_jax.layers.noise import uniform
from aigc_jax.metrics import Mean

Batch = Mapping[str, jax.Array]
NO_LABEL = 2**31 - 1  # larger than any label: a model reads it as none
NO_TOKEN = -1  # less than any id: a caption of such is none
FEW = 5  # of the most likely labels, among which the right one counts


def labels(
  predict: Callable, batch: Batch, *, smoothing: float = 0.0
) -> dict[str, Mean]:
  """Negative log likelihood of "labels" (B,) under "weights" (B,).

  Where rows were mixed of two, "other_labels" (B,) are those of the second, and
  "share" (B,) is that of the first: the likelihood is mixed like them
  (arXiv:1710.09412).

  Returns "nll" (nats) and "loss", the same with a share `smoothing` of the
  target spread over all labels (arXiv:1512.00567, section 7); "top1" and, with
  more labels than five, "top5": how often the label, or the one with the larger
  share, is the most likely or among the five most likely. Raises BadConfig for
  a smoothing that is no share.
  """
  if not 0 <= smoothing < 1:
    raise errors.BadConfig(
      f"objective.smoothing={smoothing}: expected 0 to below 1"
    )
  scores = predict(batch)
  if not hasattr(scores, "logits"):
    raise errors.BadConfig(
      "objective.kind='labels' needs scores of labels, and this model gives "
      "features: --config.model.classes=N, as many as there are labels"
    )
  logits_BV = scores.logits()
  first_B, weights_B = batch["labels"], batch["weights"]
  logp_BV = jax.nn.log_softmax(logits_BV)
  nll_B = -_at(logp_BV, first_B)
  larger_B = first_B
  if "share" in batch:
    share_B, second_B = batch["share"], batch["other_labels"]
    nll_B = share_B * nll_B - (1 - share_B) * _at(logp_BV, second_B)
    larger_B = jnp.where(share_B < 0.5, second_B, first_B)
  loss_B = nll_B
  if smoothing:
    loss_B = (1 - smoothing) * nll_B - smoothing * jnp.mean(logp_BV, axis=-1)
  better_B = _how_many_better(logits_BV, larger_B)
  means = {"loss": loss_B, "nll": nll_B, "top1": better_B < 1}
  if logits_BV.shape[-1] > FEW:
    means["top5"] = better_B < FEW
  return {name: Mean.of(values, weights_B) for name, values in means.items()}


def _at(x_BV: jax.Array, label_B: jax.Array) -> jax.Array:
  return jnp.take_along_axis(x_BV, label_B[:, None], axis=-1)[:, 0]


def _how_many_better(logits_BV: jax.Array, label_B: jax.Array) -> jax.Array:
  """How many labels come before the right one, (B,) int32.

  Of equal logits the first label comes first, as of argmax: were they all in
  the right one's favour, a model that says nothing would always be right. So it
  would be one that says nan, were that not better than any number.
  """
  own_B1 = _at(logits_BV, label_B)[:, None]
  ids_V = jnp.arange(logits_BV.shape[-1])
  earlier_BV = ids_V < label_B[:, None]
  better = ~(logits_BV <= own_B1) | ((logits_BV == own_B1) & earlier_BV)
  own_BV = ids_V == label_B[:, None]
  count = jnp.sum(better & ~own_BV, axis=-1)
  return jnp.where(jnp.isfinite(own_B1[:, 0]), count, logits_BV.shape[-1])


def check_dropout(share: float) -> None:
  """Raises BadConfig for a share of rows without label that is none."""
  if not 0 <= share <= 1:
    raise errors.BadConfig(f"objective.label_dropout={share}: expected 0 to 1")


def without_labels(batch: Batch, share: float) -> dict[str, jax.Array]:
  """The batch, a share of its rows without label or caption, by their keys.

  For guidance without a classifier (arXiv:2207.12598).
  """
  if not share:
    return dict(batch)
  kept_B = uniform(batch["draw"], "label") >= share
  found = dict(batch)
  if "labels" in batch:
    found["labels"] = jnp.where(kept_B, batch["labels"], NO_LABEL)
  if "tokens" in batch:
    tokens_BT = batch["tokens"]
    found["tokens"] = jnp.where(kept_B[:, None], tokens_BT, NO_TOKEN)
  return found
