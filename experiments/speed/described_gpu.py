r"""The step compiled for an H200 by a machine that has no GPU.

  python -m venv gpu && gpu/bin/pip install -e . "jax[cuda12]==0.10.2"
  JAX_PLATFORMS=cpu XLA_FLAGS=--xla_gpu_autotune_level=0 \
    gpu/bin/python -m experiments.speed.described_gpu --sizes=gpt2_124m

The compiler gets a description of the device instead of the device. What it
makes of the step is looked at, not timed: attention by cuDNN, no array of
positions by positions, all of the state updated in place, the memory it needs,
and the bytes it moves (`--largest=20` lists by what). Products are chosen by
rules where a GPU would have tried them out: with
--xla_gpu_enable_triton_gemm=false they are calls of a library, to be counted.
Prints one line of JSON for each size of configs/bench.py; with --together how
many kernels so many runs are, whose steps are one program.
"""

import argparse
import json
import math
import re
import time

import jax
from jax._src import xla_bridge
from jax._src.cudnn import fused_attention_stablehlo as fused
from jax.experimental import topologies

from aigc_jax import run, sharding, tree
from aigc_jax.timing import program, switches
from aigc_jax.trainer import joint
from configs import bench as configs
from experiments.speed import traffic

H200 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 150000000000
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 9 patch: 0 }
device_description_str: "NVIDIA H200"
"""


def device() -> jax.Device:
  """The described one. JAX asks the devices that are here about "gpu"."""
  known = xla_bridge.canonicalize_platform
  xla_bridge.canonicalize_platform = lambda name: (
    "cuda" if name in ("gpu", "cuda") else known(name)
  )
  fused.check_cudnn_version = lambda: 91_000
  fused.check_compute_capability = lambda *_: True
  described = topologies.get_topology_desc(
    platform="cuda", target_config=H200, topology="1x1x1"
  )
  return described.devices[0]


def scores(config: run.Config, program: str) -> int:
  """How often a program names an array as large as all the scores."""
  T = config["data"]["length"]
  heads = config["data"]["batch"] * config["model"]["heads"]
  shapes = re.findall(rf"\[((?:\d+,)+){T},{T}\]", program)
  counts = [math.prod(map(int, x.rstrip(",").split(","))) for x in shapes]
  return sum(n >= heads for n in counts)


def compiled(config: run.Config, mesh) -> dict:
  """What the compiler made of the step."""
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    r = run.build(config, mesh)
    kernel = program.attention_kernels(r)
    traced = r.advance().trace(r.state, r.batch)
  began = time.monotonic()
  compiled = traced.lower(lowering_platforms=("cuda",)).compile()
  seconds = time.monotonic() - began
  text, memory = compiled.as_text(), compiled.memory_analysis()
  moved = traffic.moved(text)
  return {
    "attention": kernel,
    "calls": program.library_calls(text),
    "arrays_of_scores": scores(config, text),
    "moved_bytes": traffic.totals(moved),
    "largest": moved,
    "updated_in_place": memory.alias_size_in_bytes / tree.nbytes(r.state),
    "state_bytes": tree.nbytes(r.state),
    "temporary_bytes": memory.temp_size_in_bytes,
    "compile_seconds": round(seconds, 1),
  }


def together(config: run.Config, mesh, runs: int) -> dict:
  """What one step of so many runs is, that differ in their learning rates."""
  rate = config["optim"]["learning_rate"]
  changes = [{"optim.learning_rate": rate * 2.0**-k} for k in range(runs)]
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    made = [run.build(switches.changed(config, x), mesh) for x in changes]
    states, batches = [r.state for r in made], [r.batch for r in made]
    step = joint.batched([r.step for r in made], states, batches)
    stack = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((runs, *x.shape), x.dtype), states[0]
    )
    traced = jax.jit(step, donate_argnums=0).trace(stack, batches)
  text = traced.lower(lowering_platforms=("cuda",)).compile().as_text()
  moved = traffic.moved(text)
  return {
    "runs": runs,
    "kernels": sum(one.calls for one in moved),
    "moved_bytes": sum(one.nbytes for one in moved),
  }


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument(
    "--together", type=int, nargs="*", default=[], metavar="K",
    help="the kernels and bytes of K runs in one step, and nothing else",
  )  # fmt: skip
  parser.add_argument("--sizes", default="gpt2_124m")
  parser.add_argument("--change", default="{}", help="JSON of dotted keys")
  parser.add_argument("--largest", type=int, default=0, metavar="N")
  args = parser.parse_args()
  sizes = dict.fromkeys(sharding.AXES, 1)
  mesh = sharding.make_mesh(**sizes, devices=[device()])
  for size in args.sizes.split(","):
    config = run.read(configs.get_config(size))
    config = switches.changed(config, json.loads(args.change))
    for runs in args.together:
      print(json.dumps({"size": size} | together(config, mesh, runs)))
    if args.together:
      continue
    found = compiled(config, mesh)
    largest = found.pop("largest")[: args.largest]
    print(json.dumps({"size": size} | found), flush=True)
    for one in largest:
      print(
        f"{one.nbytes / 1e9:8.2f} GB {one.calls:4d} x {one.kind:9s} "
        f"{one.shape[:40]:40s} {one.where[-70:]}"
      )


if __name__ == "__main__":
  main()
