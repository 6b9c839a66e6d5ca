"""The step that training runs, timed on batches that lie on the device."""

import functools
import hashlib
import math
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax import run, sharding, tree
from aigc_jax.timing import machine
from aigc_jax.timing.program import library_calls

WINDOWS = 5  # of steps; the median of their times is the result
WARM_UP = 10  # steps before the first window
POOL = 4  # batches, taken in turn


class Timed:
  """A compiled step with its state, its batches and the times of its windows.

  Compiled at its first step. The state is made when it is needed; `park` gives
  its memory back.
  """

  def __init__(self, r: run.Run, options: dict | None = None):
    self.run = r
    self.per_call = r.config["compute"]["steps_per_call"]
    # The batches of a call repeat after as many calls.
    repeat = POOL // math.gcd(POOL, self.per_call)
    self._pool = [zipf_batch(r, i * self.per_call) for i in range(repeat)]
    self._options = options
    start = time.perf_counter()
    self._lowered = r.advance().lower(r.state, self._pool[0])
    self.trace_seconds = time.perf_counter() - start
    self.state, self.calls, self.ms = None, 0, []
    self.losses: list[float] = []  # of each step since the state was made

  @functools.cached_property
  def program(self) -> bytes:
    """A digest of what the compiler is given."""
    text = f"{self._lowered.as_text()} {self._options}"
    return hashlib.sha256(text.encode()).digest()

  @functools.cached_property
  def compiled(self) -> jax.stages.Compiled:
    start = time.perf_counter()
    compiled = self._lowered.compile(self._options)
    self.compile_seconds = time.perf_counter() - start
    return compiled

  @functools.cached_property
  def temporary_bytes(self) -> int:
    needs = self.compiled.memory_analysis()
    return getattr(needs, "temp_size_in_bytes", 0)

  def step(self, steps: int) -> float:
    """At least so many steps; milliseconds of one, all waited for.

    As training does, a call is waited for once the next one is under way: of
    many at once each would have temporary memory of its own.
    """
    if self.state is None:
      self.state = jax.block_until_ready(self.run.init())
      self.calls, self.losses = 0, []
    calls, found = max(1, -(-steps // self.per_call)), []
    compiled = self.compiled  # before the clock starts
    begun = time.perf_counter()
    for _ in range(calls):
      batch = self._pool[self.calls % len(self._pool)]
      self.state, metrics = compiled(self.state, batch)
      found.append(metrics["train/loss"])
      self.calls += 1
      jax.block_until_ready(found[-2:-1])
    jax.block_until_ready((self.state, found))
    elapsed = time.perf_counter() - begun
    for x in found:
      self.losses += np.ravel(x).tolist()
    return elapsed * 1e3 / (calls * self.per_call)

  def window(self, steps: int) -> None:
    """One more entry of `ms`; of whole calls, so near to `steps`."""
    self.ms.append(self.step(max(1, steps // self.per_call) * self.per_call))

  def park(self) -> None:
    self.state = None

  def numbers(self) -> dict:
    """The times, the loss, the memory, as plain values."""
    return {
      "ms": {
        "median": statistics.median(self.ms),
        "min": min(self.ms),
        "max": max(self.ms),
        "windows": self.ms,
      },
      "trace_seconds": self.trace_seconds,
      "compile_seconds": self.compile_seconds,
      "temporary_bytes": self.temporary_bytes,
    }


def time_step(r: run.Run, steps: int) -> dict:
  """Compiles and times the step; the loss says whether it still learns."""
  timed = Timed(r)
  timed.step(1)
  timed.step(WARM_UP)
  while_stepping = machine.reset_peak()
  for _ in range(WINDOWS):
    timed.window(steps // WINDOWS)
  device = r.mesh.devices.flat[0]
  return timed.numbers() | {
    "loss": {
      "first": timed.losses[0],
      "last": timed.losses[-1],
      "steps": len(timed.losses),
    },
    "state_bytes": tree.nbytes(r.state),
    "peak_bytes": machine.peak_bytes(device),
    "peak_of": machine.peak_of(device, while_stepping),
    "library_calls": library_calls(timed.compiled.as_text()),
  }


def zipf_batch(r: run.Run, first: int) -> dict[str, jax.Array]:
  """The batches of one call from step `first` on, everything counted.

  Ids have Zipf's frequencies, images and the like are noise. A step's batch is
  one of POOL, the same however many steps a call has.
  """
  per_call = r.config["compute"]["steps_per_call"]
  made = [_filled(r, (first + i) % POOL) for i in range(per_call)]
  placed = {}
  for name, array in run.data_of(r.config).spec.items():
    value = np.stack([batch[name] for batch in made])
    if per_call == 1:
      placed[name] = jax.device_put(value[0], r.batch[name].sharding)
      continue
    laid = sharding.shardings(f".{array.letters}", value.shape, r.mesh)
    placed[name] = jax.device_put(value, laid)
  return placed


def _filled(r: run.Run, number: int) -> dict[str, np.ndarray]:
  """One batch; targets of tokens are the tokens that come next."""
  draw, found, following = np.random.default_rng(number), {}, None
  vocab = r.config["model"].get("vocab", 2)
  shares = np.cumsum(1.0 / (np.arange(vocab) + 2.7))
  for name, x in r.batch.items():
    if name == "targets" and following is not None:
      found[name] = following[..., : x.shape[-1]]
    elif name in ("types", "follows"):
      found[name] = draw.integers(0, 2, x.shape, x.dtype)
    elif name == "segments" or name.endswith("weights"):
      found[name] = np.ones(x.shape, x.dtype)
    elif name in ("positions", "at"):
      places = np.arange(x.shape[-1], dtype=x.dtype)
      found[name] = np.broadcast_to(places, x.shape)
    elif jnp.issubdtype(x.dtype, jnp.floating):
      found[name] = draw.standard_normal(x.shape).astype(x.dtype)
    elif name.endswith("_lengths"):  # all of it is there
      whole = r.batch[name.removesuffix("_lengths")].shape[-1]
      found[name] = np.full(x.shape, whole, x.dtype)
    elif x.dtype == jnp.int16:
      found[name] = draw.integers(-(2**13), 2**13, x.shape, np.int16)
    elif x.dtype == jnp.uint8:
      found[name] = draw.integers(0, 256, x.shape, np.uint8)
    else:
      longer = (*x.shape[:-1], x.shape[-1] + 1) if x.ndim > 1 else x.shape
      ids = np.searchsorted(shares, draw.random(longer) * shares[-1])
      ids = ids.astype(x.dtype)
      found[name] = ids[..., : x.shape[-1]] if x.ndim > 1 else ids
      if name == "tokens":
        following = ids[..., 1:]
  return found
