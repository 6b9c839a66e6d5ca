"""Which text belongs to which image, told from all the others of the batch.

Each device keeps its images, and texts travel in a ring past them: no device
ever holds more than two pieces of the embeddings or more than one of the
logits, however many devices there are. What travels home again is whole: sums
over all images for each text, and in the backward pass the gradient of each.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from aigc_jax import errors, sharding
from aigc_jax.metrics import Mean

Batch = Mapping[str, jax.Array]
NEVER = -1e30  # a logit that has no share in a softmax


def contrastive(
  predict: Callable, batch: Batch, *, loss: str = "softmax"
) -> dict[str, Mean]:
  """Of images and texts (B), the pairs (i, i) are right under "weights" (B,).

  loss: "softmax", the mean of the cross entropies of the texts of an image and
  of the images of a text (arXiv:2103.00020); "sigmoid", the negative log
  likelihood of all pairs being told right and wrong one by one, summed over the
  texts of an image (arXiv:2303.15343). Rows without weight are in no pair.

  Returns "loss"; "image_to_text" and "text_to_image", how often the right one
  is nearer than any other of the batch; "scale", and "bias" where the model has
  one. Raises BadConfig for another loss.
  """
  make = errors.choose(loss, LOSSES, "objective.loss")
  found = predict(batch)
  weights_B = batch["weights"].astype(jnp.float32)
  scale = jnp.exp(found.log_scale)
  bias = jnp.float32(0) if found.bias is None else found.bias
  loss_B, rivals = make(found.images_BZ, found.texts_BZ, scale, bias, weights_B)
  means = {
    "loss": loss_B,
    "image_to_text": rivals.of_image_B < 1,
    "text_to_image": rivals.of_text_B < 1,
    "scale": jnp.broadcast_to(scale, weights_B.shape),
  }
  if found.bias is not None:
    means["bias"] = jnp.broadcast_to(bias, weights_B.shape)
  return {name: Mean.of(x, weights_B) for name, x in means.items()}


# A pair is told from the others of the batch: of parts of it, from fewer.
contrastive.couples_rows = "pairs that are told from all others of a batch"


class Rivals(NamedTuple):
  """How many others are at least as near as the right one, (B,) each."""

  of_image_B: jax.Array
  of_text_B: jax.Array


def softmax(images_BZ, texts_BZ, scale, bias, weights_B):
  """Losses (B,) of the images and the texts of this number; Rivals."""
  del bias  # it is the same in all logits
  image_B, text_B, own_B, rivals = _log_sums(
    images_BZ, texts_BZ, scale, weights_B
  )
  return (image_B + text_B) / 2 - own_B, rivals


def sigmoid(images_BZ, texts_BZ, scale, bias, weights_B):
  """Losses (B,) of each image with all texts; Rivals."""
  loss_B, rivals = _log_sigmoids(images_BZ, texts_BZ, scale, bias, weights_B)
  return loss_B, rivals


LOSSES = {"softmax": softmax, "sigmoid": sigmoid}


def _products(images_BZ: jax.Array, texts_CZ: jax.Array) -> jax.Array:
  """Of each image with each text of a piece, (B, C) float32."""
  return jnp.einsum(
    "BZ,CZ->BC", images_BZ, texts_CZ, precision="highest",
    preferred_element_type=jnp.float32,
  )  # fmt: skip


def _diagonal(size: int, home: bool) -> jax.Array:
  """Which pairs of a piece are right; none away from home."""
  return jnp.eye(size, dtype=bool) & home


def _rivals(z_BC, own_B, own_C, real_B, real_C, right_BC):
  """Others as near as the right one, for each image and for each text.

  One that is no number is a rival: else it would be said to be right.
  """
  pair_BC = real_B[:, None] & real_C[None] & ~right_BC
  of_image_B = jnp.sum(~(z_BC < own_B[:, None]) & pair_BC, axis=1)
  of_text_C = jnp.sum(~(z_BC < own_C[None]) & pair_BC, axis=0)
  return of_image_B, of_text_C


class Sums(NamedTuple):
  """Of one side: log of the sum of exp(logits) as (most, sum), and rivals."""

  most_B: jax.Array
  sum_B: jax.Array
  rivals_B: jax.Array

  @classmethod
  def none(cls, size: int) -> "Sums":
    return cls(
      jnp.full(size, NEVER), jnp.zeros(size), jnp.zeros(size, jnp.int32)
    )

  def add(self, z_BC, seen_BC, rivals_B, axis: int) -> "Sums":
    """With the logits of a piece, of which `seen` count, along an axis."""
    z_BC = jnp.where(seen_BC, z_BC, NEVER)
    most_B = jnp.maximum(self.most_B, jnp.max(z_BC, axis))
    parts_BC = jnp.exp(z_BC - jnp.expand_dims(most_B, axis))
    sum_B = self.sum_B * jnp.exp(self.most_B - most_B)
    sum_B = sum_B + jnp.sum(jnp.where(seen_BC, parts_BC, 0), axis)
    return Sums(most_B, sum_B, self.rivals_B + rivals_B)

  def log(self) -> jax.Array:
    return self.most_B + jnp.log(self.sum_B)


def _own(images_BZ, texts_BZ, scale) -> jax.Array:
  """The logits of the right pairs, (B,)."""
  return scale * jnp.sum(images_BZ * texts_BZ, axis=-1)


@jax.custom_vjp
def _log_sums(images_BZ, texts_BZ, scale, weights_B):
  """(log sum exp of each image's logits, of each text's, right ones), Rivals.

  Of the logits of the texts and images that have a weight.
  """
  return _log_sums_forward(images_BZ, texts_BZ, scale, weights_B)[0]


def _log_sums_forward(images_BZ, texts_BZ, scale, weights_B):
  real_B = weights_B > 0
  own_B = _own(images_BZ, texts_BZ, scale)

  def meet(stay, travel, home, scale):
    images, own, real, sums = stay
    texts, own_texts, real_texts, sums_texts = travel
    z = scale * _products(images, texts)
    right = _diagonal(len(z), home)
    # Of a right pair the one logit there is, or rounding would make rivals.
    z = jnp.where(right, own[:, None], z)
    near, near_texts = _rivals(z, own, own_texts, real, real_texts, right)
    sums = sums.add(z, real_texts[None] | right, near, 1)
    sums_texts = sums_texts.add(z, real[:, None] | right, near_texts, 0)
    return (
      (images, own, real, sums),
      (texts, own_texts, real_texts, sums_texts),
    )

  none = Sums.none(len(own_B))
  stay, travel = sharding.around(
    meet,
    (images_BZ, own_B, real_B, none),
    (texts_BZ, own_B, real_B, none),
    scale,
  )
  sums, sums_texts = stay[-1], travel[-1]
  logs = sums.log(), sums_texts.log()
  found = (*logs, own_B, Rivals(sums.rivals_B, sums_texts.rivals_B))
  return found, (images_BZ, texts_BZ, scale, weights_B, own_B, *logs)


def _log_sums_backward(kept, slopes):
  images_BZ, texts_BZ, scale, weights_B, own_B, log_B, log_texts_B = kept
  slope_B, slope_texts_B, slope_own_B, _ = slopes
  real_B = weights_B > 0

  def meet(stay, travel, home, scale):
    images, own, real, log, slope, slope_own, d_images, d_scale = stay
    texts, real_texts, log_texts, slope_texts, d_texts = travel
    product = _products(images, texts)
    right = _diagonal(len(product), home)
    z = jnp.where(right, own[:, None], scale * product)
    of_image = slope[:, None] * jnp.exp(z - log[:, None])
    of_text = slope_texts[None] * jnp.exp(z - log_texts[None])
    dz = jnp.where(real_texts[None] | right, of_image, 0)
    dz = dz + jnp.where(real[:, None] | right, of_text, 0)
    dz = dz + jnp.where(right, slope_own[:, None], 0)
    d_images, d_texts, d_scale = _added(
      dz, product, images, texts, scale, d_images, d_texts, d_scale
    )
    return (
      (images, own, real, log, slope, slope_own, d_images, d_scale),
      (texts, real_texts, log_texts, slope_texts, d_texts),
    )

  stay, travel = sharding.around(
    meet,
    (
      images_BZ, own_B, real_B, log_B, slope_B, slope_own_B,
      jnp.zeros_like(images_BZ), jnp.zeros_like(own_B),
    ),
    (
      texts_BZ, real_B, log_texts_B, slope_texts_B, jnp.zeros_like(texts_BZ),
    ),
    scale,
  )  # fmt: skip
  return stay[-2], travel[-1], jnp.sum(stay[-1]), jnp.zeros_like(weights_B)


_log_sums.defvjp(_log_sums_forward, _log_sums_backward)


def _added(dz, product, images, texts, scale, d_images, d_texts, d_scale):
  """The gradients with what the logits' slopes of a piece add."""
  highest = functools.partial(jnp.einsum, precision="highest")
  return (
    d_images + scale * highest("BC,CZ->BZ", dz, texts),
    d_texts + scale * highest("BC,BZ->CZ", dz, images),
    d_scale + jnp.sum(dz * product, axis=1),
  )


