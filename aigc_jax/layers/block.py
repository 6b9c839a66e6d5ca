"""Block: attention and an MLP, each added to what came in."""

import dataclasses
from collections.abc import Callable

import jax
from flax import linen as nn

from aigc_jax import sharding
from aigc_jax.layers.attention import Cache
from aigc_jax.layers.norm import NormFactory
from aigc_jax.layers.position import Rotation
from aigc_jax.layers.visible import Visible


@dataclasses.dataclass(frozen=True)
class Scene:
  """What all blocks share: who sees whom, and the rotation of positions."""

  visible: Visible
  turn: Rotation | None = None
  local_turn: Rotation | None = (
    None  # of layers with a window, where it differs
  )


class Dropout(nn.Module):
  """Zeroes a share `rate`; acts only when a "dropout" key is given."""

  rate: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    if not self.rate or not self.has_rng("dropout"):
      return x
    keep = jax.random.bernoulli(
      self.make_rng("dropout"), 1 - self.rate, x.shape
    )
    return jax.numpy.where(keep, x / (1 - self.rate), 0).astype(x.dtype)


class Block(nn.Module):
  """x + attention(norm x), then x + mlp(norm x).

  With post_norm what each part adds is normalised too (Gemma 2).
  """

  norm: NormFactory
  attention: Callable[..., nn.Module]
  mlp: Callable[..., nn.Module]
  post_norm: bool = False
  dropout: float = 0.0

  @nn.compact
  def __call__(
    self, x_BTD: jax.Array, scene: Scene, cache: Cache | None = None
  ) -> tuple[jax.Array, Cache | None]:
    h = self.norm(name="norm_attention")(x_BTD)
    h, cache = self.attention(name="attention")(
      h, scene.visible, scene.turn, cache
    )
    x_BTD = x_BTD + self._finish(h, "post_attention")
    h = self.mlp(name="mlp")(self.norm(name="norm_mlp")(x_BTD))
    x_BTD = x_BTD + self._finish(h, "post_mlp")
    return sharding.constrain(x_BTD, "BTD"), cache

  def _finish(self, h: jax.Array, name: str) -> jax.Array:
    h = self.norm(name=name)(h) if self.post_norm else h
    return Dropout(self.dropout, name=f"dropout_{name}")(h)
