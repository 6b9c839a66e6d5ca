"""Visible: who sees whom, as data; an array only where a kernel needs one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Visible:
  """Which of the positions S each of the positions T may read.

  causal: only positions up to its own. window: only those less than `window`
  positions away, on both sides of it where not causal.
  positions and segments are None where they are 0, 1, ... and all the same.
  """

  causal: bool = True
  window: int | None = None
  positions_BT: jax.Array | None = None
  positions_BS: jax.Array | None = None
  segments_BT: jax.Array | None = None
  segments_BS: jax.Array | None = None

  @property
  def structured(self) -> bool:
    """Whether causal and the window say it all."""
    arrays = (
      self.positions_BT,
      self.positions_BS,
      self.segments_BT,
      self.segments_BS,
    )
    return all(a is None for a in arrays)

  def pairs(self, T: int, S: int) -> int:
    """How many pairs of a position of T and one of S see each other.

    In a row of one segment, positions 0, 1, ... on both sides.
    """
    t, w = np.arange(T), self.window
    first = np.zeros(T, int) if w is None else np.maximum(0, t - w + 1)
    last = t if self.causal else np.full(T, S - 1)
    if w is not None:
      last = np.minimum(last, t + w - 1)
    seen = np.minimum(last, S - 1) - first + 1
    return int(np.maximum(seen, 0).sum())

  def mask(self, T: int, S: int, start: int | jax.Array = 0):
    """Booleans (B or 1, T, S) for positions from `start`; None if all see all.

    `start` offsets T only where the positions are implicit (query chunks).
    """
    if not (self.causal or self.window is not None) and (
      self.segments_BT is None
    ):
      return None
    t = self.positions_BT
    t = (start + jnp.arange(T))[None] if t is None else t
    s = jnp.arange(S)[None] if self.positions_BS is None else self.positions_BS
    behind = t[:, :, None] - s[:, None, :]
    seen = jnp.ones((), bool)
    if self.causal:
      seen = behind >= 0
    if self.window is not None:
      seen = seen & (jnp.abs(behind) < self.window)
    if self.segments_BT is not None:
      same = self.segments_BT[:, :, None] == self.segments_BS[:, None, :]
      seen = seen & same
    return jnp.broadcast_to(seen, (seen.shape[0] if seen.ndim else 1, T, S))

  def rows(self, start: int, T: int) -> "Visible":
    """The same for the T query positions from `start` on."""

    def cut(a):
      return None if a is None else jax.lax.dynamic_slice_in_dim(a, start, T, 1)

    return dataclasses.replace(
      self,
      positions_BT=cut(self.positions_BT),
      segments_BT=cut(self.segments_BT),
    )
