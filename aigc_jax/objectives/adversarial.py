"""The game of a generator and a discriminator, both players in one sum.

Where a player's part of the loss must not move the other, the other stands as a
constant: the gradient of the sum is each player's own gradient, and both move
at once. Who shall move in every n-th step only says so in optim.groups.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from aigc_jax import errors
from aigc_jax.metrics import Mean

Batch = Mapping[str, jax.Array]


def adversarial(
  predict: Callable,
  batch: Batch,
  *,
  loss: str = "non_saturating",
  r1: float = 0.0,
) -> dict[str, Mean]:
  """What both players of a GAN lose, a sum of their parts.

  loss: non_saturating (arXiv:1406.2661) or hinge (arXiv:1705.02894). r1: weight
  of half the squared slope of the discriminator at real images
  (arXiv:1801.04406), which needs a discriminator without batch norm: by that a
  score has a slope for the images of other rows too. An image's noise comes
  from its row's key in "draw".

  Returns per image "loss"; "discriminator" and "generator", each player's part;
  with r1 "slope", the squared slope; "real" and "fake", the shares of real and
  of drawn images (or of places in them) that are taken for what they are.
  Raises BadConfig for options out of range.
  """
  of_real, of_fake, of_fooled = errors.choose(loss, LOSSES, "objective.loss")
  if r1 < 0:
    raise errors.BadConfig(f"objective.r1={r1}: expected 0 or more")
  if "draw" not in batch:
    raise errors.BadConfig(
      "objective.kind='adversarial' takes a key for each row from the data: "
      "--config.data.draw=True"
    )
  real = batch["images"].astype(jnp.float32)

  def judge(images, **how):
    return predict(dict(batch, images=images), "discriminator", **how)

  fake = predict(batch, "generator")
  of_real_ones, of_drawn = judge(real), judge(jax.lax.stop_gradient(fake))
  fooled = judge(fake, still=True, heard=False)
  real_BS, fake_BS = of_real_ones.scores_BS, of_drawn.scores_BS
  discriminator_B = _mean(of_real(real_BS)) + _mean(of_fake(fake_BS))
  generator_B = _mean(of_fooled(fooled.scores_BS))
  found = {
    "discriminator": discriminator_B,
    "generator": generator_B,
    "real": _mean(real_BS > 0),
    "fake": _mean(fake_BS < 0),
  }
  loss_B = discriminator_B + generator_B
  if r1:
    if of_real_ones.coupled:
      raise errors.BadConfig(
        f"objective.r1={r1} is of a discriminator that judges each image by "
        "itself: --config.model.discriminator_norm=none, or "
        "--config.objective.r1=0.0"
      )
    slope_B = _slope(lambda x: judge(x, heard=False).scores_BS, real)
    loss_B = loss_B + r1 / 2 * slope_B
    found["slope"] = slope_B
  found = {"loss": loss_B} | found
  return {name: Mean.of(x, batch["weights"]) for name, x in found.items()}


def _mean(x_BS: jax.Array) -> jax.Array:
  """Over the places of an image."""
  return jnp.mean(x_BS.astype(jnp.float32), axis=-1)


def _slope(scores: Callable, images: jax.Array) -> jax.Array:
  """The squared norm of the gradient of each image's score, (B,)."""
  slopes = jax.grad(lambda x: jnp.sum(_mean(scores(x))))(images)
  return jnp.sum(slopes.reshape(len(images), -1) ** 2, axis=-1)


def _softplus_of_minus(scores: jax.Array) -> jax.Array:
  return jax.nn.softplus(-scores)


# What is lost by the score: of a real image, of a drawn one by who judges it,
# and of a drawn one by who drew it.
LOSSES = {
  "non_saturating": (_softplus_of_minus, jax.nn.softplus, _softplus_of_minus),
  "hinge": (
    lambda scores: jax.nn.relu(1 - scores),
    lambda scores: jax.nn.relu(1 + scores),
    lambda scores: -scores,
  ),
}
