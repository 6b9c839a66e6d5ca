"""The order of training: which window is example `n`, for every n.

Grain does the shuffling, the epochs and the mixing by weight; its datasets are
random access, so example n is a pure function of (seed, sizes, weights, n) and
nothing is iterated or stored. Only indices pass through Grain, some 2 to 20 us
each; a window of tokens through its per-element transforms takes a multiple of
that, so the tokens of a whole batch are gathered with numpy afterwards.
"""

import functools
import itertools
import math

import grain
import numpy as np

from aigc_jax.errors import BadConfig

SMALL = 1 << 16  # windows


class Shuffled(grain.MapDataset):
  """The numbers start ... start + size - 1 in a new order in each epoch.

  For small sizes, where Grain's own shuffle is slow: it permutes 65536 values
  at least and walks until it meets one that is in range, milliseconds for
  a few windows. Here an epoch is sorted by a hash of (seed, epoch, number).
  """

  def __init__(self, start: int, size: int, seed: int):
    super().__init__()
    self._start, self._size, self._seed = start, size, seed
    self._epoch = functools.lru_cache(maxsize=2)(self._sorted)

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, index: int) -> int:
    epoch, i = divmod(index, self._size)
    return self._start + int(self._epoch(epoch)[i])

  def _sorted(self, epoch: int) -> np.ndarray:
    salt = scatter(np.array([self._seed], np.uint64)) + np.uint64(epoch)
    keys = scatter(scatter(salt) + np.arange(self._size, dtype=np.uint64))
    return np.argsort(keys, kind="stable")


def scatter(x: np.ndarray) -> np.ndarray:
  """Mixes the bits of uint64 numbers, one to one (splitmix64)."""
  x = x + np.uint64(0x9E3779B97F4A7C15)
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def order(
  sizes: list[int], weights: list[float], seed: int, shuffle: bool
) -> grain.MapDataset:
  """An endless dataset of indices into the windows of all sources in a row.

  Source k has sizes[k] windows and gives weights[k] / sum(weights) of the
  examples; each source repeats in a new order when it is through.
  """
  parts = []
  start = 0
  for k, size in enumerate(sizes):
    own = np.random.SeedSequence([seed % (1 << 64), k]).generate_state(1)
    if not shuffle:
      part = grain.MapDataset.range(start, start + size)
    elif size <= SMALL:
      part = Shuffled(start, size, int(own[0]))
    else:
      part = grain.MapDataset.range(start, start + size)
      part = part.seed(int(own[0])).shuffle()
    parts.append(part.repeat())
    start += size
  if len(parts) == 1:
    return parts[0]
  return grain.MapDataset.mix(parts, weights=weights)


def check_weights(weights: list[float]) -> None:
  """Raises BadConfig unless weights are finite, >= 0, and one is positive."""
  for weight in weights:
    if not isinstance(weight, int | float) or not math.isfinite(weight):
      raise BadConfig(f"source weight {weight!r}: expected a number")
    if weight < 0:
      raise BadConfig(f"source weight {weight}: expected 0 or more")
  if sum(weights) <= 0:
    raise BadConfig(f"source weights {weights}: at least one must be positive")


def intervals(skip_steps) -> list[tuple[int, int]]:
  """skip_steps as sorted, disjoint [start, stop) pairs.

  An entry is a data step or a [start, stop) pair. Raises BadConfig for others.
  """
  pairs = []
  for entry in skip_steps:
    pair = (entry, entry + 1) if isinstance(entry, int) else tuple(entry)
    if len(pair) != 2 or not all(isinstance(x, int) for x in pair):
      raise BadConfig(f"data.skip_steps: {entry!r} is no step or (start, stop)")
    if not 0 <= pair[0] < pair[1]:
      raise BadConfig(f"data.skip_steps: {entry!r}: expected 0 <= start < stop")
    pairs.append(pair)
  merged: list[tuple[int, int]] = []
  for start, stop in sorted(pairs):
    if merged and start <= merged[-1][1]:
      merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
    else:
      merged.append((start, stop))
  return merged


def pass_over(start: int, examples: int, skipped: list[tuple[int, int]]) -> int:
  """The example that comes `examples` after `start`, the skipped left out.

  skipped: sorted, disjoint [start, stop) pairs of examples.
  """
  example = start + examples
  for first, stop in skipped:
    first = max(first, start)
    if first < stop and example >= first:
      example += stop - first
  return example


def example_of(step: int, batches: list[tuple[int, int]]) -> int:
  """The first example of a data step.

  batches: [(example, batch), ...], from which example on batches have which
  size; the first is of example 0.
  """
  done = 0
  for (example, batch), (end, _) in itertools.pairwise(batches):
    steps = (end - example) // batch
    if step < done + steps:
      return example + (step - done) * batch
    done += steps
  example, batch = batches[-1]
  return example + (step - done) * batch


def step_of(example: int, batches: list[tuple[int, int]]) -> int:
  """The data step that an example is of; `example_of` the other way round."""
  done = 0
  for (start, batch), (end, _) in itertools.pairwise(batches):
    if example < end:
      return done + (example - start) // batch
    done += (end - start) // batch
  start, batch = batches[-1]
  return done + (example - start) // batch


def first_example(step: int, batch: int, skip_steps) -> int:
  """The first example of batch `step`, where all were of one size."""
  skipped = [(a * batch, b * batch) for a, b in intervals(skip_steps)]
  return pass_over(0, step * batch, skipped)
