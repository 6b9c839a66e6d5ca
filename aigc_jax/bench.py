"""Times the step that training runs, and what the machine can do at best.

  python -m aigc_jax.bench --config=configs/bench.py:small
  python -m aigc_jax.bench --config=configs/bench.py:small,bf16 --switches

The step is `run.build(config).advance()`, its state donated, on batches that
lie on the device and whose ids are Zipf-distributed, as those of text are. Any
config will do; its data is not read. The numbers also go to a JSON file, by
default in the current folder and named after the config, and replace those of
before: bench-small-bf16.json, bench-small-bf16-switches.json.

With --switches the first line is the best setting: starting from the config,
the flip that is fastest by more than the noise is adopted, and again, until
none is; then one switch at a time is flipped from there. What changes the
numbers of training (dtypes) is told, never adopted. All of them take turns, so
that other work on the machine hits all alike.
"""

import collections
import dataclasses
import json
import math
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from aigc_jax import memory

if __name__ == "__main__":
  memory.keep_freed()  # as training does

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from aigc_jax import chips, command, run, sharding, tree
from aigc_jax.errors import BadConfig, StorageFailure
from aigc_jax.layers import kernels
from aigc_jax.layers.visible import Visible
from aigc_jax.planning.summary import headline, table

FLAGS = flags.FLAGS
WINDOWS = 5  # of steps; the median of their times is the result
WARM_UP = 10  # steps before the first window
POOL = 4  # batches, taken in turn
DRIFT = 0.03  # of the ceilings, above which a result is marked
LOSS_STEPS = 20  # after which a switch's loss is compared with the reference
PASSES = 5  # over the switches at most, to find the best setting
LEAST = 0.01  # by which a flip must be faster to be adopted, and by the noise

# The reference: float32 with everything plain, and by how much of it the loss
# after LOSS_STEPS may differ, by what is stored in bfloat16 or less.
PLAIN = {
  "model.dtype": "float32", "model.products": "plain", "model.kernel": "xla",
  "model.remat": "none", "model.unroll": 1, "model.fuse_projections": False,
  "objective.chunk": 0, "optim.mu_dtype": "float32", "cast_once": False,
  "steps_per_call": 1,
}  # fmt: skip
TOLERANCE = {
  "nothing": 2e-5, "activations": 5e-3, "products": 2e-2, "moments": 2e-2,
}  # fmt: skip

# name -> changed keys. A change that is what a config says already is left out.
SWITCHES: dict[str, dict[str, object]] = {
  "attention: dense": {"model.kernel": "xla"},
  "attention: chunked": {"model.kernel": "chunked"},
  "attention: blocks": {"model.kernel": "blocks"},
  "loss: all logits at once": {"objective.chunk": 0},
  "loss: 1024 tokens at once": {"objective.chunk": 1024},
  "remat: full": {"model.remat": "full"},
  "remat: dots": {"model.remat": "dots"},
  "layers: scanned": {"model.unroll": 1},
  "layers: unrolled": {"model.unroll": 0},
  "projections: joined": {"model.fuse_projections": True},
  "projections: apart": {"model.fuse_projections": False},
  "weights: cast once": {"cast_once": True},
  "weights: cast at each use": {"cast_once": False},
  "float32": {"model.dtype": "float32"},
  "bfloat16": {"model.dtype": "bfloat16"},
  "products: plain": {"model.products": "plain"},
  "products: fp8": {"model.products": "fp8"},
  "first moment: bfloat16": {"optim.mu_dtype": "bfloat16"},
  "1 step in a call": {"steps_per_call": 1},
  "4 steps in a call": {"steps_per_call": 4},
}
# Keys never adopted.
OTHER_NUMBERS = ("model.dtype", "model.products", "optim.mu_dtype")


def define_flags() -> None:
  """The flags of this command."""
  flags.DEFINE_integer("steps", 50, "timed steps, in 5 windows")
  flags.DEFINE_string(
    "out", None, "JSON file (default: bench-NAME.json in this folder)"
  )
  flags.DEFINE_bool("switches", False, "flip one switch at a time")


