"""A profile of chosen steps, written for TensorBoard."""

from collections.abc import Sequence
from pathlib import Path

import jax

from aigc_jax.errors import BadConfig


class Profiler:
  """Records the steps FIRST to LAST into `folder`; nothing without steps.

  Raises BadConfig unless there are none or two steps in order.
  """

  def __init__(self, folder: Path, steps: Sequence[str]):
    self.folder = folder
    self.first, self.last = _range(steps)
    self._running = False

  def __enter__(self) -> "Profiler":
    return self

  def __exit__(self, *_) -> None:
    self._stop()

  def before(self, step: int) -> None:
    """Called before each call of the device, with the step it begins at."""
    if self.first is None:
      return
    if self._running and step > self.last:
      self._stop()
    if not self._running and self.first <= step <= self.last:
      jax.profiler.start_trace(str(self.folder))
      self._running = True

  def _stop(self) -> None:
    if self._running:
      jax.effects_barrier()
      jax.profiler.stop_trace()
      self._running = False


def _range(steps: Sequence[str]) -> tuple[int | None, int | None]:
  if not steps:
    return None, None
  try:
    first, last = (int(step) for step in steps)
  except ValueError:
    first, last = 1, 0
  if first > last:
    raise BadConfig(
      f"--profile_steps={','.join(steps)}: expected FIRST,LAST, such as 10,13"
    )
  return first, last
