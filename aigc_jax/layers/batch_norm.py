"""Batch norm (arXiv:1502.03167), its moments those of the whole batch.

They are means over all rows of the global batch, whatever devices these lie on:
there is no norm of a device's own rows that would have to be synchronised.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import lax

from aigc_jax import sharding
from aigc_jax.layers.report import STATS, report, reporting
from aigc_jax.layers.rounding import rounded
from aigc_jax.metrics import Mean


@struct.dataclass
class Moments:
  """What each channel was in a batch: its mean, and the square, about a place.

  The place is the running mean: then two near numbers are not subtracted that
  are large, and the moments of parts of a batch can be added.
  """

  shift: Mean  # of (D,)
  square: Mean
  momentum: float = struct.field(pytree_node=False)

  averages = True  # an average of the parameters gives other moments

  def move(self, old: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The running mean and variance, a share `momentum` of the way here.

    The variance is that of a sample, n / (n - 1) times the batch's own.
    """
    shift, n = self.shift.value(), self.shift.weight
    var = jnp.maximum(self.square.value() - shift**2, 0.0)
    var = var * n / jnp.maximum(n - 1, 1)
    return {
      "mean": old["mean"] + self.momentum * shift,
      "var": old["var"] + self.momentum * (var - old["var"]),
    }


class BatchNorm(nn.Module):
  """scale * normalised x + bias, each channel over all places of all rows.

  In training by the batch's own moments, which it reports; where nobody asks
  for reports, in evaluation, by the running ones.
  zero_init: whether the scale begins at zero and not at one.
  """

  eps: float
  momentum: float
  zero_init: bool = False

  @nn.compact
  def __call__(self, x_BYXD: jax.Array) -> jax.Array:
    shape = (x_BYXD.shape[-1],)
    start = nn.initializers.zeros if self.zero_init else nn.initializers.ones
    zeros = nn.initializers.zeros
    scale_D = self.param("scale", sharding.named(start, "D"), shape)
    bias_D = self.param("bias", sharding.named(zeros, "D"), shape)
    mean_D = self.variable(STATS, "mean", sharding.named(jnp.zeros, "D"), shape)
    var_D = self.variable(STATS, "var", sharding.named(jnp.ones, "D"), shape)
    if not reporting(self):
      at = mean_D.value, var_D.value
      return _normalised(x_BYXD, *at, scale_D, bias_D, self.eps)
    # Kept for the backward pass is x alone, and not three float32 copies.
    run = jax.checkpoint(_by_its_own, prevent_cse=False, static_argnums=(3,))
    y_BYXD, mean, var = run(x_BYXD, scale_D, bias_D, self.eps)
    self._report(lax.stop_gradient((mean, var)), x_BYXD.size, mean_D.value)
    return y_BYXD

  def _report(self, moments, size: int, about_D: jax.Array) -> None:
    mean, var = moments
    n = jnp.asarray(size // mean.size, jnp.float32)
    shift = mean - about_D
    value = Moments(
      Mean(shift * n, n), Mean((var + shift**2) * n, n), self.momentum
    )
    report(self, "moments", value)


def _by_its_own(x_BYXD, scale_D, bias_D, eps: float):
  """(normalised, mean, variance) over all axes but the last."""
  x = x_BYXD.astype(jnp.float32)
  axes = tuple(range(x.ndim - 1))
  mean_D = jnp.mean(x, axes)
  var_D = jnp.mean((x - mean_D) ** 2, axes)
  y_BYXD = _normalised(x_BYXD, mean_D, var_D, scale_D, bias_D, eps)
  return y_BYXD, mean_D, var_D


def _normalised(x_BYXD, mean_D, var_D, scale_D, bias_D, eps: float):
  rate_D = lax.rsqrt(var_D + eps) * scale_D.astype(jnp.float32)
  x = x_BYXD.astype(jnp.float32)
  return rounded((x - mean_D) * rate_D + bias_D, x_BYXD.dtype)
