"""Mean(sum, weight): sums are merged, means never are."""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Mean:
  """A weighted mean before its division.

  A pytree of two numbers, so adding two trees of means is their merge.
  """

  sum: jax.Array
  weight: jax.Array

  @classmethod
  def of(cls, values: jax.Array, weights: jax.Array) -> "Mean":
    """The mean of `values` under `weights`, of the same shape, in float32."""
    weights = weights.astype(jnp.float32)
    values = values.astype(jnp.float32)
    # A weight of zero must silence even a non-finite value.
    counted = jnp.where(weights == 0, 0.0, values * weights)
    return cls(jnp.sum(counted), jnp.sum(weights))

  def value(self) -> jax.Array:
    """sum / weight; zero when nothing was counted."""
    return self.sum / jnp.where(self.weight == 0, 1.0, self.weight)
