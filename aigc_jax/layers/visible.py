"""Visible: who sees whom, as data; an array only where a kernel needs one."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Visible:
  """Which of the positions S each of the positions T may read.

  causal: only positions up to its own. window: only the last `window` of
  those, itself included; an int, or a traced scalar where 0 means all.
  positions and segments are None where they are 0, 1, ... and all the same.
  """

  causal: bool = True
  window: int | jax.Array | None = None
  positions_BT: jax.Array | None = None
  positions_BS: jax.Array | None = None
  segments_BT: jax.Array | None = None
  segments_BS: jax.Array | None = None

  @property
  def structured(self) -> bool:
    """Whether causal and a constant window say it all."""
    arrays = (
      self.positions_BT,
      self.positions_BS,
      self.segments_BT,
      self.segments_BS,
    )
    fixed = self.window is None or isinstance(self.window, int)
    return fixed and all(a is None for a in arrays)

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
    if isinstance(self.window, int):
      seen = seen & (behind < self.window)
    elif self.window is not None:
      seen = seen & ((behind < self.window) | (self.window == 0))
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
