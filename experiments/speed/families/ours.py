"""Our step of a family, compiled at once and timed when it is told to.

  python -m experiments.speed.families.ours NAME [--library=onednn]
      [--products=bf16] [--steps_per_call=4]

Speaks in lines of JSON: what is known once it is compiled, then for each
{"steps": N} on its standard input the milliseconds of one.
"""

import argparse
import json
import sys

from aigc_jax import memory

if __name__ == "__main__":
  memory.keep_freed()  # as training does

import jax

from aigc_jax import run, sharding, tree
from aigc_jax.timing import program, stepping, switches
from configs import bench
from experiments.speed.families.sizes import OURS


def config_of(
  name: str, library: str, products: str, per_call: int
) -> run.Config:
  """The small model, in float32."""
  how = {
    "compute.library": library, "compute.products": products,
    "compute.steps_per_call": per_call,
  }  # fmt: skip
  return switches.changed(run.read(bench.get_config(OURS[name])), how)


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("name", choices=OURS)
  parser.add_argument("--library", default="xla")
  parser.add_argument("--products", default="plain")
  parser.add_argument("--steps_per_call", type=int, default=1)
  args = parser.parse_args()
  config = config_of(
    args.name, args.library, args.products, args.steps_per_call
  )
  mesh = sharding.mesh_of(jax.devices()[0])
  with jax.set_mesh(mesh):
    r = run.build(config, mesh)
    timed = stepping.Timed(r)
    calls = program.library_calls(timed.compiled.as_text())
    said = {
      "parameters": tree.count(r.state.params),
      "compile_seconds": timed.compile_seconds,
      "flops": r.flops_per_step,
      "calls": calls,
    }
    print(json.dumps(said), flush=True)
    for line in sys.stdin:
      ms = timed.step(json.loads(line)["steps"])
      told = {"ms": ms, "loss": timed.losses[-1]}
      print(json.dumps(told), flush=True)


if __name__ == "__main__":
  main()
