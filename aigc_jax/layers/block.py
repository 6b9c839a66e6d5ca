"""Block: attention and an MLP, each added to what came in."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax import sharding
from aigc_jax.layers.attention import Cache
from aigc_jax.layers.norm import NormFactory
from aigc_jax.layers.position import Rotation
from aigc_jax.layers.rounding import rounded
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

  With post_norm what each part adds is normalised too (Gemma 2), without
  pre_norm nothing else is (OLMo 2, arXiv:2501.00656). parallel: both parts read
  what came in, x + attention(norm x) + mlp(norm' x) (GPT-NeoX,
  arXiv:2204.06745); with shared_norm the two norms are one.
  multiplier: of what each part adds; 0 means 1.
  """

  norm: NormFactory
  attention: Callable[..., nn.Module]
  mlp: Callable[..., nn.Module]
  post_norm: bool = False
  dropout: float = 0.0
  pre_norm: bool = True
  parallel: bool = False
  shared_norm: bool = False
  multiplier: float = 0.0

  @nn.compact
  def __call__(
    self, x_BTD: jax.Array, scene: Scene, cache: Cache | None = None
  ) -> tuple[jax.Array, Cache | None]:
    before = self._prepare(x_BTD, "norm_attention")
    h, cache = self.attention(name="attention")(
      before, scene.visible, scene.turn, cache
    )
    attended = x_BTD + self._finish(h, "post_attention")
    if not self.shared_norm:
      read = x_BTD if self.parallel else attended
      before = self._prepare(read, "norm_mlp")
    h = self.mlp(name="mlp")(before)
    x_BTD = attended + self._finish(h, "post_mlp")
    return sharding.constrain(x_BTD, "BTD"), cache

  def _prepare(self, x_BTD: jax.Array, name: str) -> jax.Array:
    return self.norm(name=name)(x_BTD) if self.pre_norm else x_BTD

  def _finish(self, h: jax.Array, name: str) -> jax.Array:
    h = self.norm(name=name)(h) if self.post_norm else h
    if self.multiplier:
      h = rounded(h.astype(jnp.float32) * self.multiplier, h.dtype)
    return Dropout(self.dropout, name=f"dropout_{name}")(h)
