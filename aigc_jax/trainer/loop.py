"""The loop: evaluate, save, next batch, step, log the step before."""

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import jax
import numpy as np
from absl import logging

from aigc_jax.errors import BadConfig, BadData, NonFinite, Stopped
from aigc_jax.trainer import faults, together
from aigc_jax.trainer.checkpoint import Checkpoints
from aigc_jax.trainer.journal import Journal, number
from aigc_jax.trainer.stop import Stop
from aigc_jax.trainer.watchdog import Watchdog

# A metric that is 1 where the step left the state without update.
SKIPPED = "optim/skipped"
SPIKED = "optim/spiked"  # the same, for a loss or gradient far above the rest

COMPILING = "compile"  # the name of the thread in which XLA works


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


def fit(
  state,
  *,
  start: int,
  steps: int,
  steps_per_call: int,
  advance: Callable,
  batches: Iterator,
  evaluate: Callable[[int, object], Mapping | None],
  checkpoints: Checkpoints,
  meta: Mapping,
  journal: Journal,
  stop: Stop,
  watchdog: Watchdog,
  log_every_steps: int,
  tokens_per_step: int,
  flops_per_step: float,
  peak_flops: float | None,
  most_skipped: int = 10,
  skipped_in_a_row: int = 0,
  before_call: Callable[[int], None] = lambda step: None,
  compiled: Callable[[str], None] = lambda sha256: None,
):
  """Trains from step `start` to `steps`; returns (state, result).

  The order is a contract. At each boundary n, with the state of n updates:

    1. evaluate(n, state) -> metrics by name, or None where nothing is due;
    2. save the state, if n is due;
    3. take the batch of step n (`batches` yields (n, batch));
    4. advance(state, batch) -> (state, metrics), of `steps_per_call` updates,
       after `before_call(n)`;
    5. log the metrics of the call before: they are fetched one call late, so
       the device never waits for the host.

  So a checkpoint of n is written after all rows up to n, and a run continued
  from n takes the batch that an uninterrupted one would take. `advance` may
  donate the state. Metrics of several steps have a leading axis.

  A row of step n holds the metrics of the update that made the state of n,
  every `log_every_steps`. speed/mfu is left out where `peak_flops` (of all
  devices together) is unknown. A wish to stop is polled at every boundary, and
  by evaluators through `stop.check`; it saves once. An evaluator that takes
  long calls `watchdog.feed` as it goes.

  `before_call` is given the step of each call, `compiled` the hash of the
  program. Every checkpoint's meta is `meta` with `skipped_in_a_row`, which a
  continued run gives back. Raises Stopped after the save, NonFinite after
  `most_skipped` steps without update in a row, BadData where the batches end
  too early, and what checkpoints and evaluators raise.
  """
  if start % steps_per_call or steps % steps_per_call:
    raise BadConfig(
      f"steps_per_call={steps_per_call} divides neither or only one of the "
      f"first step {start} and the last {steps}: expected both"
    )
  log = _Log(
    journal, start, log_every_steps, tokens_per_step, flops_per_step,
    peak_flops, most_skipped, skipped_in_a_row,
  )  # fmt: skip
  done = together.from_first(journal.evaluated(start))
  n, ready = start, False
  try:
    while True:
      watchdog.feed(f"evaluation at step {n}", watchdog.compile_seconds)
      with log.clock("evaluate"):
        faults.hit("evaluate", n)
        found = None if done else evaluate(n, state)
      done = False
      watchdog.feed(f"saving at step {n}", watchdog.compile_seconds)
      if found:
        log.catch_up()
        log.evaluation(n, found)
      if n >= steps:
        break
      checkpoints.check()
      if checkpoints.due(n):
        log.catch_up()
        journal.sync()
        with log.clock("save"):
          checkpoints.save(n, state, log.meta(meta))
      faults.hit("boundary", n)
      stop.check()
      watchdog.feed(f"batch of step {n}")
      with log.clock("data"):
        at, batch = next(batches, (None, None))
        if at is None:
          raise BadData(f"the data ended at step {n} of {steps}")
        assert at == n, f"the loader gave step {at}, expected {n}"
        batch = faults.batch(n, batch, steps_per_call)
      state = faults.state(n, state)
      if not ready:
        with log.clock("compile"):
          watchdog.feed("compilation", watchdog.compile_seconds)
          advance = _compiled(advance, state, batch, stop, journal, compiled)
        ready = True
      watchdog.feed(f"step {n}, with its batch on the device")
      faults.hit("step", n)
      before_call(n)
      state, metrics = advance(state, batch)
      n += steps_per_call
      log.step(n, steps_per_call, metrics)
      journal.progress(n)
    log.catch_up()
  except Stopped as stopped:
    _last_save(n, state, checkpoints, log, meta, journal, watchdog)
    journal.event("stopped", n, reason=str(stopped), goodput=log.clock.shares())
    journal.sync()
    raise Stopped(
      f"{stopped}: saved at step {n} of {steps}; run the same line to go on"
    ) from None
  except BaseException:
    checkpoints.close()
    raise
  _last_save(n, state, checkpoints, log, meta, journal, watchdog)
  goodput = log.clock.shares()
  result = log.last | {
    "step": n,
    "digest": checkpoints.digest,
    "goodput": goodput,
  }
  journal.write("result.json", result)
  journal.event("finished", n, goodput=goodput)
  journal.sync()
  watchdog.rest()
  return state, result


