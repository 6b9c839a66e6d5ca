"""The evidence lower bound, exact for pixels that are whole numbers."""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from aigc_jax import errors
from aigc_jax.metrics import Mean

Batch = Mapping[str, jax.Array]
NARROWEST = -7.0  # log of the least scale, where pixels go from -1 to 1


def elbo(
  predict: Callable,
  batch: Batch,
  *,
  likelihood: str = "logistic",
  beta: float = 1.0,
  levels: int = 256,
  low: float = -1.0,
  high: float = 1.0,
  log_scale: float | None = None,
) -> dict[str, Mean]:
  """What a code and the pixels given it cost (arXiv:1312.6114), in nats.

  likelihood: logistic (arXiv:1701.05517), gaussian or laplace. Each is of the
  whole number that a pixel is: one of `levels` values from `low` to `high`,
  each with the mass of its interval, the outermost with all beyond it. So
  "bits_per_dim" bounds the length of a lossless code, whatever `beta`, the
  weight of the divergence in the loss (beta-VAE). A pixel may stand there as
  the byte that is next to its level. log_scale: of all pixels, where the model
  tells none of its own.

  Returns per image "distortion" (nats of the pixels) and "kl"; per pixel and
  channel "bits_per_dim" and "loss" (nats, with beta); "off_grid", the share of
  values that are none of the levels, of which no bound would be true. Raises
  BadConfig for options out of range.
  """
  tails = errors.choose(likelihood, LIKELIHOODS, "objective.likelihood")
  if not beta >= 0 or levels < 2 or not low < high:
    raise errors.BadConfig(
      f"objective.beta={beta}, levels={levels}, low={low}, high={high}: "
      "expected beta from 0, at least 2 levels, and low below high"
    )
  told, width = predict(batch), (high - low) / (levels - 1)
  level, off = _levels(batch["images"], levels, low, high)
  x = low + width * level
  log_scale = jnp.maximum(_scale_of(told, log_scale), NARROWEST)
  logp = log_mass(
    tails, x, told.pixels_BYXC, log_scale, width=width, low=low, high=high
  )
  distortion_B = -jnp.sum(logp.reshape(len(x), -1), axis=-1)
  kl_B = 0.5 * jnp.sum(
    told.mean_BZ**2 + jnp.exp(told.log_var_BZ) - 1 - told.log_var_BZ, axis=-1
  )
  dims = math.prod(x.shape[1:])
  found = {
    "loss": (distortion_B + beta * kl_B) / dims,
    "bits_per_dim": (distortion_B + kl_B) / (dims * math.log(2)),
    "distortion": distortion_B,
    "kl": kl_B,
    "off_grid": jnp.mean(off.reshape(len(x), -1), axis=-1),
  }
  return {k: Mean.of(v, batch["weights"]) for k, v in found.items()}


def _scale_of(told, log_scale: float | None) -> jax.Array | float:
  """Of each pixel, or of all. Raises BadConfig unless it is one of the two."""
  if (told.log_scale_BYXC is None) == (log_scale is None):
    way = "--config.objective.log_scale=None"
    if log_scale is None:
      way = "name one for all, --config.objective.log_scale=0.0"
    raise errors.BadConfig(
      f"objective.log_scale={log_scale}, and the model "
      f"(model.scales={log_scale is not None}) tells "
      f"{'none' if log_scale is None else 'that of each pixel'}: {way}"
    )
  return told.log_scale_BYXC if log_scale is None else log_scale


def _levels(x: jax.Array, levels: int, low: float, high: float):
  """(the nearest level of each value, from 0; whether the value is none).

  A level may also stand there as the byte next to it, as 17 greys do in files:
  each such byte is that of one level, so a code of the levels loses nothing.
  """
  place = (x.astype(jnp.float32) - low) / (high - low) * (levels - 1)
  level = jnp.clip(jnp.round(place), 0, levels - 1)
  step = 255 / (levels - 1)  # from level to level, in bytes
  byte = jnp.round(level * step) / step if step > 1 else level
  apart = jnp.minimum(jnp.abs(place - level), jnp.abs(place - byte))
  return level, apart > 0.01


def _logistic(a: jax.Array, b: jax.Array):
  """log of the mass below b, above a, and between a < b."""
  # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b))
  below, above = jax.nn.log_sigmoid(b), jax.nn.log_sigmoid(-a)
  return below, above, below + above + jnp.log(-jnp.expm1(a - b))


def _symmetric(log_cdf: Callable) -> Callable:
  """The same of a distribution around 0, by the log of its mass below x."""

  def tails(a: jax.Array, b: jax.Array):
    # On the side of the mean where the two tails are small.
    flip = a + b > 0
    lower, upper = jnp.where(flip, -b, a), jnp.where(flip, -a, b)
    small, large = log_cdf(lower), log_cdf(upper)
    between = large + jnp.log(-jnp.expm1(small - large))
    return log_cdf(b), log_cdf(-a), between

  return tails


def _laplace(x: jax.Array) -> jax.Array:
  """log of the mass below x, without a nan in its gradient at either end."""
  above = jnp.log1p(-0.5 * jnp.exp(-jnp.maximum(x, 0.0)))
  return jnp.where(x < 0, x - math.log(2), above)


LIKELIHOODS = {
  "logistic": _logistic,
  "gaussian": _symmetric(norm.logcdf),
  "laplace": _symmetric(_laplace),
}


def log_mass(
  tails: Callable, x, mean, log_scale, *, width: float, low: float, high: float
) -> jax.Array:
  """log of the probability of each value x, all levels' adding up to 1."""
  rate = jnp.exp(-log_scale)
  a = (x - width / 2 - mean) * rate
  b = a + width * rate
  below, above, between = tails(a, b)
  inner = jnp.where(x > high - width / 2, above, between)
  return jnp.where(x < low + width / 2, below, inner)
