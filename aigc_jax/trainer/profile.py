"""A profile of chosen steps, written for TensorBoard."""

from collections.abc import Sequence
from pathlib import Path

import jax

from aigc_jax.errors import BadConfig


class Profiler:
  """Records the steps FIRST to LAST into `folder`; nothing without steps.

  end: steps of the run; call: of one call of the device. Raises BadConfig
  unless there are none or two steps in order, between which a call begins.
  """

  def __init__(
    self, folder: Path, steps: Sequence[str], end: int, call: int = 1
  ):
    self.folder = folder
    self.first, self.last = _range(steps)
    if self.first is not None:
      begins = -(-self.first // call) * call
      if not begins <= min(self.last, end - 1):
        raise BadConfig(
          f"--profile_steps={','.join(steps)}: nothing begins there: the run "
          f"takes the steps 0 to {end - 1}, {call} in a call"
        )
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
  if not 0 <= first <= last:
    raise BadConfig(
      f"--profile_steps={','.join(steps)}: expected FIRST,LAST, such as 10,13"
    )
  return first, last