def _last_save(n, state, checkpoints, log, meta, journal, watchdog):
  """The last save: tried again at once, and waited for."""
  watchdog.feed(f"the last save, at step {n}", 4 * watchdog.compile_seconds)
  log.catch_up()
  journal.sync()
  with log.clock("save"):
    checkpoints.commit(n, state, log.meta(meta))


def _compiled(
  advance, state, batch, stop: Stop, journal: Journal, tell: Callable
) -> Callable:
  """The program of `advance`, compiled ahead of its first call, journalled.

  XLA works in a thread, so that a wish to stop is heard while it takes; the
  state is whole as long as the step has not run. With several processes a stop
  waits for the end of the compilation: all must leave at the same point.
  """
  if not hasattr(advance, "lower"):
    return advance
  began = time.monotonic()
  lowered = advance.lower(state, batch)
  outcome: dict = {}

  def work():
    try:
      faults.hit("compile")
      outcome["program"] = lowered.compile()
    except BaseException as error:
      outcome["error"] = error

  thread = threading.Thread(target=work, daemon=True, name=COMPILING)
  thread.start()
  while thread.is_alive():
    thread.join(0.1)
    stop.check_alone()
  if "error" in outcome:
    raise outcome["error"]
  text = outcome["program"].as_text()
  sha256 = text and program_hash(text)
  seconds = round(time.monotonic() - began, 3)
  journal.event("compiled", seconds=seconds, hlo_sha256=sha256)
  tell(sha256)
  return outcome["program"]


def program_hash(text: str) -> str:
  """The hash of compiled HLO, blind to where its source stood.

  Names and lines of source files change with a cache or a checkout; what is
  computed does not.
  """
  table = r"^(\d+ |FileNames|FunctionNames|FileLocations|StackFrames).*\n"
  text = re.sub(table, "", text, flags=re.MULTILINE)
  text = re.sub(r", metadata=\{[^{}]*\}", "", text)
  return hashlib.sha256(text.encode()).hexdigest()


class _Log:
  """The rows of the loop: one call late, and in order."""

  def __init__(
    self, journal, start, every, tokens, flops, peak, most_skipped, in_a_row
  ):
    self.clock = Clock()
    self.last: dict = {}
    self._journal = journal
    self._every = every
    self._tokens = tokens
    self._flops = flops
    self._peak = peak
    self._most = most_skipped
    self._in_a_row = in_a_row
    self._pending: tuple | None = None
    self._mark = (start, time.monotonic(), 0.0)

  def meta(self, meta: Mapping) -> dict:
    """What of the loop a checkpoint must hold, beside the state."""
    return dict(meta) | {"skipped_in_a_row": self._in_a_row}

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
    return list(range((n - count) // every * every + every, n + 1, every))

  def _read(self, n: int, count: int, metrics: Mapping) -> Mapping:
    """What of the metrics is read for sure: the host is slow for each."""
    watched = {k: metrics[k] for k in (SKIPPED, SPIKED) if k in metrics}
    return metrics if self._logged(n, count) or not watched else watched

  def catch_up(self) -> None:
    """Logs what is pending; waits for the device."""
    pending, self._pending = self._pending, None
    self._log(pending)

  def _log(self, pending) -> None:
    if pending is None:
      return
    n, count, metrics = pending
    read = {k: np.asarray(x) for k, x in self._read(*pending).items()}
    if any(read[k].any() for k in (SKIPPED, SPIKED) if k in read):
      read = metrics
    metrics = {name: np.asarray(x) for name, x in read.items()}
    logged = self._logged(n, count)
    speed = self._speed(n) if logged else {}
    for i, step in enumerate(range(n - count + 1, n + 1)):
      one = metrics if count == 1 else {k: x[i] for k, x in metrics.items()}
      self._count_skipped(step, one)
      if step in logged:
        self._row(step, one | speed)

  def _count_skipped(self, step: int, metrics) -> None:
    if metrics.get(SPIKED, 0):
      loss, norm = (number(metrics[k]) for k in ("train/loss", "norm/grad"))
      self._journal.event("spike", step, loss=loss, norm=norm)
    if not metrics.get(SKIPPED, 0):
      self._in_a_row = 0
      return
    self._in_a_row += 1
    loss = number(metrics.get("train/loss", 0.0))
    self._journal.event(
      "skip", step, loss=loss, in_a_row=self._in_a_row,
      reason="loss, gradient or update not finite",
    )  # fmt: skip
    logging.warning("step %d: not finite, left without update", step)
    if self._in_a_row >= self._most:
      self._row(step, metrics)
      self._journal.event("non_finite", step, in_a_row=self._in_a_row)
      self._journal.sync()
      raise NonFinite(
        f"step {step}: {self._in_a_row} steps in a row had a loss, gradient "
        "or update that is not finite; nothing of them was kept. Lower "
        "--config.optim.learning_rate, or pass over the data with "
        "--config.data.skip_steps"
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
    found = {
      "speed/steps_per_second": per_second,
      "speed/tokens_per_second": per_second * self._tokens,
    }
    if self._peak:
      found["speed/mfu"] = per_second * self._flops / self._peak
    return {name: round(x, 4) for name, x in found.items()}

  def _row(self, step: int, row: Mapping) -> None:
    self.last |= self._write(step, row)

  def evaluation(self, step: int, metrics: Mapping) -> None:
    self.last |= self._write(step, metrics)

  def _write(self, step: int, metrics: Mapping) -> dict:
    return self._journal.row(
      step, metrics, tokens=step * self._tokens, flops=step * self._flops
    )