def main() -> int:
  """The command; the exit status."""
  if FLAGS.config is None:
    raise BadConfig("--config=PATH.py is missing, such as configs/bench.py")
  if FLAGS.steps < WINDOWS:
    raise BadConfig(f"--steps={FLAGS.steps}: expected {WINDOWS} or more")
  out = default_out() if FLAGS.out is None else FLAGS.out
  if out:
    command.check_out(out)
  config = run.read(FLAGS.config)
  mesh = run.make_mesh(config)
  with jax.set_mesh(mesh):
    if FLAGS.switches:
      found = ablate(config, mesh, FLAGS.steps)
    else:
      found = measure(config, mesh, FLAGS.steps)
      print(report(found))
  if out and command.is_first():
    text = json.dumps(without_nan(found), indent=2, allow_nan=False)
    try:
      Path(out).expanduser().write_text(text + "\n")
    except OSError as error:
      raise StorageFailure(f"--out={out}: {error.strerror}") from None
    print(f"numbers in {out}")
  return 0


def default_out() -> str:
  """bench-small-bf16.json for --config=configs/bench.py:small,bf16."""
  path, _, preset = FLAGS["config"].config_filename.partition(":")
  words = ["bench", Path(path).stem, *re.findall(r"[\w.]+", preset)]
  words += ["switches"] * FLAGS.switches
  return "-".join(dict.fromkeys(words)) + ".json"


