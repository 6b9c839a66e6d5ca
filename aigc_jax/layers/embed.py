"""Embed: a table read by index, and the gradient of that reading."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax import sharding
from aigc_jax.layers.einsum import scaled_init


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def lookup(table_VD: jax.Array, ids_BT: jax.Array, dtype) -> jax.Array:
  """Rows of the table in `dtype`, (B, T, D); its gradient adds in float32."""
  return jnp.take(table_VD, ids_BT, axis=0, mode="clip").astype(dtype)


def _lookup_forward(table_VD, ids_BT, dtype):
  return lookup(table_VD, ids_BT, dtype), (table_VD, ids_BT)


def _lookup_backward(dtype, kept, dy_BTD):
  # Scatter-add in bfloat16 both loses bits and is a slow atomic loop on GPUs.
  table_VD, ids_BT = kept
  zeros_VD = jnp.zeros(table_VD.shape, jnp.float32)
  d_VD = zeros_VD.at[ids_BT].add(dy_BTD.astype(jnp.float32), mode="drop")
  return d_VD.astype(table_VD.dtype), None


lookup.defvjp(_lookup_forward, _lookup_backward)


class Embed(nn.Module):
  """One vector for each of `vocab` ids; `scale` multiplies what is read."""

  vocab: int
  dim: int
  dtype: jnp.dtype
  std: float = 0.0
  scale: float = 1.0

  @nn.compact
  def __call__(self, ids_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The vectors (B, T, D) and the table (V, D), for a tied readout."""
    init = sharding.named(scaled_init(self.dim, self.std), "VD")
    table_VD = self.param("table", init, (self.vocab, self.dim))
    x_BTD = lookup(table_VD, ids_BT, self.dtype)
    if self.scale != 1.0:
      # Rounded to the compute dtype first, as published Gemma weights expect.
      x_BTD = x_BTD * jnp.asarray(self.scale, self.dtype)
    return sharding.constrain(x_BTD, "BTD"), table_VD
