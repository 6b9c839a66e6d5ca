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
  """N query heads of width H over K key heads (grouped-query where K < N).

  cross: keys and values are of another sequence, the memory: given as
  `memory_BSD`, or as a cache of what `remember` made of it, which stays as it
  is.
  """

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
  cross: bool = False
  query_factor: float = 1.0  # of the deviation that fresh query weights have
  key_bias: bool = True  # whether keys have one where queries do (`bias`)
  memory_dim: int = 0  # width of the memory of a cross; 0 means dim

  def __post_init__(self):
    if self.heads % self.kv_heads:
      raise errors.BadConfig(
        f"model.heads={self.heads} is not a multiple of "
        f"model.kv_heads={self.kv_heads}: each key head serves equally many"
      )
    super().__post_init__()

  def setup(self):
    D, N, K, H = self.dim, self.heads, self.kv_heads, self.head_dim
    kind = dict(
      dtype=self.dtype, bias=self.bias, std=self.std, products=self.products
    )
    read = "BSD,DKH->BSKH" if self.cross else "BTD,DKH->BTKH"
    E = self.memory_dim or D
    self.query = Einsum(
      "BTD,DNH->BTNH", (D, N, H), factor=self.query_factor, **kind
    )
    of_key = kind | dict(bias=self.bias and self.key_bias)
    self.key = Einsum(read, (E, K, H), **of_key)
    self.value = Einsum(read, (E, K, H), **kind)
    self.out = Einsum(
      "BTNH,NHD->BTD", (N, H, D), self.dtype, self.out_bias, self.std,
      self.out_factor, self.products,
    )  # fmt: skip
    if self.norm is not None:
      letters = ("N", "K") if self.norm_joint else ("H", "H")
      self.norm_query, self.norm_key = (
        self.norm(letter=letter) for letter in letters
      )

  def __call__(
    self,
    x_BTD: jax.Array,
    visible: Visible,
    turn: Rotation | None,
    cache: Cache | None = None,
    *,
    memory_BSD: jax.Array | None = None,
    bias_BNTS: jax.Array | None = None,
  ) -> tuple[jax.Array, Cache | None]:
    """What was read, (B, T, D), and the cache with the new positions.

    bias_BNTS: added to the scaled scores, (B or 1, N, T, S) in float32.
    """
    untouched = self.norm is None and turn is None
    operands = operand_dtype(self.dtype, self.products)
    rounds = operands if untouched else None
    if not self.cross:
      q, k, v = together(
        (self.query, self.key, self.value), x_BTD, self.fused, rounds
      )
    else:
      (q,) = together((self.query,), x_BTD, self.fused, rounds)
      read = self.remember(memory_BSD) if cache is None else cache
      k = read.keys_BSKH.astype(self.dtype)
      v = read.values_BSKH.astype(self.dtype)
    if self.norm is not None:
      q = self._normed(q, self.norm_query)
      k = k if self.cross else self._normed(k, self.norm_key)
    if turn is not None:
      q, k = rotate(q, turn), rotate(k, turn)
    if cache is not None and not self.cross:
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
        scale=self.scale or self.head_dim**-0.5, softcap=self.softcap,
        kernel=self.kernel, bias_BNTS=bias_BNTS,
      )  # fmt: skip
    y_BTNH = sharding.constrain(y_BTNH.astype(self.dtype), "BTNH")
    return self.out(y_BTNH), cache

  def remember(self, memory_BSD: jax.Array) -> Cache:
    """Keys and values of a memory, as cross attention reads them."""
    operands = operand_dtype(self.dtype, self.products)
    k, v = together(
      (self.key, self.value), memory_BSD, self.fused,
      operands if self.norm is None else None,
    )  # fmt: skip
    return Cache(k if self.norm is None else self._normed(k, self.norm_key), v)

  def _normed(self, x_BTNH: jax.Array, norm: nn.Module) -> jax.Array:
    """Each head by itself, or all of them as one vector."""
    if not self.norm_joint:
      return norm(x_BTNH)
    # Laid out by its heads, which lie one after the other.
    whole = x_BTNH.reshape(*x_BTNH.shape[:2], -1)
    return norm(whole).reshape(x_BTNH.shape)
