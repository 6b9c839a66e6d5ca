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
  """The table of an untied readout, and its bias where it has one."""

  vocab: int
  dim: int
  std: float = 0.0
  bias: bool = False

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Features (B, T, D) and a table (V, D) whose products are the logits.

    With a bias both are one wider: it is the weight of a feature that is 1, so
    that whatever makes logits in pieces need not know of it.
    """
    init = drawn("VD", self.dim, self.std)
    table_VD = self.param("table", init, (self.vocab, self.dim))
    if not self.bias:
      return x_BTD, table_VD
    zeros = sharding.named(nn.initializers.zeros, "V")
    bias_V = self.param("bias", zeros, (self.vocab,))
    return with_bias(x_BTD, table_VD, bias_V)


def with_bias(x_BTD, table_VD, bias_V) -> tuple[jax.Array, jax.Array]:
  """Features and a table, both one wider, whose products have the bias."""
  one = jnp.ones((*x_BTD.shape[:-1], 1), x_BTD.dtype)
  table_VD = jnp.concatenate(
    [table_VD, bias_V[:, None].astype(table_VD.dtype)], axis=-1
  )
  return jnp.concatenate([x_BTD, one], axis=-1), table_VD


class TiedHead(nn.Module):
  """The bias of a readout whose table is an embedding's."""

  vocab: int

  @nn.compact
  def __call__(self, x_BTD, table_VD) -> tuple[jax.Array, jax.Array]:
    zeros = sharding.named(nn.initializers.zeros, "V")
    return with_bias(x_BTD, table_VD, self.param("bias", zeros, (self.vocab,)))
