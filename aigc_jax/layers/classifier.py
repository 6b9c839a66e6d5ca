"""Classifier: the scores of labels, from one vector of a row."""

import jax
import jax.numpy as jnp
from flax import struct

from aigc_jax import sharding
from aigc_jax.layers.einsum import Einsum
from aigc_jax.layers.products import operand_dtype, product


@struct.dataclass
class Scores:
  """Predictions of one label for each row of a batch.

  features_BD: what they are read from.
  """

  logits_BV: jax.Array  # float32
  features_BD: jax.Array | None = None

  def logits(self) -> jax.Array:
    """(B, V) in float32."""
    return self.logits_BV


class Classifier(Einsum):
  """ "BD,DV->BV" with a bias, as scores that stay float32."""

  def __call__(self, x_BD: jax.Array) -> Scores:
    w_DV, bias_V = self.weights()
    # Eight bits are for the blocks: here operands are those of `plain`.
    operands = operand_dtype(self.dtype, self.products)
    z_BV = product(self.equation, x_BD, w_DV, operands)
    z_BV = z_BV + bias_V.astype(jnp.float32)
    return Scores(sharding.constrain(z_BV, "BV"), x_BD)


def classifier(dim: int, classes: int, *, name: str, **keys) -> Classifier:
  """The scores of `classes` labels; keys as Einsum has them."""
  return Classifier("BD,DV->BV", (dim, classes), bias=True, name=name, **keys)
