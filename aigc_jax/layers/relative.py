"""Relative positions as a bias of the scores, by buckets (arXiv:1910.10683)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from aigc_jax import sharding
from aigc_jax.layers.einsum import drawn
from aigc_jax.layers.lookup import lookup


def bucket_of(distances: int, buckets: int, longest: int) -> np.ndarray:
  """The bucket of each distance 0, 1, ..., distances - 1.

  The first half of the buckets holds one distance each, the others grow with
  the logarithm up to `longest`; what lies beyond shares the last one. In
  float32, whose rounding decides on which side an edge falls.
  """
  n = np.arange(distances)
  exact = buckets // 2
  one = np.float32(1)
  far = np.log(np.maximum(n, 1).astype(np.float32) / np.float32(exact))
  far = far / np.float32(math.log(longest / exact)) * (one * (buckets - exact))
  far = np.minimum(exact + far.astype(np.int32), buckets - 1)
  return np.where(n < exact, n, far).astype(np.int32)


class RelativeBias(nn.Module):
  """A learned number for each head and bucket of the distance between two.

  causal: only keys before their query have distances, in all the buckets;
  otherwise half of the buckets are for the keys behind it.
  """

  heads: int
  buckets: int
  longest: int
  causal: bool
  std: float = 0.0

  @nn.compact
  def __call__(self, positions_BT: jax.Array, S: int) -> jax.Array:
    """(B or 1, N, T, S) float32 for queries at positions, keys at 0 ..."""
    init = drawn("RN", self.buckets, self.std)
    table_RN = self.param("table", init, (self.buckets, self.heads))
    ahead_BTS = jnp.arange(S) - positions_BT[..., None]
    buckets = self.buckets if self.causal else self.buckets // 2
    of_distance = bucket_of(self.longest + 1, buckets, self.longest)
    distance_BTS = -ahead_BTS if self.causal else jnp.abs(ahead_BTS)
    ids_BTS = jnp.asarray(of_distance)[jnp.clip(distance_BTS, 0, self.longest)]
    if not self.causal:
      ids_BTS = ids_BTS + buckets * (ahead_BTS > 0)
    B, T = positions_BT.shape
    flat = lookup(table_RN, ids_BTS.reshape(B, -1), jnp.float32)
    bias_BNTS = jnp.moveaxis(flat.reshape(B, T, S, self.heads), 3, 1)
    return sharding.constrain(bias_BNTS, "BNTS")