@jax.custom_vjp
def _log_sigmoids(images_BZ, texts_BZ, scale, bias, weights_B):
  """(-sum of log sigmoid(+-logit) over the texts of each image, Rivals)."""
  return _log_sigmoids_forward(images_BZ, texts_BZ, scale, bias, weights_B)[0]


def _log_sigmoids_forward(images_BZ, texts_BZ, scale, bias, weights_B):
  real_B = weights_B > 0
  own_B = _own(images_BZ, texts_BZ, scale) + bias

  def meet(stay, travel, home, scale, bias):
    images, own, real, loss, rivals = stay
    texts, own_texts, real_texts, rivals_texts = travel
    z = scale * _products(images, texts) + bias
    right = _diagonal(len(z), home)
    z = jnp.where(right, own[:, None], z)
    near, near_texts = _rivals(z, own, own_texts, real, real_texts, right)
    wrong = jax.nn.softplus(jnp.where(right, -z, z))
    loss = loss + jnp.sum(jnp.where(real_texts[None], wrong, 0), axis=1)
    return (
      (images, own, real, loss, rivals + near),
      (texts, own_texts, real_texts, rivals_texts + near_texts),
    )

  none = jnp.zeros_like(own_B), jnp.zeros(len(own_B), jnp.int32)
  stay, travel = sharding.around(
    meet, (images_BZ, own_B, real_B, *none),
    (texts_BZ, own_B, real_B, none[1]), scale, bias,
  )  # fmt: skip
  found = stay[-2], Rivals(stay[-1], travel[-1])
  return found, (images_BZ, texts_BZ, scale, bias, weights_B)


