"""The loop: evaluate, save, next batch, step, log the step before."""

import hashlib
import math
import re
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping

from aigc_jax.errors import BadConfig, BadData, Stopped
from aigc_jax.trainer import faults, together
from aigc_jax.trainer.checkpoint import Checkpoints
from aigc_jax.trainer.consumed import Consumed
from aigc_jax.trainer.journal import Journal
from aigc_jax.trainer.log import Log
from aigc_jax.trainer.stop import Stop
from aigc_jax.trainer.watchdog import Watchdog

COMPILING = "compile"  # the name of the thread in which XLA works


def fit(
  state,
  *,
  start: int,
  steps: int,
  steps_per_call: int,
  advance: Callable,
  batches: Iterator,
  evaluate: Callable[[int, object], Mapping | None],
  due: Callable[[int], bool],
  checkpoints: Checkpoints,
  meta: Callable[[int], Mapping],
  journal: Journal,
  stop: Stop,
  watchdog: Watchdog,
  log_every_steps: int,
  each: Consumed,
  peak_flops: float | None,
  before: Mapping = types.MappingProxyType({}),
  most_skipped: int = 10,
  before_call: Callable[[int], None] = lambda step: None,
  compiled: Callable[[str], None] = lambda sha256: None,
  data_step: Callable[[int], int] = lambda step: step,
):
  """Trains from step `start` to `steps`; returns (state, result).

  The order is a contract. At each boundary n, with the state of n updates:

    1. where due(n), the metrics of the call before are logged, and then
       evaluate(n, state) -> metrics by name, or None;
    2. save the state, if n is due;
    3. take the batch of step n (`batches` yields (n, batch));
    4. advance(state, batch) -> (state, metrics), of `steps_per_call` updates,
       after `before_call(n)`;
    5. log the metrics of the call before, unless it is done: they are fetched
       one call late, so the device never waits for the host.

  So a checkpoint of n is written after all rows up to n, and a run continued
  from n takes the batch that an uninterrupted one would take. `advance` may
  donate the state. Metrics of several steps have a leading axis.

  A row of step n stands for the steps since the row before: every
  `log_every_steps`, and at the end (see `Log`). speed/mfu is left out where
  `peak_flops` (of all devices together) is unknown. A wish to stop is polled at
  every boundary, and by evaluators through `stop.check`; it saves once. An
  evaluator that takes long calls `watchdog.feed` as it goes.

  `before_call` is given the step of each call, `compiled` the hash of the
  program. `data_step(n)` is which step of the data the batch of n is, where
  some are left out. `each` is what a step takes. The meta of a checkpoint of n
  is `meta(n)` with what the loop keeps beside the state: what was consumed, the
  sums of the means under way, the steps skipped in a row. A continued run
  gives the meta of its checkpoint as `before`.

  Raises Stopped after the save, NonFinite after `most_skipped` steps without
  update in a row, BadData where the batches end too early, and what checkpoints
  and evaluators raise.
  """
  check_calls(start, steps, steps_per_call)
  log = Log(
    journal, start=start, steps=steps, every=log_every_steps, each=each,
    peak_flops=peak_flops, most_skipped=most_skipped, before=before,
    data_step=data_step,
  )  # fmt: skip
  done = together.from_first(journal.evaluated(start))
  n, ready = start, False
  try:
    while True:
      watchdog.feed(f"evaluation at step {n}", watchdog.compile_seconds)
      measures, done = not done and due(n), False
      if measures:
        log.catch_up()  # or the clock would take the steps under way for it
      with log.clock("evaluate"):
        faults.hit("evaluate", n)
        found = evaluate(n, state) if measures else None
      watchdog.feed(f"saving at step {n}", watchdog.compile_seconds)
      if found:
        log.evaluation(n, found)
      if n >= steps:
        break
      checkpoints.check()
      if checkpoints.due(n):
        log.catch_up()
        journal.sync()
        with log.clock("save"):
          checkpoints.save(n, state, log.meta(n, meta(n)))
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
    **log.consumed(n).as_row(),
    "digest": checkpoints.digest,
    "goodput": goodput,
  }
  journal.write("result.json", result)
  journal.event("finished", n, goodput=goodput)
  journal.sync()
  watchdog.rest()
  return state, result


def check_calls(start: int, steps: int, steps_per_call: int) -> None:
  """Raises BadConfig where calls of so many steps do not meet both ends."""
  if start >= steps:
    return
  for what, n in (("goes on", start), ("ends", steps)):
    if n % steps_per_call:
      fits = math.gcd(math.gcd(start, steps), steps_per_call)
      raise BadConfig(
        f"steps_per_call={steps_per_call}: this run {what} at step {n}, which "
        "is not a multiple of it. Use --config.compute.steps_per_call="
        f"{fits}: it changes how fast a run is, and nothing that it learns"
      )


def _last_save(n, state, checkpoints, log, meta, journal, watchdog):
  """The last save: tried again at once, and waited for."""
  watchdog.feed(f"the last save, at step {n}", 4 * watchdog.compile_seconds)
  log.catch_up()
  journal.sync()
  with log.clock("save"):
    checkpoints.commit(n, state, log.meta(n, meta(n)))


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
    journal.compiling(time.monotonic() - began)
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
