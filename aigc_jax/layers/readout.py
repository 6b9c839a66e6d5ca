"""Readout: features and a table, from which logits can be made in pieces."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from aigc_jax import sharding
from aigc_jax.layers.einsum import drawn
from aigc_jax.layers.products import product


@struct.dataclass
class Readout:
  """Predictions before the last product: logits = cap(features . table).

  Training never makes all the logits; decoding asks for `logits()`.
  """

  features_BTD: jax.Array
  table_VD: jax.Array
  softcap: float = struct.field(pytree_node=False, default=0.0)

  def logits(self) -> jax.Array:
    """(B, T, V) in float32."""
    z_BTV = product("BTD,VD->BTV", self.features_BTD, self.table_VD)
    return sharding.constrain(cap(z_BTV, self.softcap), "BTV")


def cap(z: jax.Array, softcap: float) -> jax.Array:
  """softcap * tanh(z / softcap), or z itself where softcap is 0."""
  return softcap * jnp.tanh(z / softcap) if softcap else z


class Head(nn.Module):
  """The table of an untied readout."""

  vocab: int
  dim: int
  std: float = 0.0

  @nn.compact
  def __call__(self) -> jax.Array:
    init = drawn("VD", self.dim, self.std)
    return self.param("table", init, (self.vocab, self.dim))
