"""Block: attention (to a memory too) and an MLP, each added to what came in."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from aigc_jax import sharding
from aigc_jax.layers.attention import Cache
from aigc_jax.layers.norm import NormFactory
from aigc_jax.layers.position import Rotation
from aigc_jax.layers.rounding import rounded
from aigc_jax.layers.visible import Visible


@dataclasses.dataclass(frozen=True)
class Scene:
  """What all blocks share: who sees whom, where positions are, what is read.

  bias_BNTS: added to the scores of self-attention, (B or 1, N, T, S).
  memory_BSD: what cross attention reads, as far as `memory_visible` says; None
  where its keys and values lie in a cache. condition_BD: what adaptive norms
  read (layers/adaptive.py).
  """

  visible: Visible
  turn: Rotation | None = None
  local_turn: Rotation | None = (
    None  # of layers with a window, where it differs
  )
  bias_BNTS: jax.Array | None = None
  memory_BSD: jax.Array | None = None
  memory_visible: Visible | None = None
  condition_BD: jax.Array | None = None


@struct.dataclass
class Caches:
  """Of a block with cross attention: the positions so far, and the memory.

  segments_BS: 1 where the memory is real, 0 where it is padding.
  """

  own: Cache
  memory: Cache
  segments_BS: jax.Array

  def visible(self, T: int) -> Visible:
    """That any of T positions reads all of the memory that is real."""
    ones_BT = jnp.ones((len(self.segments_BS), T), self.segments_BS.dtype)
    return Visible(
      causal=False, segments_BT=ones_BT, segments_BS=self.segments_BS
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
  pre_norm nothing else is (OLMo 2, arXiv:2501.00656). norm_sum: what is
  normalised is each sum instead, norm(x + attention(x)) (arXiv:1706.03762).
  parallel: both parts read what came in, x + attention(norm x) + mlp(norm' x)
  (GPT-NeoX, arXiv:2204.06745); with shared_norm the two norms are one.
  cross: attention to the scene's memory, between the two.
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
  norm_sum: bool = False
  cross: Callable[..., nn.Module] | None = None

  @nn.compact
  def __call__(
    self, x_BTD: jax.Array, scene: Scene, cache: Cache | Caches | None = None
  ) -> tuple[jax.Array, Cache | Caches | None]:
    own = cache.own if isinstance(cache, Caches) else cache
    before = self._prepare(x_BTD, "attention")
    h, own = self.attention(name="attention")(
      before, scene.visible, scene.turn, own, bias_BNTS=scene.bias_BNTS
    )
    attended = self._add(x_BTD, h, "attention")
    if self.cross is not None:
      attended = self._read(attended, scene, cache)
      cache = cache if cache is None else cache.replace(own=own)
    else:
      cache = own
    if not self.shared_norm:
      read = x_BTD if self.parallel else attended
      before = self._prepare(read, "mlp")
    h = self.mlp(name="mlp")(before)
    x_BTD = self._add(attended, h, "mlp")
    return sharding.constrain(x_BTD, "BTD"), cache

  def _read(self, x_BTD: jax.Array, scene: Scene, caches: Caches | None):
    """x with what cross attention reads from the memory."""
    visible, memory = scene.memory_visible, None
    if caches is not None:
      visible, memory = caches.visible(x_BTD.shape[1]), caches.memory
    h, _ = self.cross(name="cross_attention")(
      self._prepare(x_BTD, "cross_attention"), visible, None, memory,
      memory_BSD=scene.memory_BSD,
    )  # fmt: skip
    return self._add(x_BTD, h, "cross_attention")

  def _prepare(self, x_BTD: jax.Array, part: str) -> jax.Array:
    """What a part reads of the residual stream."""
    if not self.pre_norm or self.norm_sum:
      return x_BTD
    return self.norm(name=f"norm_{part}")(x_BTD)

  def _add(self, x_BTD: jax.Array, h: jax.Array, part: str) -> jax.Array:
    """The residual stream with what a part makes of it."""
    h = self.norm(name=f"post_{part}")(h) if self.post_norm else h
    if self.multiplier:
      h = rounded(h.astype(jnp.float32) * self.multiplier, h.dtype)
    x_BTD = x_BTD + Dropout(self.dropout, name=f"dropout_post_{part}")(h)
    return self.norm(name=f"norm_{part}")(x_BTD) if self.norm_sum else x_BTD