def _log_sigmoids_backward(kept, slopes):
  images_BZ, texts_BZ, scale, bias, weights_B = kept
  slope_B, _ = slopes

  def meet(stay, travel, home, scale, bias):
    images, slope, d_images, d_scale, d_bias = stay
    texts, real_texts, d_texts = travel
    product = _products(images, texts)
    z = scale * product + bias
    right = _diagonal(len(z), home)
    dz = jnp.where(right, -jax.nn.sigmoid(-z), jax.nn.sigmoid(z))
    dz = jnp.where(real_texts[None], dz * slope[:, None], 0)
    d_images, d_texts, d_scale = _added(
      dz, product, images, texts, scale, d_images, d_texts, d_scale
    )
    d_bias = d_bias + jnp.sum(dz, axis=1)
    return (
      (images, slope, d_images, d_scale, d_bias),
      (texts, real_texts, d_texts),
    )

  zeros_B = jnp.zeros_like(slope_B)
  stay, travel = sharding.around(
    meet,
    (images_BZ, slope_B, jnp.zeros_like(images_BZ), zeros_B, zeros_B),
    (texts_BZ, weights_B > 0, jnp.zeros_like(texts_BZ)),
    scale,
    bias,
  )
  _, _, d_images, d_scale, d_bias = stay
  return (
    d_images, travel[-1], jnp.sum(d_scale), jnp.sum(d_bias),
    jnp.zeros_like(weights_B),
  )  # fmt: skip


_log_sigmoids.defvjp(_log_sigmoids_forward, _log_sigmoids_backward)
