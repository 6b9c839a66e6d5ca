"""Attention: positions T read from positions S, as far as `Visible` allows."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from aigc_jax import errors, sharding
from aigc_jax.layers.einsum import Einsum, together
from aigc_jax.layers.kernels import attend, check_kernel
from aigc_jax.layers.norm import NormFactory
from aigc_jax.layers.position import Rotation, rotate
from aigc_jax.layers.products import operand_dtype
from aigc_jax.layers.rounding import rounded
from aigc_jax.layers.visible import Visible


@struct.dataclass
class Cache:
  """Keys and values of the positions seen so far, slot s for position s."""

  keys_BSKH: jax.Array
  values_BSKH: jax.Array

  def extend(self, k_BTKH, v_BTKH, positions_BT) -> "Cache":
    """With T new consecutive positions, written where each row stands.

    Positions of shape (1, T) say that all rows stand at the same place: then
    it is one plain write, where rows apart need a scatter.
    """
    start_B = positions_BT[:, 0]
    zero = jnp.zeros((), start_B.dtype)

    def write(slots, new, start):
      return jax.lax.dynamic_update_slice(slots, new, (start, zero, zero))

    def write_all(slots_BSKH, new_BTKH):
      new_BTKH = new_BTKH.astype(slots_BSKH.dtype)
      if len(start_B) == 1:
        at = (zero, start_B[0], zero, zero)
        return jax.lax.dynamic_update_slice(slots_BSKH, new_BTKH, at)
      return jax.vmap(write)(slots_BSKH, new_BTKH, start_B)

    return Cache(
      write_all(self.keys_BSKH, k_BTKH), write_all(self.values_BSKH, v_BTKH)
    )


class Attention(nn.Module):
  """N query heads of width H over K key heads (grouped-query where K < N)."""

  dim: int
  heads: int
  kv_heads: int
  head_dim: int
  dtype: jnp.dtype
  bias: bool = False
  out_bias: bool = False
  norm: NormFactory | None = None  # of queries and keys (arXiv:2302.05442)
  norm_joint: bool = False  # over all heads at once, not over each
  scale: float = 0.0  # of the scores; 0 means head_dim ** -0.5
  softcap: float = 0.0
  kernel: str = "auto"
  std: float = 0.0
  out_factor: float = 1.0
  fused: bool = True  # whether q, k and v are one product, on one device
  products: str = "plain"

  def __post_init__(self):
    if self.heads % self.kv_heads:
      raise errors.BadConfig(
        f"model.heads={self.heads} is not a multiple of "
        f"model.kv_heads={self.kv_heads}: each key head serves equally many"
      )
    super().__post_init__()

  @nn.compact
  def __call__(
    self,
    x_BTD: jax.Array,
    visible: Visible,
    turn: Rotation | None,
    cache: Cache | None = None,
  ) -> tuple[jax.Array, Cache | None]:
    D, N, K, H = self.dim, self.heads, self.kv_heads, self.head_dim
    kind = dict(
      dtype=self.dtype, bias=self.bias, std=self.std, products=self.products
    )
    query = Einsum("BTD,DNH->BTNH", (D, N, H), name="query", **kind)
    key = Einsum("BTD,DKH->BTKH", (D, K, H), name="key", **kind)
    value = Einsum("BTD,DKH->BTKH", (D, K, H), name="value", **kind)
    operands = operand_dtype(self.dtype, self.products)
    untouched = self.norm is None and turn is None
    q, k, v = together(
      (query, key, value), x_BTD, self.fused, operands if untouched else None
    )
    if self.norm is not None:
      q = self._normed(q, "N", "norm_query")
      k = self._normed(k, "K", "norm_key")
    if turn is not None:
      q, k = rotate(q, turn), rotate(k, turn)
    if cache is not None:
      cache = cache.extend(k, v, visible.positions_BT)
      k = cache.keys_BSKH.astype(self.dtype)
      v = cache.values_BSKH.astype(self.dtype)
    q, k, v = (rounded(x, operands) for x in (q, k, v))
    if self.is_initializing():
      # Fresh weights depend on shapes alone, and not every kernel can be mapped
      # over the layers that are drawn together, or takes a single position.
      check_kernel(self.kernel)
      y_BTNH = q
    else:
      y_BTNH = attend(
        q, k, v, visible,
        scale=self.scale or H**-0.5, softcap=self.softcap, kernel=self.kernel,
      )  # fmt: skip
    y_BTNH = sharding.constrain(y_BTNH.astype(self.dtype), "BTNH")
    out = Einsum(
      "BTNH,NHD->BTD", (N, H, D), self.dtype, self.out_bias, self.std,
      self.out_factor, self.products, name="out",
    )  # fmt: skip
    return out(y_BTNH), cache

  def _normed(self, x_BTNH: jax.Array, heads: str, name: str) -> jax.Array:
    """Each head by itself, or all of them as one vector."""
    if not self.norm_joint:
      return self.norm(letter="H", name=name)(x_BTNH)
    # Laid out by its heads, which lie one after the other.
    whole = x_BTNH.reshape(*x_BTNH.shape[:2], -1)
    return self.norm(letter=heads, name=name)(whole).reshape(x_BTNH.shape)