def without_nan(value):
  """The same with None for numbers that JSON does not have."""
  if isinstance(value, dict):
    return {k: without_nan(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [without_nan(v) for v in value]
  bad = isinstance(value, float) and not math.isfinite(value)
  return None if bad else value


def measure(config: run.Config, mesh, steps: int) -> dict:
  """Everything about the step of a config, as plain values.

  Figures that are not known here (the peak of an unlisted device) are absent.
  """
  r = run.build(config, mesh)
  before = ceilings(config["model"]["dtype"])
  timed = time_step(r, steps)
  after = ceilings(config["model"]["dtype"])
  seconds = timed["ms"]["median"] / 1e3
  rate = r.flops_per_step / seconds
  device = mesh.devices.flat[0]
  found = {
    "headline": headline(r),
    "config": config,
    "device": device.device_kind,
    "devices": mesh.size,
    "jax": jax.__version__,
    "kernel": attention_kernels(r),
    **timed,
    "tokens_per_second": r.tokens_per_step / seconds,
    "flops_per_second": rate,
    "residual_bytes": residual_bytes(r),
    "ceilings": {"before": before, "after": after},
    "drift": {k: after[k] / before[k] - 1 for k in before},
  }
  best = mesh.size * max(before["matmul"], after["matmul"])
  found["fraction_of_ceiling"] = rate / best
  for name, flops in (("mfu", rate), ("mfu_palm", _palm(r) / seconds)):
    value = chips.mfu(flops, device.device_kind, mesh.size)
    if value is not None:
      found[name] = value
  return found


def _palm(r: run.Run) -> float:
  return r.cost.palm * r.tokens_per_step


def attention_kernels(r: run.Run) -> str:
  """The kernels that attention uses, and in how many of the layers."""
  m, length = r.config["model"], r.config["data"]["length"]
  width, kind = m["head_dim"] or m["dim"] // m["heads"], jnp.dtype(m["dtype"])
  heads, key_heads = (
    jax.ShapeDtypeStruct((1, length, n, width), kind)
    for n in (m["heads"], m["kv_heads"])
  )
  windows = m["windows"] or (None,)
  pattern = [windows[i % len(windows)] for i in range(m["layers"])]
  looped = m["unroll"] not in (0, m["layers"]) and len(set(pattern)) > 1
  segments = jnp.zeros((1, 1)) if r.config["data"]["segments"] else None

  def kernel(window) -> str:
    if m["kernel"] != "auto":
      return m["kernel"]
    # In a loop over layers that differ, a window is not known beforehand.
    seen = Visible(
      window=jnp.zeros(()) if looped else window, segments_BT=segments
    )
    return kernels.resolve(heads, key_heads, seen, m["attention_softcap"])

  counts = collections.Counter((kernel(w), w is not None) for w in pattern)
  parts = [
    f"{name}{', windowed' * windowed}, in {n} of {m['layers']} layers"
    for (name, windowed), n in counts.items()
  ]
  if len(parts) == 1:
    return parts[0].removesuffix(f", in {m['layers']} of {m['layers']} layers")
  return "; ".join(parts)


class Timed:
  """A compiled step with its state, its batches and the times of its windows.

  The state is made when it is needed; `park` gives its memory back.
  """

  def __init__(self, r: run.Run, options: dict | None = None):
    self.run = r
    self.per_call = r.config["steps_per_call"]
    # The batches of a call repeat after as many calls.
    repeat = POOL // math.gcd(POOL, self.per_call)
    self._pool = [zipf_batch(r, i * self.per_call) for i in range(repeat)]
    start = time.perf_counter()
    lowered = r.advance().lower(r.state, self._pool[0])
    traced = time.perf_counter()
    self.compiled = lowered.compile(options)
    self.compile_seconds = time.perf_counter() - traced
    self.trace_seconds = traced - start
    memory = self.compiled.memory_analysis()
    self.temporary_bytes = getattr(memory, "temp_size_in_bytes", 0)
    self.state, self.calls, self.ms = None, 0, []
    self.losses: list[float] = []  # of each step since the state was made

  def step(self, steps: int) -> float:
    """At least so many steps; milliseconds of one, all waited for."""
    if self.state is None:
      self.state = jax.block_until_ready(self.run.init())
      self.calls, self.losses = 0, []
    calls, found = max(1, -(-steps // self.per_call)), []
    begun = time.perf_counter()
    for _ in range(calls):
      batch = self._pool[self.calls % len(self._pool)]
      self.state, metrics = self.compiled(self.state, batch)
      found.append(metrics["train/loss"])
      self.calls += 1
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
  while_stepping = reset_peak()
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
    "peak_bytes": peak_bytes(device),
    "peak_of": peak_of(device, while_stepping),
    "library_calls": library_calls(timed.compiled.as_text()),
  }


def zipf_batch(r: run.Run, first: int) -> dict[str, jax.Array]:
  """The batches of one call from step `first` on, all tokens counted.

  The ids have Zipf's frequencies. A step's batch is one of POOL, the same
  however many steps a call has.
  """
  per_call = r.config["steps_per_call"]
  vocab = r.config["model"]["vocab"]
  shares = np.cumsum(1.0 / (np.arange(vocab) + 2.7))
  rows, length = r.batch["tokens"].shape
  draws = [np.random.default_rng((first + i) % POOL) for i in range(per_call)]
  ids = np.stack([draw.random((rows, length + 1)) for draw in draws])
  ids = np.searchsorted(shares, ids * shares[-1]).astype(np.int32)
  values = {
    "tokens": ids[..., :-1],
    "targets": ids[..., 1:],
    "weights": np.ones((per_call, rows, length), np.float32),
    "segments": np.ones((per_call, rows, length), np.int32),
    "positions": np.broadcast_to(
      np.arange(length, dtype=np.int32), (per_call, rows, length)
    ),
  }
  placed = {}
  for name, x in r.batch.items():
    if per_call == 1:
      placed[name] = jax.device_put(values[name][0], x.sharding)
      continue
    laid = sharding.shardings(".BT", values[name].shape, r.mesh)
    placed[name] = jax.device_put(values[name], laid)
  return placed


def residual_bytes(r: run.Run) -> int:
  """What automatic differentiation keeps for the backward pass, in bytes.

  Traced, not compiled: the compiler may keep less. Parameters and the batch
  are not counted, unstacked slices of parameters are.
  """

  def kept(params, batch):
    def loss(params):
      return r.score(params, batch, None)["loss"].sum

    _, backward = jax.vjp(loss, params)
    given = {id(x) for x in jax.tree.leaves((params, batch))}
    return [x for x in jax.tree.leaves(backward) if id(x) not in given]

  found = jax.eval_shape(kept, r.state.params, r.batch)
  return sum(x.size * x.dtype.itemsize for x in found)


def reset_peak() -> bool:
  """Starts the process's mark of peak memory anew, where the system can."""
  try:
    Path("/proc/self/clear_refs").write_text("5")
  except OSError:
    return False
  return True


def peak_bytes(device: jax.Device) -> int:
  """The most memory in use: the device's; on a CPU the process's."""
  stats = device.memory_stats() or {}
  if "peak_bytes_in_use" in stats:
    return stats["peak_bytes_in_use"]
  try:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024
  except (OSError, TypeError):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def peak_of(device: jax.Device, while_stepping: bool) -> str:
  """What and when `peak_bytes` is about."""
  if "peak_bytes_in_use" in (device.memory_stats() or {}):
    return "the device, since the process began"
  when = "in the timed steps" if while_stepping else "since it began"
  return f"the whole process, {when}"


def free_bytes(device: jax.Device) -> int:
  """Memory that is not in use yet; 0 where that is not known."""
  stats = device.memory_stats() or {}
  if "bytes_limit" in stats:
    return stats["bytes_limit"] - stats["bytes_in_use"]
  try:
    found = Path("/proc/meminfo").read_text()
    return int(re.search(r"MemAvailable:\s*(\d+) kB", found)[1]) * 1024
  except (OSError, TypeError):
    return 0


def library_calls(program: str) -> dict[str, int]:
  """How often a compiled program calls or names what libraries offer."""
  words = {
    "cudnn attention": '"__cudnn$fmha',
    "cublas": '"__cublas$',
    "cublas fp8": '"__cublas$lt$matmul$f8',
    "triton": '"__triton',
    "mosaic": '"tpu_custom_call"',
    "ynnpack": '"__ynn_fusion"',
    "onednn": '"__onednn$',
    "dot": " dot(",
    "scatter": " scatter(",
    "loops": " while(",
    "all-reduce": " all-reduce",
    "all-gather": " all-gather",
    "reduce-scatter": " reduce-scatter",
  }
  counts = {name: program.count(word) for name, word in words.items()}
  return {name: n for name, n in counts.items() if n}


# Ceilings.


def ceilings(dtype: str) -> dict[str, float]:
  """FLOP/s of a large matrix product in `dtype`, bytes/s of a copy; 1 device.

  On random data: zeros draw less power and flatter a GPU by a tenth.
  """
  on_cpu = jax.default_backend() == "cpu"
  size, length = (2048, 2**25) if on_cpu else (8192, 2**29)
  x, y = jax.random.normal(jax.random.key(0), (2, size, size), jnp.dtype(dtype))
  product = jax.jit(
    lambda x, y: jnp.matmul(x, y, preferred_element_type=jnp.float32)
  )
  seconds = _best(product, x, y)
  long = jax.random.normal(jax.random.key(1), (length,), jnp.float32)
  copy = jax.jit(lambda x: -x)
  moved = 2 * long.size * long.dtype.itemsize
  return {"matmul": 2 * size**3 / seconds, "copy": moved / _best(copy, long)}


def _best(f: Callable, *args, calls: int = 10, repeats: int = 5) -> float:
  """Seconds of one call: the median of `repeats` means."""
  jax.block_until_ready(f(*args))
  means = []
  for _ in range(repeats):
    start = time.perf_counter()
    for _ in range(calls):
      out = f(*args)
    jax.block_until_ready(out)
    means.append((time.perf_counter() - start) / calls)
  return statistics.median(means)


# Switches.


@dataclasses.dataclass
class Line:
  """One row of the table: a config, and what was found about it."""

  name: str
  change: dict
  config: run.Config
  timed: Timed | None = None
  loss: float = math.nan  # after LOSS_STEPS
  refused: str = ""
  options: dict | None = None  # of the compiler


def ablate(config: run.Config, mesh, steps: int) -> dict:
  """The best setting, then with one switch flipped at a time; prints."""
  reference = Line("float32, all plain", PLAIN, changed(config, PLAIN))
  prepare(reference, mesh)
  reference.timed = None  # only its loss is of use
  best, adopted = config, {}
  known: dict[str, Line] = {}
  for left in reversed(range(PASSES)):
    lines = lines_of(config, best, known)
    for line in known.values():
      if line.timed and not any(line is other for other in lines):
        line.timed.park()
    together = take_turns(lines, mesh, steps)
    better = faster(lines) if left else {}
    if not better:
      break
    print("adopted: " + ", ".join(better), flush=True)
    adopted |= better
    for change in better.values():
      best = changed(best, change)
  if not together:
    print("The states do not fit side by side: each turn starts a fresh one.")
  print("\n" + lines_table(lines, reference.loss))
  return {
    "config": config,
    "best": best,
    "adopted": adopted,
    "jax": jax.__version__,
    "device": mesh.devices.flat[0].device_kind,
    "reference_loss": reference.loss,
    "states_side_by_side": together,
    "switches": told(lines, reference.loss),
  }


def lines_of(
  config: run.Config, best: run.Config, known: dict[str, Line]
) -> list[Line]:
  """The best setting and its neighbours; those of `known` are not made anew."""
  wanted = [("best" if best != config else "as configured", {}, best)]
  if best != config:
    wanted.append(("as configured", {}, config))
  wanted += [(n, c, changed(best, c)) for n, c in switches(best)]
  lines = []
  for name, change, what in wanted:
    if what == config and lines and name != "as configured":
      continue  # this flip leads back to the line above
    line = known.setdefault(run.fingerprint(what), Line(name, change, what))
    line.name, line.change = name, change
    lines.append(line)
  return lines


def prepare(line: Line, mesh) -> None:
  """Compiles and takes the first steps; a refusal is kept in the line."""
  try:
    line.timed = Timed(run.build(line.config, mesh), line.options)
    line.timed.step(LOSS_STEPS)
    line.loss = line.timed.losses[LOSS_STEPS - 1]
  except BadConfig as refusal:
    line.refused = command.text_of(refusal)
  except jax.errors.JaxRuntimeError as error:
    line.timed, line.refused = None, "does not fit into memory"
    if "RESOURCE_EXHAUSTED" not in str(error):
      if not line.options:
        raise
      line.refused = str(error).splitlines()[0]


def take_turns(lines: list[Line], mesh, steps: int) -> bool:
  """Times all the lines, window by window; whether their states fit at once."""
  device = mesh.devices.flat[0]
  together = True
  for line in lines:
    if line.timed is None and not line.refused:
      prepare(line, mesh)
      print(f"{line.name}: {line.refused or 'compiled'}", flush=True)
    if line.timed is None:
      if line is lines[0]:
        raise BadConfig(line.refused)
      continue
    state = tree.nbytes(line.timed.run.state)
    if not together or free_bytes(device) < 2 * state + _largest(lines):
      together = False
      for other in lines:
        if other.timed:
          other.timed.park()
  running = [line.timed for line in lines if line.timed is not None]
  for timed in running:
    timed.ms = []
    if not together:
      timed.park()
  for turn in range(WINDOWS):
    for timed in running[:: -1 if turn % 2 else 1]:
      if timed.state is None:
        timed.step(1)
      timed.window(steps // WINDOWS)
      if not together:
        timed.park()
  return together


def _largest(lines: list[Line]) -> int:
  """The most temporary memory of a step."""
  return max(line.timed.temporary_bytes for line in lines if line.timed)


def faster(lines: list[Line]) -> dict[str, dict]:
  """{name: change} of the flip that beats the first line by most, if one does.

  By LEAST and in every turn but one: what noise does not do. One at a time:
  two that help alone may hurt together.
  """
  ratios = {}
  for line in lines[1:]:
    if line.timed and line.change and not set(line.change) & set(OTHER_NUMBERS):
      each = _ratios(line, lines[0])
      second = sorted(each)[-2]
      if statistics.median(each) < 1 - LEAST and second < 1:
        ratios[line.name] = statistics.median(each)
  if not ratios:
    return {}
  name = min(ratios, key=ratios.get)
  return {name: next(x.change for x in lines if x.name == name)}


def _ratios(line: Line, first: Line) -> list[float]:
  """Of the times in each turn."""
  pairs = zip(line.timed.ms, first.timed.ms, strict=True)
  return [a / b for a, b in pairs]


def tolerance(config: run.Config) -> float:
  """How far the loss of a config may be from the reference, relatively."""
  if config["optim"]["mu_dtype"] != "float32":
    return TOLERANCE["moments"]
  if config["model"]["products"] != "plain":
    return TOLERANCE["products"]
  low = config["model"]["dtype"] != "float32"
  return TOLERANCE["activations" if low else "nothing"]


def told(lines: list[Line], reference: float) -> list[dict]:
  """What was found, line by line, as plain values."""
  return [
    {
      "switch": line.name,
      "change": line.change,
      "refused": line.refused,
      **_told(line, lines[0], reference),
    }
    for line in lines
  ]


def _told(line: Line, first: Line, reference: float) -> dict:
  if line.timed is None:
    return {}
  off = line.loss / reference - 1
  each = _ratios(line, first)
  return line.timed.numbers() | {
    "ratio": statistics.median(each),
    "ratios": each,
    "loss": line.loss,
    "off_reference": off,
    "tolerance": tolerance(line.config),
    "within": abs(off) <= tolerance(line.config),
  }


def lines_table(lines: list[Line], reference: float) -> str:
  """The table for people."""
  rows = []
  for line in lines:
    if line.timed is None:
      rows.append((line.name, "", "", "", "", "", line.refused))
      continue
    one = _told(line, lines[0], reference)
    within = "within" if one["within"] else "BEYOND"
    rows.append((
      line.name, f"{one['ms']['median']:.2f}", f"{one['ratio'] - 1:+.1%}",
      f"{min(one['ratios']) - 1:+.1%} to {max(one['ratios']) - 1:+.1%}",
      f"{one['temporary_bytes'] / 2**20:,.0f}", f"{line.loss:.5f}",
      f"{one['off_reference']:+.1e}, {within} {one['tolerance']:.0e}",
    ))  # fmt: skip
  header = (
    "switch", "ms", "against first", "in each turn", "temporary MiB",
    f"loss at {LOSS_STEPS}", f"off the reference ({reference:.5f})",
  )  # fmt: skip
  return table(header, rows)


def switches(config: run.Config) -> list[tuple[str, dict]]:
  """The switches that change something here."""
  return [
    (name, change)
    for name, change in SWITCHES.items()
    if changed(config, change) != config
    and config["steps"] % change.get("steps_per_call", 1) == 0
  ]


def changed(config: run.Config, change: dict[str, object]) -> run.Config:
  """The config with dotted keys replaced."""
  new = json.loads(json.dumps(config))
  for key, value in change.items():
    *sections, last = key.split(".")
    part = new
    for section in sections:
      part = part[section]
    part[last] = value
  return new


# Words.


def report(found: dict) -> str:
  """What `measure` found, for people."""
  ms, before, after = (
    found["ms"], found["ceilings"]["before"], found["ceilings"]["after"],
  )  # fmt: skip
  drift = max(abs(x) for x in found["drift"].values())
  unstable = "  (unstable: other work on this machine?)" * (drift > DRIFT)
  calls = ", ".join(f"{n} {k}" for k, n in found["library_calls"].items())
  loss = found["loss"]
  rows = [
    ("step", f"{ms['median']:.2f} ms ({ms['min']:.2f} to {ms['max']:.2f})"),
    ("tokens/s", f"{found['tokens_per_second']:,.0f}"),
    *((k, f"{found[k]:.1%}") for k in ("mfu", "mfu_palm") if k in found),
    ("of the matmul ceiling", f"{found['fraction_of_ceiling']:.1%}"),
    ("matmul ceiling", _two(before, after, "matmul", 1e12, "TFLOP/s")),
    ("copy ceiling", _two(before, after, "copy", 1e9, "GB/s")),
    ("drift of the ceilings", f"at most {drift:.1%}{unstable}"),
    ("attention", found["kernel"]),
    ("in the program", calls),
    ("tracing", f"{found['trace_seconds']:.1f} s"),
    ("compiling", f"{found['compile_seconds']:.1f} s"),
    ("saved activations", f"{found['residual_bytes'] / 2**20:,.0f} MiB"),
    ("temporary", f"{found['temporary_bytes'] / 2**20:,.0f} MiB"),
    ("state", f"{found['state_bytes'] / 2**20:,.0f} MiB"),
    (
      "peak memory",
      f"{found['peak_bytes'] / 2**20:,.0f} MiB ({found['peak_of']})",
    ),
    (
      f"loss at step {loss['steps']}",
      f"{loss['last']:.4f} (from {loss['first']:.4f})",
    ),
  ]
  width = max(len(name) for name, _ in rows)
  lines = [f"{name:<{width}}  {value}" for name, value in rows]
  return "\n".join([found["headline"], *lines])


def _two(before: dict, after: dict, key: str, unit: float, name: str) -> str:
  first, last = before[key] / unit, after[key] / unit
  return f"{first:,.3g} {name} before, {last:,.3g} after"


if __name__ == "__main__":
  define_flags()
  command.main(main, config=True)
