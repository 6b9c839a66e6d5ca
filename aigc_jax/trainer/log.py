"""The rows of the loop: one call late, in order, of means over their steps.

A row of step n stands for the steps since the row before it. What is a mean in
a step (train/loss, train/accuracy, ...) is in the row the mean over all of
those, each step with its weight; train/last_loss is the loss of step n alone.
Everything else (norms, learning rate, hash of the batch) is of step n. A step
left without update because it was not finite counts in no mean.

The sums of a mean are of float64, added in the order of the steps, and go into
the checkpoints: a run that is killed between two rows writes the same rows.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import jax
import numpy as np
from absl import logging

from aigc_jax.errors import NonFinite
from aigc_jax.trainer.consumed import Consumed, of_meta
from aigc_jax.trainer.journal import Journal, number
from aigc_jax.trainer.step import MEANS

# A metric that is 1 where the step left the state without update.
SKIPPED = "optim/skipped"
SPIKED = "optim/spiked"  # the same, for a loss or gradient far above the rest
WATCHED = (SKIPPED, SPIKED, MEANS)  # read of every step


@dataclass
class Clock:
  """Where the wall time of a loop went, by name; the rest is the steps'."""

  began: float = field(default_factory=time.monotonic)
  spent: dict[str, float] = field(default_factory=dict)

  def __call__(self, name: str) -> "_Span":
    return _Span(self, name)

  def shares(self) -> dict[str, float]:
    """{name: share of the time since the start}, adding up to 1."""
    total = max(time.monotonic() - self.began, 1e-9)
    shares = {name: s / total for name, s in self.spent.items()}
    shares["steps"] = max(0.0, 1.0 - sum(shares.values()))
    return {name: round(share, 4) for name, share in shares.items()}


class _Span:
  def __init__(self, clock: Clock, name: str):
    self.clock, self.name = clock, name

  def __enter__(self):
    self.began = time.monotonic()

  def __exit__(self, *_):
    spent = self.clock.spent
    more = time.monotonic() - self.began
    spent[self.name] = spent.get(self.name, 0.0) + more


