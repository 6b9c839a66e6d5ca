"""A step that is compiled at once and timed when it is told to.

  python -m experiments.speed.on_gpu.step --size=gpt2_124m --change='{}'

Speaks in lines of JSON. First what is known once it is compiled; then, for each
line on its standard input: {"steps": N} runs so many and answers with the
milliseconds of one, {"profile": N} answers with where the time goes. It ends
with its input. So several compile side by side and take turns on one device.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import jax

from aigc_jax import chips, run, sharding, tree
from aigc_jax.timing import machine, program, stepping, switches
from configs import bench as configs
from experiments.speed.on_gpu import kinds


def answer(found: dict) -> None:
  print(json.dumps(found), flush=True)


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--size", default="gpt2_124m")
  parser.add_argument("--change", default="{}", help="JSON of dotted keys")
  parser.add_argument("--options", default="{}", help="of the compiler, JSON")
  args = parser.parse_args()
  config = run.read(configs.get_config(args.size))
  config = switches.changed(config, json.loads(args.change))
  mesh = sharding.mesh_of(jax.devices()[0])
  with jax.set_mesh(mesh):
    r = run.build(config, mesh)
    timed = stepping.Timed(r, json.loads(args.options) or None)
    began = time.monotonic()
    text = timed.compiled.as_text()
    kind = mesh.devices.flat[0].device_kind
    answer(
      {
        "compile_seconds": time.monotonic() - began,
        "trace_seconds": timed.trace_seconds,
        "temporary_bytes": timed.temporary_bytes,
        "state_bytes": tree.nbytes(r.state),
        "kernel": program.attention_kernels(r),
        "calls": program.library_calls(text),
        "units": r.units_per_step,
        "flops": r.flops_per_step,
        "palm": r.cost.palm * r.units_per_step,
        "mfu of 1 FLOP/s": chips.mfu(1.0, kind, 1),
      }
    )
    for line in sys.stdin:
      asked = json.loads(line)
      if "steps" in asked:
        answer(
          {
            "ms": timed.step(asked["steps"]),
            "loss": timed.losses[-1],
            "steps": len(timed.losses),
            "peak_bytes": machine.peak_bytes(mesh.devices.flat[0]),
          }
        )
      else:
        with tempfile.TemporaryDirectory() as folder:
          with jax.profiler.trace(folder):
            timed.step(asked["profile"])
          answer(kinds.shares(kinds.events(Path(folder))))


if __name__ == "__main__":
  main()
