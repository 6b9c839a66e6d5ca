"""Stores as rows of examples: what a number of one gives.

A view has a name, a fingerprint, a length, and `gather(numbers)`, the records
of these numbers as {column: one row each}. The number -1 is padding: a record
that a task gives no weight.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from aigc_jax.data.mixture import scatter
from aigc_jax.data.store import Store
from aigc_jax.data.tasks import Records


class View(Protocol):
  """The examples of one source."""

  name: str
  fingerprint: str

  def __len__(self) -> int: ...

  def gather(self, numbers: np.ndarray) -> Records: ...


class Windows:
  """The windows of `length` + 1 tokens of a store, the end left over."""

  def __init__(self, store: Store, length: int):
    self.store, self.length = store, length
    self.name, self.fingerprint = store.manifest["name"], store.fingerprint

  def __len__(self) -> int:
    return self.store.windows(self.length)

  def gather(self, numbers: np.ndarray) -> Records:
    """ "window" (n, length + 1) int32, "count" (n,) int64."""
    window = self.store.gather(numbers, self.length)
    return {"window": window, "count": np.full(len(numbers), self.length)}


class Pieces(Windows):
  """All tokens of a store: the last window is what is left, then padding.

  Padding is the end of text, `eot`.
  """

  def __init__(self, store: Store, length: int, eot: int):
    super().__init__(store, length)
    self._eot = eot

  def __len__(self) -> int:
    return -(-(self.store.tokens - 1) // self.length)

  def gather(self, numbers: np.ndarray) -> Records:
    """ "window" (n, length + 1) int32, "count" (n,) int64."""
    window = np.full((len(numbers), self.length + 1), self._eot, np.int32)
    count = np.zeros(len(numbers), np.int64)
    for i, number in enumerate(numbers.tolist()):
      if number >= 0:
        found = self.store.window(number, self.length)
        window[i, : len(found)] = found
        count[i] = len(found) - 1
    return {"window": window, "count": count}


class Paired:
  """A view with another window beside each: "other", from elsewhere in it.

  Which one is a function of the number alone.
  """

  def __init__(self, view: Windows):
    self.view, self.store = view, view.store
    self.name, self.fingerprint = view.name, view.fingerprint

  def __len__(self) -> int:
    return len(self.view)

  def gather(self, numbers: np.ndarray) -> Records:
    """The records of the view, and "other" (n, length + 1) int32."""
    # Neither the window itself nor, where there are more, the one behind it,
    # which may well go on with its text.
    far = max(len(self) - 2, 1)
    away = 2 + scatter(numbers.astype(np.uint64)) % np.uint64(far)
    others = (numbers + away.astype(np.int64)) % max(len(self), 1)
    found = dict(self.view.gather(numbers))
    return found | {"other": self.view.gather(others)["window"]}


def ends_of(views: Sequence[View]) -> np.ndarray:
  """Where each view begins among the numbers of all; the last ends there."""
  return np.cumsum([0] + [len(view) for view in views])


def gather(
  views: Sequence[View], ends: np.ndarray, numbers: np.ndarray
) -> Records:
  """The records of numbers that go through all the views in turn."""
  if len(views) == 1:
    return views[0].gather(numbers)
  # Padding is the first view's.
  which = np.maximum(np.searchsorted(ends, numbers, side="right") - 1, 0)
  own = np.where(numbers < 0, -1, numbers - ends[which])
  found: dict[str, np.ndarray] = {}
  for k in np.unique(which):
    mine = which == k
    for column, values in views[k].gather(own[mine]).items():
      if column not in found:
        shape = (len(numbers), *values.shape[1:])
        found[column] = np.empty(shape, values.dtype)
      found[column][mine] = values
  return found
