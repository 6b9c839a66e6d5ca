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

import json
import math
import re
from pathlib import Path

from aigc_jax import memory

if __name__ == "__main__":
  memory.keep_freed()  # as training does

import jax
from absl import flags

from aigc_jax import chips, command, files, run
from aigc_jax.errors import BadConfig
from aigc_jax.planning.summary import headline
from aigc_jax.run import script
from aigc_jax.timing import embedding, machine
from aigc_jax.timing.program import attention_kernels, residual_bytes
from aigc_jax.timing.stepping import WINDOWS, time_step
from aigc_jax.timing.switches import ablate

FLAGS = flags.FLAGS
DRIFT = 0.03  # of the ceilings, above which a result is marked


def define_flags() -> None:
  """The flags of this command."""
  flags.DEFINE_integer(
    "steps", 50, "timed steps, in 5 windows (with --switches, in 10)"
  )
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
  command.quiet_compiler()
  with jax.set_mesh(mesh):
    if FLAGS.switches:
      found = ablate(config, mesh, FLAGS.steps)
    else:
      found = measure(config, mesh, FLAGS.steps)
      print(report(found))
  if out and command.is_first():
    text = json.dumps(without_nan(found), indent=2, allow_nan=False)
    files.write_out(out, text + "\n")
    print(f"numbers in {out}")
  return 0


def default_out() -> str:
  """bench-small-bf16.json for --config=configs/bench.py:small,bf16."""
  path, _, preset = script.parted(command.config_given())
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
  # Of what products multiply; of 8 bits, of what all others do.
  dtype = r.model.operand_dtype
  before = machine.ceilings(dtype)
  timed = time_step(r, steps)
  after = machine.ceilings(dtype)
  seconds = timed["ms"]["median"] / 1e3
  rate = r.flops_per_step / seconds
  device = mesh.devices.flat[0]
  found = {
    "headline": headline(r, "steps"),
    "config": config,
    "device": device.device_kind,
    "devices": mesh.size,
    "jax": jax.__version__,
    "kernel": attention_kernels(r),
    "embedding_gradient": {
      "form": embedding.gradient_form(r),
      "alone_ms": embedding.gradient_ms(r),
    }
    if "embed_gradient" in run.keywords(config) and "tokens" in r.batch
    else {},
    **timed,
    "unit": r.unit,
    f"{r.unit}_per_second": r.units_per_step / seconds,
    "flops_per_second": rate,
    "residual_bytes": residual_bytes(r),
    "ceilings": {"before": before, "after": after},
    "drift": {k: after[k] / before[k] - 1 for k in before},
  }
  best = mesh.size * max(before["matmul"], after["matmul"])
  found["fraction_of_ceiling"] = rate / best
  rates = {"mfu": rate}
  if r.cost is not None:
    rates["mfu_palm"] = r.cost.palm * r.units_per_step / seconds
  for name, flops in rates.items():
    value = chips.mfu(flops, device.device_kind, mesh.size)
    if value is not None:
      found[name] = value
  return found


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
    (f"{found['unit']}/s", f"{found[found['unit'] + '_per_second']:,.0f}"),
    *((k, f"{found[k]:.1%}") for k in ("mfu", "mfu_palm") if k in found),
    ("of the matmul ceiling", f"{found['fraction_of_ceiling']:.1%}"),
    ("matmul ceiling", _two(before, after, "matmul", 1e12, "TFLOP/s")),
    ("copy ceiling", _two(before, after, "copy", 1e9, "GB/s")),
    ("drift of the ceilings", f"at most {drift:.1%}{unstable}"),
    *([("attention", found["kernel"])] if found["kernel"] else []),
    *(
      [("embedding gradient", _embedding(found["embedding_gradient"]))]
      if found["embedding_gradient"]
      else []
    ),
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


def _embedding(found: dict) -> str:
  alone = ", ".join(f"{k} {ms:.3g} ms" for k, ms in found["alone_ms"].items())
  return f"{found['form']} (alone: {alone})"


def _two(before: dict, after: dict, key: str, unit: float, name: str) -> str:
  first, last = before[key] / unit, after[key] / unit
  return f"{first:,.3g} {name} before, {last:,.3g} after"


if __name__ == "__main__":
  define_flags()
  command.main(main, config=True)
