"""Adaptive norms: blocks whose scales and shifts are read from a condition.

adaLN-Zero of arXiv:2212.09748 (section 3.2): what a block adds is multiplied by
a gate that begins at zero, so that each block begins as the identity.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax import errors, sharding
from aigc_jax.layers.attention import Cache
from aigc_jax.layers.block import Dropout, Scene
from aigc_jax.layers.einsum import Einsum
from aigc_jax.layers.mlp import activate
from aigc_jax.layers.norm import normalise
from aigc_jax.layers.rounding import rounded


class Modulation(nn.Module):
  """`parts` vectors of a condition, each (B, 1, D); they begin as zeros."""

  dim: int
  parts: int
  dtype: jnp.dtype
  products: str = "plain"

  @nn.compact
  def __call__(self, condition_BD: jax.Array) -> list[jax.Array]:
    project = Einsum(
      "BD,DJC->BJC", (self.dim, self.parts, self.dim), self.dtype, True,
      factor=0.0, products=self.products, name="projection",
    )  # fmt: skip
    found_BJC = project(activate("silu", condition_BD))
    return [found_BJC[:, j : j + 1] for j in range(self.parts)]


def modulated(
  x_BTD: jax.Array, shift_B1D: jax.Array, scale_B1D: jax.Array, eps: float
) -> jax.Array:
  """norm(x) * (1 + scale) + shift, of a layer norm without weights."""
  ones_D = jnp.ones(x_BTD.shape[-1], jnp.float32)
  y = normalise(x_BTD, ones_D, None, eps=eps, centre=True, offset=0.0)
  y = y.astype(jnp.float32) * (1 + scale_B1D.astype(jnp.float32))
  return rounded(y + shift_B1D.astype(jnp.float32), x_BTD.dtype)


class AdaptiveBlock(nn.Module):
  """x + gate * attention(modulated x), then x + gate' * mlp(modulated x).

  The condition is the scene's `condition_BD`. cross: attention of the
  normalised x to the scene's memory, between the two (arXiv:2310.00426). To be
  given to a Stack as a Block is, without a cache.
  """

  modulation: Callable[..., Modulation]
  attention: Callable[..., nn.Module]
  mlp: Callable[..., nn.Module]
  norm_eps: float
  dropout: float = 0.0
  cross: Callable[..., nn.Module] | None = None

  @nn.compact
  def __call__(
    self, x_BTD: jax.Array, scene: Scene, cache: Cache | None = None
  ) -> tuple[jax.Array, Cache | None]:
    if scene.condition_BD is None:
      raise errors.BadConfig("an adaptive block reads a condition: give one")
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(
      parts=6, name="modulation"
    )(scene.condition_BD)
    before = modulated(x_BTD, shift_a, scale_a, self.norm_eps)
    h, cache = self.attention(name="attention")(
      before, scene.visible, scene.turn, cache
    )
    x_BTD = self._add(x_BTD, h, gate_a, "attention")
    if self.cross is not None:
      still = jnp.zeros_like(shift_m)
      h, _ = self.cross(name="cross_attention")(
        modulated(x_BTD, still, still, self.norm_eps), scene.memory_visible,
        None, memory_BSD=scene.memory_BSD,
      )  # fmt: skip
      x_BTD = self._add(x_BTD, h, jnp.ones_like(gate_a), "cross_attention")
    before = modulated(x_BTD, shift_m, scale_m, self.norm_eps)
    h = self.mlp(name="mlp")(before)
    x_BTD = self._add(x_BTD, h, gate_m, "mlp")
    return sharding.constrain(x_BTD, "BTD"), cache

  def _add(self, x_BTD, h_BTD, gate_B1D, part: str) -> jax.Array:
    h_BTD = Dropout(self.dropout, name=f"dropout_post_{part}")(h_BTD)
    gate, h = (a.astype(jnp.float32) for a in (gate_B1D, h_BTD))
    return x_BTD + rounded(gate * h, x_BTD.dtype)
