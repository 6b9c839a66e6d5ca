"""Reconstruction from codes, with what keeps vectors and codes together."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from aigc_jax import errors
from aigc_jax.metrics import Mean

Batch = Mapping[str, jax.Array]
DISTANCES = {"square": jnp.square, "absolute": jnp.abs}


def vq(
  predict: Callable,
  batch: Batch,
  *,
  beta: float = 0.25,
  distance: str = "square",
) -> dict[str, Mean]:
  """What is lost of images by their codes (arXiv:1711.00937, equation 3).

  loss = reconstruction + "codebook" + beta * "commitment"

  each a mean over an image. "commitment" moves the encoder to its codes, and is
  what `beta` weighs; "codebook" moves the codes to what the encoder says, and
  is 0 of a codebook that no gradient moves. distance: of the reconstruction,
  square or absolute; "mse" is the square in any case, in units of the pixels as
  the data scales them. Raises BadConfig for options out of range.
  """
  errors.choose(distance, DISTANCES, "objective.distance")
  if not beta >= 0:
    raise errors.BadConfig(f"objective.beta={beta}: expected 0 or more")
  x, coded = batch["images"].astype(jnp.float32), predict(batch)
  apart = coded.pixels_BYXC - x
  lost_B = _mean(DISTANCES[distance](apart))
  found = {
    "loss": lost_B + coded.codebook_B + beta * coded.commitment_B,
    "mse": _mean(jnp.square(apart)),
    "commitment": coded.commitment_B,
    "codebook": coded.codebook_B,
  }
  return {k: Mean.of(v, batch["weights"]) for k, v in found.items()}


def _mean(x: jax.Array) -> jax.Array:
  """Over all axes but the first."""
  return jnp.mean(x.reshape(len(x), -1), axis=-1)