class Log:
  """What a loop says and counts; see the module.

  each: what a step takes. before: the meta of the checkpoint that the run goes
  on from. data_step(n): which step of the data the batch of step n is. Raises
  NonFinite after `most_skipped` skipped steps in a row.
  """

  def __init__(
    self,
    journal: Journal,
    *,
    start: int,
    steps: int,
    every: int,
    each: Consumed,
    peak_flops: float | None,
    most_skipped: int,
    before: Mapping,
    data_step: Callable[[int], int] = lambda step: step,
  ):
    self.clock = Clock()
    self.last: dict = dict(journal.last)
    self._journal = journal
    self._start, self._end = start, steps
    self._every = every
    self._each = each
    self._began = of_meta(before) or Consumed().after(start, each)
    self._peak = peak_flops
    self._most = most_skipped
    self._data_step = data_step
    self._in_a_row: int = before.get("skipped_in_a_row", 0)
    self._sums: dict[str, list[float]] = {
      name: list(pair) for name, pair in before.get("means", {}).items()
    }
    journal.compare(start, before.get("rows", {}))
    self._pending: tuple | None = None
    self._mark = (start, time.monotonic(), 0.0)

  def meta(self, n: int, meta: Mapping) -> dict:
    """What of the loop a checkpoint of step n must hold, beside the state."""
    return dict(meta) | {
      "skipped_in_a_row": self._in_a_row,
      "consumed": self.consumed(n).as_meta(),
      "means": self._sums,
      "rows": self._journal.written(),
    }

  def consumed(self, n: int) -> Consumed:
    """By the run up to step n."""
    return self._began.after(n - self._start, self._each)

  def step(self, n: int, count: int, metrics) -> None:
    """Takes the metrics of the call that ended at n; logs those before."""
    for x in self._read(n, count, metrics).values():
      # Those of a CPU are read in place.
      if isinstance(x, jax.Array) and jax.default_backend() != "cpu":
        x.copy_to_host_async()
    before, self._pending = self._pending, (n, count, metrics)
    self._log(before)

  def _logged(self, n: int, count: int) -> list[int]:
    """The steps of the call that ended at n that have a row."""
    every = self._every
    found = list(range((n - count) // every * every + every, n + 1, every))
    return found if n != self._end or n in found else [*found, n]

  def _read(self, n: int, count: int, metrics: Mapping) -> Mapping:
    """What of the metrics is read for sure: the host is slow for each."""
    watched = {k: metrics[k] for k in WATCHED if k in metrics}
    return metrics if self._logged(n, count) or not watched else watched

  def catch_up(self) -> None:
    """Logs what is pending; waits for the device."""
    pending, self._pending = self._pending, None
    self._log(pending)

  def _log(self, pending) -> None:
    if pending is None:
      return
    n, count, metrics = pending
    means = _trained(metrics)
    read = {k: np.asarray(x) for k, x in self._read(*pending).items()}
    if any(read[k].any() for k in (SKIPPED, SPIKED) if k in read):
      read = metrics
    metrics = {name: np.asarray(x) for name, x in read.items()}
    logged = self._logged(n, count)
    speed = self._speed(n) if logged else {}
    for i, step in enumerate(range(n - count + 1, n + 1)):
      one = metrics if count == 1 else {k: x[i] for k, x in metrics.items()}
      self._count_skipped(step, one)
      if MEANS in one and not one.get(SKIPPED, 0):
        self._add(means, one[MEANS])
      if step in logged:
        self._row(step, one, speed)

  def _add(self, names: list[str], pairs: np.ndarray) -> None:
    """One step's (sum, weight) of each mean; what is not finite is left out."""
    for name, (total, weight) in zip(names, pairs.tolist(), strict=True):
      if math.isfinite(total) and math.isfinite(weight):
        sums = self._sums.setdefault(name, [0.0, 0.0])
        sums[0] += total
        sums[1] += weight

  def _means(self, names: list[str]) -> dict[str, float]:
    """The means since the row before; the next ones begin.

    nan where no step counted. Rounded to float32, as a step's own mean is.
    """
    sums, self._sums = self._sums, {}
    pairs = {name: sums.get(name, (0.0, 0.0)) for name in names}
    return {
      name: float(np.float32(total / weight)) if weight else math.nan
      for name, (total, weight) in pairs.items()
    }

  def _count_skipped(self, step: int, metrics) -> None:
    # What led to the row of a step is the batch of the one before.
    batch = self._data_step(step - 1)
    if metrics.get(SPIKED, 0):
      loss, norm = (number(metrics[k]) for k in ("train/loss", "norm/grad"))
      self._journal.event("spike", step, loss=loss, norm=norm, data_step=batch)
    if not metrics.get(SKIPPED, 0):
      self._in_a_row = 0
      return
    self._in_a_row += 1
    loss = number(metrics.get("train/loss", 0.0))
    self._journal.event(
      "skip", step, loss=loss, in_a_row=self._in_a_row, data_step=batch,
      reason="loss, gradient or update not finite",
    )  # fmt: skip
    logging.warning("step %d: not finite, left without update", step)
    if self._in_a_row >= self._most:
      self._row(step, metrics, {})
      self._journal.event("non_finite", step, in_a_row=self._in_a_row)
      self._journal.sync()
      first = self._data_step(max(step - self._in_a_row, 0))
      raise NonFinite(
        f"step {step}: {self._in_a_row} steps in a row had a loss, gradient "
        "or update that is not finite; nothing of them was kept. Lower "
        "--config.optim.learning_rate, or pass over their batches, beside what "
        f'is left out: --config.data.skip_steps="(({first}, {batch + 1}),)"'
      )

  def _speed(self, n: int) -> dict[str, float]:
    """Of the steps since the rows before, up to the call that ended at n."""
    then, clock, apart = self._mark
    now = time.monotonic()
    others = ("evaluate", "save", "compile")
    spent = sum(self.clock.spent.get(name, 0.0) for name in others)
    self._mark = (n, now, spent)
    seconds = now - clock - (spent - apart)
    if n <= then or seconds <= 0:
      return {}
    per_second = (n - then) / seconds
    found = {"speed/steps_per_second": per_second} | {
      f"speed/{unit}_per_second": per_second * amount
      for unit, amount in self._each.units.items()
    }
    if self._peak:
      found["speed/mfu"] = per_second * self._each.flops / self._peak
    return {name: float(f"{x:.5g}") for name, x in found.items()}

  def _row(self, step: int, one: Mapping, speed: Mapping) -> None:
    row = {name: x for name, x in one.items() if name != MEANS}
    if MEANS in one:
      last = {"train/last_loss": row["train/loss"]}
      row |= self._means(_trained(row)) | last
    self.last |= self._write(step, row | dict(speed))

  def evaluation(self, step: int, metrics: Mapping) -> None:
    self.last |= self._write(step, metrics)

  def _write(self, step: int, metrics: Mapping) -> dict:
    return self._journal.row(step, metrics, self.consumed(step))


def _trained(metrics: Mapping) -> list[str]:
  """The names of the means, in the order that their sums have."""
  return sorted(name for name in metrics if name.startswith("train/"))
