"""Images as rows of patches, and where each patch lies."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from aigc_jax.layers.einsum import Einsum, drawn
from aigc_jax.layers.position import Rotation, frequencies, rotation


class Patches(nn.Module):
  """Squares of `patch` pixels of an image, each projected to a vector.

  The convolution whose stride is its width, written as the product it is.
  """

  patch: int
  channels: int
  dim: int
  dtype: jnp.dtype
  std: float = 0.0
  products: str = "plain"
  bias: bool = True

  @nn.compact
  def __call__(self, images_BYXC: jax.Array) -> jax.Array:
    """(B, T, D), patches in the order of reading: along the rows."""
    B, Y, X, C = images_BYXC.shape
    P = self.patch
    cut = images_BYXC.reshape(B, Y // P, P, X // P, P, C)
    patches_BTYXC = cut.swapaxes(2, 3).reshape(B, -1, P, P, C)
    project = Einsum(
      "BTYXC,YXCD->BTD", (P, P, self.channels, self.dim), self.dtype,
      self.bias, self.std, products=self.products, name="projection",
    )  # fmt: skip
    return project(patches_BTYXC)


class Tokens(nn.Module):
  """Learned vectors that go before the patches: a class token, registers."""

  dim: int
  dtype: jnp.dtype
  std: float = 0.0
  count: int = 1

  @nn.compact
  def __call__(self, rows: int) -> jax.Array:
    """(rows, count, D), the same in each row."""
    init = drawn("TD", self.dim, self.std)
    table_TD = self.param("table", init, (self.count, self.dim))
    shape = (rows, self.count, self.dim)
    return jnp.broadcast_to(table_TD.astype(self.dtype), shape)


class LearnedPlaces(nn.Module):
  """One learned vector for each of `length` places, the class token's too."""

  dim: int
  dtype: jnp.dtype
  std: float = 0.0
  length: int = 1

  @nn.compact
  def __call__(self) -> jax.Array:
    """(1, length, D)."""
    init = drawn("TD", self.dim, self.std)
    table_TD = self.param("table", init, (self.length, self.dim))
    return table_TD[None].astype(self.dtype)


def grid(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
  """Row and column (T,) of each patch, in the order of `Patches`."""
  row, column = np.mgrid[:rows, :columns]
  return row.reshape(-1), column.reshape(-1)


def sinusoids_2d(rows: int, columns: int, dim: int, dtype) -> jax.Array:
  """Fixed positions (1, T, D): sines and cosines of column, then of row.

  As in the simple ViT baseline, arXiv:2205.01580: four parts of dim / 4 waves,
  their lengths spaced from 2 pi to 2 pi * 10,000.
  """
  quarter = dim // 4
  rates = 10_000.0 ** -(np.arange(quarter) / max(quarter - 1, 1))
  row, column = (place[:, None] * rates for place in grid(rows, columns))
  waves = (np.sin(column), np.cos(column), np.sin(row), np.cos(row))
  return jnp.asarray(np.concatenate(waves, axis=1)[None], dtype)


def rotation_2d(
  rows: int, columns: int, head_dim: int, base: float, before: int
) -> Rotation:
  """Half of a head's planes turned by the row, half by the column.

  Rotary positions (arXiv:2104.09864) for each direction apart. `before`: how
  many positions come before the patches, which are not turned.
  """
  radians = frequencies(head_dim // 2, base, None)
  halves = [
    rotation(jnp.asarray(np.pad(place, (before, 0)))[None], radians)
    for place in grid(rows, columns)
  ]
  cos, sin = (
    jnp.concatenate(parts, axis=-1) for parts in zip(*halves, strict=True)
  )
  return cos, sin
