"""Readout: features and a table, from which logits can be made in pieces."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from aigc_jax import errors, sharding
from aigc_jax.layers.einsum import drawn
from aigc_jax.layers.products import product


@struct.dataclass
class Readout:
  """Predictions before the last product: logits = cap(features . table + bias).

  Training never makes all the logits; decoding asks for `logits()`.
  """

  features_BTD: jax.Array
  table_VD: jax.Array
  softcap: float = struct.field(pytree_node=False, default=0.0)
  bias_V: jax.Array | None = None

  def logits(self) -> jax.Array:
    """(B, T, V) in float32."""
    z_BTV = product("BTD,VD->BTV", self.features_BTD, self.table_VD)
    if self.bias_V is not None:
      z_BTV = z_BTV + self.bias_V.astype(z_BTV.dtype)
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
  def __call__(self) -> tuple[jax.Array, jax.Array | None]:
    """A table (V, D) and a bias (V,), or None for none."""
    init = drawn("VD", self.dim, self.std)
    table_VD = self.param("table", init, (self.vocab, self.dim))
    return table_VD, bias_of(self, self.vocab) if self.bias else None


class TiedHead(nn.Module):
  """The bias of a readout whose table is an embedding's."""

  vocab: int

  @nn.compact
  def __call__(self) -> jax.Array:
    """(V,)."""
    return bias_of(self, self.vocab)


def bias_of(module: nn.Module, vocab: int) -> jax.Array:
  """The parameter "bias" (V,) of a module that makes a readout."""
  zeros = sharding.named(nn.initializers.zeros, "V")
  return module.param("bias", zeros, (vocab,))


def readout_of(output) -> Readout:
  """The Readout that a model gives, alone or as a part of more.

  Raises BadConfig where the model has no head for tokens.
  """
  readout = output if isinstance(output, Readout) else output.readout
  if readout is None:
    raise errors.BadConfig(
      "this model predicts no tokens, and its objective asks for them: "
      "--config.model.token_head=True"
    )
  return readout


@struct.dataclass
class Aligned:
  """Predictions for steps of time, each one of a token or of nothing yet.

  readout: of all steps (B, T). lengths_B: how many of a row are real. blank:
  the id that stands for nothing.
  """

  readout: Readout
  lengths_B: jax.Array
  blank: int = struct.field(pytree_node=False)
