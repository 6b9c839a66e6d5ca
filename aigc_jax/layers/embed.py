"""Embed: a vector for each id."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax import sharding
from aigc_jax.layers.einsum import drawn
from aigc_jax.layers.lookup import lookup


class Embed(nn.Module):
  """One vector for each of `vocab` ids; `scale` multiplies what is read."""

  vocab: int
  dim: int
  dtype: jnp.dtype
  std: float = 0.0
  scale: float = 1.0
  gradient: str = "auto"  # as `lookup` takes it

  @nn.compact
  def __call__(self, ids_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The vectors (B, T, D) and the table (V, D), for a tied readout."""
    init = drawn("VD", self.dim, self.std)
    table_VD = self.param("table", init, (self.vocab, self.dim))
    x_BTD = lookup(table_VD, ids_BT, self.dtype, self.gradient)
    if self.scale != 1.0:
      # Rounded to the compute dtype first, as published Gemma weights expect.
      x_BTD = x_BTD * jnp.asarray(self.scale, self.dtype)
    return sharding.constrain(x_BTD, "BTD"), table_VD
