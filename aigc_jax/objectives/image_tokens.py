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
  text_weight: float = 0.0,
) -> dict[str, Mean]:
  """Negative log likelihood of the codes that a frozen VQ makes of "images".

  Of a causal prior (arXiv:2102.12092) that of all codes. Of one that is asked
  for what is hidden (arXiv:2202.04200) that of the hidden ones, as many of them
  in training as the cosine of a random quarter turn says; in evaluation any
  number is as likely, by which "nll" is a bound on that of an order in which
  codes are told one by one (arXiv:2110.02037), to be compared with a causal
  one. An image counts once, whatever of it was hidden, by its keys in "draw".

  label_dropout: the share of rows that in training have no label or caption,
  for guidance (arXiv:2207.12598). label_smoothing and chunk: as `tokens` has
  them. text_weight: of the captions' own tokens, from the second on, in the
  loss of a causal prior, whose codes have the rest; DALL-E's is 1/8.

  Returns "nll" in nats per code, "bits" the same in bits, "accuracy" (share of
  codes that are the likeliest, of equal ones the first), "loss", and with a
  text_weight "text_nll" in nats per token of captions. Raises BadConfig for
  options out of range.
  """
  check_dropout(label_dropout)
  if not 0 <= text_weight < 1:
    raise errors.BadConfig(
      f"objective.text_weight={text_weight}: expected 0 to below 1"
    )
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
  text = None
  if text_weight:
    _check_text(coded, batch)
    readout, text = predict(asked, "text")
  else:
    readout = predict(asked, "prior")
  weights_B = batch["weights"].astype(jnp.float32)
  terms = Terms(
    0.0, readout.softcap, chunk, hits=True, smoothing=label_smoothing
  )
  wanted = dict(targets=codes_BT, weights=share_BT * weights_B[:, None])
  sums, _ = of_readout(readout, wanted, terms)
  weight = jnp.sum(weights_B)
  loss, found = sums.loss, {}
  if text is not None:
    of_text, texts = _text(text, asked["tokens"], weights_B, chunk)
    loss = (1 - text_weight) * loss + text_weight * of_text.loss
    found["text_nll"] = Mean(of_text.nll, texts)
  return found | {
    "loss": Mean(loss, weight),
    "nll": Mean(sums.nll, weight),
    "bits": Mean(sums.nll / math.log(2), weight),
    "accuracy": Mean(sums.hits, weight),
  }


# What it puts into a batch for the model.
image_tokens.makes = ("codes", "hidden")


def _check_text(coded, batch: Batch) -> None:
  if coded.masked or "tokens" not in batch:
    raise errors.BadConfig(
      "objective.text_weight is of a causal prior that is told captions: "
      "--config.objective.text_weight=0.0"
    )


def _text(heard, tokens_BS, weights_B, chunk: int | None):
  """Sums over captions, each the mean of its tokens, and how many there are.

  A row that is told no caption has no part in it.
  """
  readout, real_BS = heard.readout, heard.real_BS
  count_B = jnp.sum(real_BS, axis=1)
  share_BS = real_BS / jnp.maximum(count_B, 1)[:, None]
  wanted = dict(
    targets=jnp.where(real_BS, tokens_BS[:, 1:], 0),
    weights=share_BS * weights_B[:, None],
  )
  sums, _ = of_readout(readout, wanted, Terms(0.0, readout.softcap, chunk))
  return sums, jnp.sum(weights_B * (count_B > 0))


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
