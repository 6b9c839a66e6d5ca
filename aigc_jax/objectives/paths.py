"""Paths from an image to noise, and what of them a model predicts.

At time 0 there is the image x, at time 1 noise e of mean 0 and deviation 1; in
between alpha(t) x + sigma(t) e. A model predicts one of:

  velocity  d/dt of the straight path (1 - t) x + t e, which is e - x
            (rectified flow, arXiv:2209.03003; flow matching, arXiv:2210.02747)
  epsilon   e, on the cosine path (arXiv:2006.11239, arXiv:2102.09672)
  v         alpha e - sigma x, on the cosine path (arXiv:2202.00512)

The cosine path is that of arXiv:2301.11093: alpha and sigma are the cosine and
sine of an angle, and log(alpha^2 / sigma^2) goes from 15 to -15.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from aigc_jax import errors

CLEANEST = 15.0  # log of alpha**2 / sigma**2 at time 0; at time 1 its negative
FIRST = math.atan(math.exp(-CLEANEST / 2))  # the angle at time 0
LAST = math.atan(math.exp(CLEANEST / 2))
PREDICTIONS = ("velocity", "epsilon", "v")


def _wide(t_B: jax.Array, like: jax.Array) -> jax.Array:
  """t with as many axes as images have, for products with them."""
  return t_B.reshape(-1, *(1,) * (like.ndim - 1))


@dataclasses.dataclass(frozen=True)
class Path:
  """The path of a prediction; times are (B,), images (B, ...).

  Raises BadConfig for a prediction that is none.
  """

  prediction: str

  def __post_init__(self):
    errors.choose(
      self.prediction, dict.fromkeys(PREDICTIONS), "objective.prediction"
    )

  @property
  def straight(self) -> bool:
    return self.prediction == "velocity"

  def angle(self, t: jax.Array) -> jax.Array:
    """Of the cosine path, in radians."""
    return FIRST + (LAST - FIRST) * t

  def parts(self, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(alpha, sigma): how much of the image and of the noise there is."""
    if self.straight:
      return 1.0 - t, t
    return jnp.cos(self.angle(t)), jnp.sin(self.angle(t))

  def between(self, x: jax.Array, e: jax.Array, t_B: jax.Array) -> jax.Array:
    """The path's point at a time."""
    alpha, sigma = self.parts(_wide(t_B, x))
    return alpha * x + sigma * e

  def target(self, x: jax.Array, e: jax.Array, t_B: jax.Array) -> jax.Array:
    """What is predicted there."""
    if self.straight:
      return e - x
    if self.prediction == "epsilon":
      return e
    alpha, sigma = self.parts(_wide(t_B, x))
    return alpha * e - sigma * x

  def ends(
    self, found: jax.Array, z: jax.Array, t_B: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """(x, e) of a prediction `found` at the point z."""
    alpha, sigma = self.parts(_wide(t_B, z))
    if self.straight:
      return z - sigma * found, z + alpha * found
    if self.prediction == "epsilon":
      return (z - sigma * found) / alpha, found
    return alpha * z - sigma * found, sigma * z + alpha * found

  def velocity(self, x: jax.Array, e: jax.Array, t_B: jax.Array) -> jax.Array:
    """d/dt of the path with these ends."""
    if self.straight:
      return e - x
    alpha, sigma = self.parts(_wide(t_B, x))
    return (LAST - FIRST) * (alpha * e - sigma * x)

  def log_ratio(self, t: jax.Array) -> jax.Array:
    """log(alpha**2 / sigma**2) of the cosine path."""
    return -2.0 * jnp.log(jnp.tan(self.angle(t)))
