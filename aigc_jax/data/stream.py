"""Batches of examples, any of them by its number, without state.

A Stream is endless training data, an EvalSet a held-out set read once. Both
have `spec` (see `spec`) and `rows(n, rows)`, any rows of batch n on the host:
batch n is a pure function of (seed, fingerprint, n), of skip_steps and, where
the batch was another before, of how far those went.
"""

import copy
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from aigc_jax import files
from aigc_jax.data.draw import Draw
from aigc_jax.data.mixture import (
  check_weights,
  example_of,
  intervals,
  order,
  pass_over,
  step_of,
)
from aigc_jax.data.spec import Spec
from aigc_jax.data.tasks import Batch
from aigc_jax.data.views import View, ends_of, gather
from aigc_jax.errors import BadConfig, BadData
from aigc_jax.terminal import counted


def digest(*content) -> str:
  """The fingerprint of what is made of all this."""
  return files.sha256_json(content)


def check_batch(**values: int) -> None:
  """Raises BadConfig for a data.batch, data.length, ... below 1."""
  for name, value in values.items():
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
      raise BadConfig(f"data.{name}={value!r}: expected a positive integer")


class Stream:
  """Endless batches of the examples of one or several views.

  make(records, draw) -> batch, as `tasks.made_by` gives it; spec: of the whole
  batch; fingerprint: of all that decides the batches except seed and
  skip_steps. tokenizer, about: what using the model needs again, or None and
  nothing; `about` is written into the work directory as JSON.

  Raises BadData where there are fewer examples than one batch takes, BadConfig
  for impossible settings.
  """

  def __init__(
    self,
    views: Sequence[View],
    weights: Sequence[float],
    make: Callable[..., Batch],
    *,
    spec: Spec,
    batch: int,
    shuffle: bool,
    skip_steps,
    seed: int,
    fingerprint: str,
    tokenizer=None,
    about: Mapping | None = None,
  ):
    check_batch(batch=batch)
    self.views, self.weights = used(views, weights)
    self.spec, self.batch, self.fingerprint = spec, batch, fingerprint
    self.tokenizer, self.about = tokenizer, about or {}
    self._make, self._seed = make, seed
    self._skip_steps = intervals(skip_steps)
    self._stand(0, 0, [(0, batch)])
    self._ends = ends_of(self.views)
    for view in self.views:
      if not len(view) or self._ends[-1] < batch:
        raise BadData(
          f"source {view.name!r} has {counted(len(view), 'example')}, which "
          "is less than one batch: --config.data.batch="
          f"{max(self._ends[-1], 1)}, or more data"
        )
    sizes = [len(view) for view in self.views]
    self._order = order(sizes, self.weights, seed, shuffle)

  def _stand(self, step: int, position: int, batches) -> None:
    self._origin = (step, position)
    self.batches = [tuple(pair) for pair in batches]
    self._skipped = [
      (example_of(a, self.batches), example_of(b, self.batches))
      for a, b in self._skip_steps
    ]

  def going_on(self, step: int, position: int, batches) -> "Stream":
    """The same data for a run that stands at `step`, its batch now this one's.

    position: the example in the order that comes next. batches: [(position,
    batch), ...], from which example on the run took batches of which size;
    skip_steps count those. No example comes twice within an epoch, whatever the
    batch was before.
    """
    batches = [tuple(pair) for pair in batches]
    if batches[-1][1] != self.batch:
      batches.append((position, self.batch))
    part = copy.copy(self)
    part._stand(step, position, batches)
    return part

  @property
  def stores(self) -> list:
    """The store of each source."""
    return [view.store for view in self.views]

  def position(self, step: int) -> int:
    """The first example, in the order, of batch `step`."""
    position = self._origin[1]
    return pass_over(position, self.taken(step), self._skipped)

  def taken(self, step: int) -> int:
    """How many examples batches have, from where it stands to `step`."""
    return (int(step) - self._origin[0]) * self.batch

  def data_step(self, step: int) -> int:
    """Which step of the data batch `step` is, as skip_steps counts them.

    Those that are left out before it count, those of the run do not.
    """
    return step_of(self.position(step), self.batches)

  def epochs(self, examples: int) -> list[tuple[str, float]]:
    """(name, how many times it is gone through) of each source."""
    total = sum(self.weights)
    return [
      (view.name, examples * weight / total / len(view))
      for view, weight in zip(self.views, self.weights, strict=True)
    ]

  def rows(self, step: int, rows) -> Batch:
    """Rows (indices or a slice) of batch `step`."""
    places = np.arange(self.batch)[rows] + self.position(step)
    order = self._order
    numbers = np.array([order[place] for place in places.tolist()], np.int64)
    records = gather(self.views, self._ends, numbers)
    return self._make(records, Draw(self._seed, places, numbers))


