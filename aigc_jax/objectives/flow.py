"""Squared error of what a noisy image holds: flow matching, diffusion."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from aigc_jax import errors
from aigc_jax.layers.noise import normal, uniform
from aigc_jax.metrics import Mean
from aigc_jax.objectives.labels import check_dropout, without_labels
from aigc_jax.objectives.paths import Path

Batch = Mapping[str, jax.Array]
QUARTERS = 4  # of the times, whose losses are told apart
LATENTS = "latents"  # the role that makes what noise is added to
TEXT = "text"  # the role that reads captions
STEPS = 1000  # into which the bound on the variance cuts the path


def flow(
  predict: Callable,
  batch: Batch,
  *,
  prediction: str = "velocity",
  label_dropout: float = 0.1,
  variance: float = 0.0,
) -> dict[str, Mean]:
  """The mean squared error, over pixels, of a prediction at a random time.

  Of a model with a role "latents" the pixels are those of what it makes of the
  images, and the role "denoiser" predicts (arXiv:2112.10752); one with a role
  "text" reads the captions, and "denoiser" is told what it makes of them.

  prediction: velocity, epsilon or v, see objectives/paths.py. Time and noise of
  a row come from its key in "draw" (B, 2). label_dropout: the share of rows
  that in training have no label, or no caption, for guidance without a
  classifier (arXiv:2207.12598). variance: weight of the bound by which a model
  with `sigma` learns the variance of a step, the path cut into STEPS of them,
  in nats per pixel over the whole path (arXiv:2102.09672, which takes 0.001).

  Returns "loss"; "loss_quarter1" to "4", the squared error by quarter of the
  time, the image's end first; with `variance` also "mse" and "bound". Raises
  BadConfig for options out of range, and for a model that predicts a variance
  that is not asked for, or none where it is.
  """
  path = Path(prediction)
  check_dropout(label_dropout)
  if variance < 0 or (variance and path.straight):
    raise errors.BadConfig(
      f"objective.variance={variance}: expected 0, or above it with "
      "objective.prediction='epsilon' or 'v'"
    )
  if "draw" not in batch:
    raise errors.BadConfig(
      "objective.kind='flow' takes a key for each row from the data: "
      "--config.data.draw=True"
    )
  draw_B2, x = batch["draw"], batch["images"].astype(jnp.float32)
  roles = getattr(predict, "roles", ())
  if LATENTS in roles:
    x = predict(batch, LATENTS).astype(jnp.float32)
  weights_B = batch["weights"]
  t_B = uniform(draw_B2, "time")
  if variance:  # a step begins within the path
    t_B = jnp.maximum(t_B, 1.0 / STEPS)
  e = normal(draw_B2, "noise", x.shape[1:])
  noisy = dict(batch, images=path.between(x, e, t_B), time=t_B)
  if getattr(predict, "trains", False):
    noisy = without_labels(noisy, label_dropout)
  if TEXT in roles:
    noisy["text"] = predict(noisy, TEXT)
  found = predict(noisy, "denoiser") if roles else predict(noisy)
  found, spread = _parted(found, x, variance)
  mse_B = _mean((found - path.target(x, e, t_B)) ** 2)
  loss_B, means = mse_B, {}
  if variance:
    bound_B = _bound(path, x, e, found, spread, t_B)
    loss_B = mse_B + variance * bound_B
    means = {"mse": mse_B, "bound": bound_B}
  means = {"loss": loss_B} | means
  told = {name: Mean.of(x_B, weights_B) for name, x_B in means.items()}
  quarter_B = jnp.floor(t_B * QUARTERS)
  for q in range(QUARTERS):
    inside_B = weights_B * (quarter_B == q)
    told[f"loss_quarter{q + 1}"] = Mean.of(mse_B, inside_B)
  return told


# What it puts into a batch for the model.
flow.makes = ("time",)


def _mean(x: jax.Array) -> jax.Array:
  """Over all axes but the first."""
  return jnp.mean(x.reshape(len(x), -1), axis=-1)


def _parted(found: jax.Array, x: jax.Array, variance: float):
  """(prediction, what is said of the variance or None)."""
  C, out = x.shape[-1], found.shape[-1]
  if out != (2 * C if variance else C):
    raise errors.BadConfig(
      f"the model predicts {out} numbers for {C} channels and "
      f"objective.variance={variance}: model.sigma=True goes with a variance "
      "above 0, model.sigma=False with 0"
    )
  return found[..., :C], found[..., C:] if variance else None


def _bound(path: Path, x, e, found, spread, t_B) -> jax.Array:
  """STEPS times KL(q(z_s | z_t, x) || p(z_s | z_t)), nats per pixel, (B,).

  p has the variance that the model says, between the two extremes; its mean is
  of a prediction that this does not move.
  """
  point = path.between(x, e, t_B)
  guess, _ = path.ends(jax.lax.stop_gradient(found), point, t_B)
  t = t_B.reshape(-1, *(1,) * (x.ndim - 1))
  s = jnp.maximum(t - 1.0 / STEPS, 0.0)
  (alpha_s, sigma_s), (_, sigma_t) = path.parts(s), path.parts(t)
  # Of sigma_t**2 what the step adds, without a difference of like numbers.
  added = -jnp.expm1(path.log_ratio(t) - path.log_ratio(s))
  # The least log variance is that of q; the most is all that the step adds.
  least = jnp.log(added) + 2 * jnp.log(sigma_s)
  above = (spread + 1) * (jnp.log(sigma_t) - jnp.log(sigma_s))
  apart = alpha_s * added * (x - guess)
  kl = above + jnp.expm1(-above) + apart**2 * jnp.exp(-least - above)
  return STEPS * _mean(kl / 2)
