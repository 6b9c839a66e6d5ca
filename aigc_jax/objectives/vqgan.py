"""Reconstruction from codes, and a second player who tells it from real."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from aigc_jax import errors
from aigc_jax.metrics import Mean
from aigc_jax.objectives.adversarial import LOSSES
from aigc_jax.objectives.vq import DISTANCES

Batch = Mapping[str, jax.Array]
LARGEST = 1e4  # of an adaptive weight
LEAST = 1e-4  # added to what it is divided by


def vqgan(
  predict: Callable,
  batch: Batch,
  *,
  beta: float = 0.25,
  distance: str = "absolute",
  loss: str = "hinge",
  weight: float = 0.8,
  adaptive: bool = True,
  start_step: int = 0,
) -> dict[str, Mean]:
  """What both players of a VQ-GAN lose (arXiv:2012.09841), a sum of parts.

  The first loses what `vq` says of beta and distance, and from `start_step`
  updates on `weight` times what `adversarial` says of a drawn image, by its
  `loss`. adaptive: that is weighed besides by the slope of the reconstruction
  over that of the judgement, both in the image's own pixels, up to 10,000; the
  paper takes the slopes in the last layer's weights, of all images at once. In
  pixels each image has a weight of its own, so that parts of a batch add up.
  The second player learns from the first update on.

  Returns per image "loss"; "mse", "commitment", "codebook" as `vq`;
  "discriminator", "generator", "real" and "fake" as `adversarial`; "balance",
  the adaptive weight. Raises BadConfig for options out of range.
  """
  of_real, of_fake, of_fooled = errors.choose(loss, LOSSES, "objective.loss")
  apart = errors.choose(distance, DISTANCES, "objective.distance")
  for name, value in dict(
    beta=beta, weight=weight, start_step=start_step
  ).items():
    if not value >= 0:
      raise errors.BadConfig(f"objective.{name}={value}: expected 0 or more")
  real = batch["images"].astype(jnp.float32)

  def judge(images, **how):
    found = predict(dict(batch, images=images), "discriminator", **how)
    return found.scores_BS.astype(jnp.float32)

  def lost(images):
    return _mean(apart(images - real))

  def fooled(images):
    return _mean(of_fooled(judge(images, still=True, heard=False)))

  drawn = predict(batch, "generator")
  coded = drawn.coded
  fake, still = coded.pixels_BYXC, jax.lax.stop_gradient(coded.pixels_BYXC)
  real_BS, fake_BS = judge(real), judge(still)
  discriminator_B = _mean(of_real(real_BS)) + _mean(of_fake(fake_BS))
  generator_B = fooled(fake)
  balance_B = jnp.ones(len(real))
  if adaptive and weight:
    slopes = _slope(lost, still) / (_slope(fooled, still) + LEAST)
    balance_B = jax.lax.stop_gradient(jnp.clip(slopes, 0.0, LARGEST))
  heard = (drawn.steps >= start_step).astype(jnp.float32)
  found = {
    "loss": lost(fake) + coded.codebook_B + beta * coded.commitment_B
    + heard * weight * balance_B * generator_B + discriminator_B,
    "mse": _mean(jnp.square(fake - real)),
    "commitment": coded.commitment_B,
    "codebook": coded.codebook_B,
    "discriminator": discriminator_B,
    "generator": generator_B,
    "real": _mean(real_BS > 0),
    "fake": _mean(fake_BS < 0),
    "balance": balance_B,
  }  # fmt: skip
  return {k: Mean.of(v, batch["weights"]) for k, v in found.items()}


def _mean(x: jax.Array) -> jax.Array:
  """Over all axes but the first."""
  return jnp.mean(x.reshape(len(x), -1).astype(jnp.float32), axis=-1)


def _slope(lost: Callable, images: jax.Array) -> jax.Array:
  """How long the gradient of what each image loses is, (B,)."""
  slopes = jax.grad(lambda x: jnp.sum(lost(x)))(images)
  return jnp.sqrt(jnp.sum(slopes.reshape(len(images), -1) ** 2, axis=-1))
