"""Mean(sum, weight): sums are merged, means never are."""

import jax
import jax.numpy as jnp
from flax import struct
from jax.custom_derivatives import SymbolicZero


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


@jax.custom_vjp
def measured(x: jax.Array) -> jax.Array:
  """x, a float of any shape, which is for the record and no part of a loss.

  For what has no gradient although it depends on parameters: where one is asked
  for, tracing raises TypeError. jax.lax.stop_gradient would train on without a
  word, by the other terms alone.
  """
  return x


def _measured_forward(x):
  return x.value, None


def _measured_backward(_, cotangent):
  if not isinstance(cotangent, SymbolicZero):
    raise TypeError(
      "a gradient is asked of a measurement that has none (a Mean beside "
      "the loss): make the loss of what the objective calls its loss"
    )
  return (jnp.zeros(cotangent.shape, cotangent.dtype),)


measured.defvjp(_measured_forward, _measured_backward, symbolic_zeros=True)
