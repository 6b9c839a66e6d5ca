"""Times the step that training runs, and what the machine can do at best.

  python -m aigc_jax.bench --config=configs/bench.py:small
  python -m aigc_jax.bench --config=configs/bench.py:small,bf16 --switches

The step is `run.build(config).advance()`, its state donated, on batches that
lie on the device and whose ids are Zipf-distributed, as those of text are. Any
config will do; its data is not read.
"""

import json
import math
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from aigc_jax import chips, command, run, sharding
from aigc_jax.errors import BadConfig, StorageFailure
from aigc_jax.layers import kernels
from aigc_jax.layers.visible import Visible
from aigc_jax.planning.summary import headline, table

FLAGS = flags.FLAGS
WINDOWS = 5  # of steps; the median of their times is the result
WARM_UP = 10  # steps before the first window
POOL = 4  # batches, taken in turn
DRIFT = 0.03  # of the ceilings, above which a result is marked

# One switch at a time from the config as it is: name -> changed keys. A change
# that is what the config says already is left out.
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
  "float32": {"model.dtype": "float32"},
  "bfloat16": {"model.dtype": "bfloat16"},
  "first moment: bfloat16": {"optim.mu_dtype": "bfloat16"},
  "4 steps in a call": {"steps_per_call": 4},
}


def define_flags() -> None:
  """The flags of this command."""
  flags.DEFINE_integer("steps", 50, "timed steps, in 5 windows")
  flags.DEFINE_string("out", "", "file for the numbers, as JSON")
  flags.DEFINE_bool("switches", False, "flip one switch at a time")


def main() -> int:
  """The command; the exit status."""
  if FLAGS.config is None:
    raise BadConfig("--config=PATH.py is missing, such as configs/bench.py")
  if FLAGS.steps < WINDOWS:
    raise BadConfig(f"--steps={FLAGS.steps}: expected {WINDOWS} or more")
  if FLAGS.out:
    command.check_out(FLAGS.out)
  config = run.read(FLAGS.config)
  mesh = run.make_mesh(config)
  with jax.set_mesh(mesh):
    if FLAGS.switches:
      found = ablate(config, mesh, FLAGS.steps)
    else:
      found = measure(config, mesh, FLAGS.steps)
      print(report(found))
  if FLAGS.out and command.is_first():
    text = json.dumps(without_nan(found), indent=2, allow_nan=False)
    try:
      Path(FLAGS.out).expanduser().write_text(text + "\n")
    except OSError as error:
      raise StorageFailure(f"--out={FLAGS.out}: {error.strerror}") from None
  return 0


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
    "kernel": attention_kernel(r),
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


def attention_kernel(r: run.Run) -> str:
  """The kernel that attention uses; what "auto" means here."""
  m, length = r.config["model"], r.config["data"]["length"]
  if m["kernel"] != "auto":
    return m["kernel"]
  shape = (1, length, m["heads"], m["head_dim"])
  q_BTNH = jax.ShapeDtypeStruct(shape, jnp.dtype(m["dtype"]))
  segments = jnp.zeros((1, 1)) if r.config["data"]["segments"] else None
  visible = Visible(segments_BT=segments)
  return kernels.resolve(q_BTNH, q_BTNH, visible, m["attention_softcap"])


def time_step(r: run.Run, steps: int) -> dict:
  """Compiles and times the step; the loss says whether it still learns."""
  per_call = r.config["steps_per_call"]
  pool = [zipf_batch(r, seed) for seed in range(POOL)]
  state = jax.block_until_ready(r.init())
  start = time.perf_counter()
  lowered = r.advance().lower(state, pool[0])
  traced = time.perf_counter()
  compiled = lowered.compile()
  done = time.perf_counter()
  calls = 0

  def go(count: int, state):
    nonlocal calls
    for _ in range(count):
      state, metrics = compiled(state, pool[calls % POOL])
      calls += 1
    return jax.block_until_ready((state, metrics))

  state, first = go(1, state)
  state, _ = go(-(-WARM_UP // per_call), state)
  count = max(1, steps // (WINDOWS * per_call))
  times = []
  for _ in range(WINDOWS):
    begun = time.perf_counter()
    state, metrics = go(count, state)
    elapsed = time.perf_counter() - begun
    times.append(elapsed * 1e3 / (count * per_call))
  memory = compiled.memory_analysis()
  return {
    "ms": {
      "median": statistics.median(times),
      "min": min(times),
      "max": max(times),
    },
    "trace_seconds": traced - start,
    "compile_seconds": done - traced,
    "loss": {
      "first": float(np.ravel(first["train/loss"])[0]),
      "last": float(np.ravel(metrics["train/loss"])[-1]),
      "steps": calls * per_call,
    },
    "peak_bytes": peak_bytes(r.mesh.devices.flat[0]),
    "temporary_bytes": getattr(memory, "temp_size_in_bytes", 0),
    "library_calls": library_calls(compiled.as_text()),
  }


def zipf_batch(r: run.Run, seed: int) -> dict[str, jax.Array]:
  """A batch for one call, its ids at Zipf's frequencies, all tokens counted."""
  draw = np.random.default_rng(seed)
  per_call = r.config["steps_per_call"]
  vocab = r.config["model"]["vocab"]
  shares = np.cumsum(1.0 / (np.arange(vocab) + 2.7))
  rows, length = r.batch["tokens"].shape
  ids = draw.random((per_call, rows, length + 1)) * shares[-1]
  ids = np.searchsorted(shares, ids).astype(np.int32)
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


def peak_bytes(device: jax.Device) -> int:
  """The most memory in use so far: the device's; on a CPU the process's."""
  stats = device.memory_stats() or {}
  if "peak_bytes_in_use" in stats:
    return stats["peak_bytes_in_use"]
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak * (1 if sys.platform == "darwin" else 1024)


def library_calls(program: str) -> dict[str, int]:
  """How often a compiled program calls or names what libraries offer."""
  words = {
    "cudnn attention": '"__cudnn$fmha',
    "cublas": '"__cublas$',
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


def ablate(config: run.Config, mesh, steps: int) -> dict:
  """The config as it is, then with one switch flipped at a time; prints."""
  rows, found = [], []
  base = None
  for name, change in [("as configured", {}), *switches(config), ("again", {})]:
    try:
      one = time_step(run.build(changed(config, change), mesh), steps)
    except BadConfig as refusal:
      rows.append((name, "", "", "", str(refusal)))
      continue
    ms = one["ms"]["median"]
    base = base or ms
    found.append({"switch": name, "change": change, **one})
    rows.append((
      name, f"{ms:.2f}", f"{ms / base - 1:+.1%}",
      f"{one['temporary_bytes'] / 2**20:,.0f}", f"{one['loss']['last']:.4f}",
    ))  # fmt: skip
    print(f"{name}: {ms:.2f} ms", flush=True)
  header = ("switch", "ms", "against first", "temporary MiB", "loss")
  print("\n" + table(header, rows))
  return {"config": config, "jax": jax.__version__, "switches": found}


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
    ("copy ceiling", _two(before, after, "copy", 1e9, "GB/s") + unstable),
    ("attention", found["kernel"]),
    ("in the program", calls),
    ("tracing", f"{found['trace_seconds']:.1f} s"),
    ("compiling", f"{found['compile_seconds']:.1f} s"),
    ("kept for backward", f"{found['residual_bytes'] / 2**20:,.0f} MiB"),
    ("temporary", f"{found['temporary_bytes'] / 2**20:,.0f} MiB"),
    ("peak memory", f"{found['peak_bytes'] / 2**20:,.0f} MiB"),
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
