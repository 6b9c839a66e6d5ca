"""The codes of an image, each from those before it or from those not hidden."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from aigc_jax import errors
from aigc_jax.layers.noise import row_keys, uniform
from aigc_jax.metrics import Mean
from aigc_jax.objectives.labels import check_dropout, without_labels
from aigc_jax.objectives.tokens import Batch, Terms, of_readout


def image_tokens(
  predict: Callable,
  batch: Batch,
  *,
  label_dropout: float = 0.1,
  label_smoothing: float = 0.0,
  chunk: int | None = None,
) -> dict[str, Mean]:
  """Negative log likelihood of the codes that a frozen VQ makes of "images".

  Of a causal prior (arXiv:2102.12092) that of all codes. Of one that is asked
  for what is hidden (arXiv:2202.04200) that of the hidden ones, as many of them
  in training as the cosine of a random quarter turn says; in evaluation any
  number is as likely, by which "nll" is a bound on that of an order in which
  codes are told one by one (arXiv:2110.02037), to be compared with a causal
  one. An image counts once, whatever of it was hidden, by its keys in "draw".

  label_dropout: the share of rows that in training have no label, for guidance
  (arXiv:2207.12598). label_smoothing and chunk: as `tokens` has them.

  Returns "nll" in nats per code, "bits" the same in bits, "accuracy" (share of
  codes than which no other is likelier) and "loss". Raises BadConfig for
  options out of range.
  """
  check_dropout(label_dropout)
  if not 0 <= label_smoothing < 1:
    raise errors.BadConfig(
      f"objective.label_smoothing={label_smoothing}: expected 0 to below 1"
    )
  trains = getattr(predict, "trains", False)
  coded = predict(batch, "vq")
  codes_BT = coded.codes_BT
  asked = without_labels(batch, label_dropout) if trains else dict(batch)
  asked["codes"] = codes_BT
  share_BT = jnp.full(codes_BT.shape, 1.0 / codes_BT.shape[1])
  if coded.masked:
    asked["hidden"] = hidden_places(batch["draw"], codes_BT.shape[1], trains)
    count_B1 = jnp.sum(asked["hidden"], axis=1, keepdims=True)
    share_BT = asked["hidden"] / count_B1
  readout = predict(asked, "prior")
  weights_B = batch["weights"].astype(jnp.float32)
  terms = Terms(
    0.0, readout.softcap, chunk, hits=True, smoothing=label_smoothing
  )
  wanted = dict(targets=codes_BT, weights=share_BT * weights_B[:, None])
  sums, _ = of_readout(readout, wanted, terms)
  weight = jnp.sum(weights_B)
  return {
    "loss": Mean(sums.loss, weight),
    "nll": Mean(sums.nll, weight),
    "bits": Mean(sums.nll / math.log(2), weight),
    "accuracy": Mean(sums.hits, weight),
  }


# What it puts into a batch for the model.
image_tokens.makes = ("codes", "hidden")


def hidden_places(draw_B2: jax.Array, T: int, trains: bool) -> jax.Array:
  """(B, T) bool: which codes of each row are hidden, at least one.

  In training a share cos(pi u / 2) of them, rounded up, of u from 0 to 1; else
  1 to T of them, each number as likely.
  """
  u_B = uniform(draw_B2, "hidden")
  if trains:
    count_B = jnp.ceil(T * jnp.cos(u_B * (math.pi / 2)))
  else:
    count_B = 1 + jnp.floor(T * u_B)
  keys_B = row_keys(draw_B2, "places")
  order_BT = jax.vmap(lambda key: jax.random.permutation(key, T))(keys_B)
  return order_BT < jnp.clip(count_B, 1, T)[:, None]
