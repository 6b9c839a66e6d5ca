"""Stages of residual blocks that halve an image, and double it again.

The nets of VQ-GAN (arXiv:2012.09841) and of latent diffusion's autoencoders
(arXiv:2112.10752).
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from aigc_jax.layers.group_norm import GroupNorm
from aigc_jax.layers.mlp import activate
from aigc_jax.layers.residual import (
  PlacesAttention,
  ResidualBlock,
  Resized,
  convolved,
  rematted,
)


@dataclasses.dataclass(frozen=True)
class ResidualStages:
  """As `Stages`, each but the last followed by one of half the size.

  blocks: of a stage, and one more on the way back. attends: of each stage,
  whether its places read each other; those of the middle, between the two ways,
  always do. On the way back names count from the smallest on.
  """

  widths: tuple[int, ...]
  blocks: int
  attends: tuple[bool, ...]
  dtype: jnp.dtype
  norm: Callable[..., GroupNorm]
  attention: Callable[..., PlacesAttention]  # of a width
  remat: str = "none"

  @property
  def halvings(self) -> int:
    """How often rows and columns are halved."""
    return len(self.widths) - 1

  def channels(self, code: int) -> int:
    """How many `up` takes, to begin with a code of so many numbers."""
    return code

  def down(self, x_BYXC: jax.Array, code: int) -> jax.Array:
    """(B, Y / 2**n, X / 2**n, code), of which a code is to be made."""
    x = self._convolved(x_BYXC, self.widths[0], "conv_in")
    for i, width in enumerate(self.widths):
      for j in range(self.blocks):
        x = self._block(x, width, f"down{i}_{j}", self.attends[i])
      if i < self.halvings:
        # As published: zeros stand behind the last row and column alone.
        x = Resized(
          width, "half", self.dtype, around=(0, 1), name=f"half{i}"
        )(x)  # fmt: skip
    return self._end(self._middle(x), code)

  def up(self, x_BYXD: jax.Array, channels: int) -> jax.Array:
    """(B, Y * 2**n, X * 2**n, channels) float32: the way back."""
    x = self._middle(self._convolved(x_BYXD, self.widths[-1], "conv_in"))
    stages = zip(self.widths[::-1], self.attends[::-1], strict=True)
    for i, (width, attends) in enumerate(stages):
      for j in range(self.blocks + 1):
        x = self._block(x, width, f"up{i}_{j}", attends)
      if i < self.halvings:
        x = Resized(width, "double", self.dtype, name=f"double{i}")(x)
    return self._end(x, channels).astype(jnp.float32)

  def _middle(self, x: jax.Array) -> jax.Array:
    width = self.widths[-1]
    x = self._block(x, width, "middle0", attends=True)
    return self._block(x, width, "middle1", attends=False)

  def _end(self, x: jax.Array, channels: int) -> jax.Array:
    x = activate("silu", self.norm(name="norm_out")(x))
    return self._convolved(x, channels, "conv_out")

  def _convolved(self, x: jax.Array, width: int, name: str) -> jax.Array:
    return convolved(x.shape[-1], width, self.dtype, name=name)(x)

  def _block(
    self, x: jax.Array, width: int, name: str, attends: bool
  ) -> jax.Array:
    """A residual block, and attention where the stage has it."""
    block = functools.partial(ResidualBlock, norm=self.norm, dtype=self.dtype)
    x = rematted(block, self.remat)(x.shape[-1], width, name=name)(x)
    if not attends:
      return x
    places = rematted(self.attention(width), self.remat)
    return places(name=f"{name}_read")(x)