def used(
  views: Sequence[View], weights: Sequence[float]
) -> tuple[list[View], list[float]]:
  """Those with a weight; BadConfig where none has, or one is negative."""
  check_weights(list(weights))
  some = [k for k, weight in enumerate(weights) if weight > 0]
  return [views[k] for k in some], [float(weights[k]) for k in some]


class EvalSet:
  """A held-out set: every example exactly once, in order, the rest padding.

  batches: how many; targets: what the weights of all batches add up to, None
  where that is not known beforehand; counts: of what the set is of, {"tokens":
  n, "bytes": n} of text; yardsticks: {name: bits per byte} of others. `recount`
  gives (targets, counts) of a set with fewer batches. `rows(index, rows)` as of
  a Stream. texts_fingerprint: of what scores read beside the batches, such as
  texts that a batch has a part of; "" where they read nothing else.
  """

  def __init__(
    self,
    views: Sequence[View],
    make: Callable[..., Batch],
    *,
    spec: Spec,
    batch: int,
    fingerprint: str,
    targets: int | None,
    counts: Mapping[str, int],
    recount: Callable[["EvalSet"], tuple[int | None, Mapping[str, int]]],
    yardsticks: Mapping[str, float] | None = None,
    tokenizer=None,
    texts_fingerprint: str = "",
  ):
    check_batch(batch=batch)
    self.views, self.spec, self.batch = list(views), spec, batch
    self.fingerprint, self.tokenizer = fingerprint, tokenizer
    self.texts_fingerprint = texts_fingerprint
    self.targets, self.counts = targets, dict(counts)
    self.yardsticks = dict(yardsticks or {})
    self._make, self._recount = make, recount
    self._ends = ends_of(self.views)
    self.batches = -(-int(self._ends[-1]) // batch)

  @property
  def stores(self) -> list:
    """The store of each source."""
    return [view.store for view in self.views]

  def __len__(self) -> int:
    """How many examples it has, padding left out."""
    return min(int(self._ends[-1]), self.batches * self.batch)

  def rows(self, index: int, rows) -> Batch:
    """Rows (indices or a slice) of batch `index`."""
    places = int(index) * self.batch + np.arange(self.batch)[rows]
    numbers = np.where(places < self._ends[-1], places, -1)
    records = gather(self.views, self._ends, numbers)
    return self._make(records, Draw(0, places, places))

  def first(self, batches: int) -> "EvalSet":
    """The first batches only, with targets and counts over those.

    Negative, or more than there are: all of them.
    """
    if batches < 0 or batches >= self.batches:
      return self
    part = copy.copy(self)
    part.batches, part.yardsticks = batches, {}  # those are of the whole
    part.fingerprint = first_fingerprint(self.fingerprint, batches)
    part.targets, part.counts = self._recount(part)
    return part


def first_fingerprint(whole: str, batches: int) -> str:
  """That of the first batches of an EvalSet with this fingerprint."""
  return digest(whole, batches)
