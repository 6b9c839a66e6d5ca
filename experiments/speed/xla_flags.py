"""What flags of the compiler do to the step, one at a time and in turns.

  python -m experiments.speed.xla_flags --config=configs/bench.py:gpt2_124m

The table is that of `bench --switches`: the first line is without any flag,
and losses are compared with its own. A flag that this compiler does not know
is told in its line.
"""

import json

import jax
from absl import flags

from aigc_jax import bench, command, run, sharding
from aigc_jax.errors import BadConfig
from aigc_jax.timing import switches

# platform -> options of the compiler, one set a line.
OPTIONS = {
  "gpu": (
    {"xla_gpu_enable_triton_gemm": False},
    {"xla_gpu_enable_cublaslt": True},
    {"xla_gpu_cudnn_gemm_fusion_level": 2},
    {"xla_gpu_exhaustive_tiling_search": True},
    {"xla_gpu_enable_dynamic_slice_fusion": True},
    {"xla_gpu_experimental_enable_fusion_autotuner": True},
    {"xla_gpu_experimental_enable_triton_warp_specialization": True},
  ),
  "cpu": (
    {"xla_cpu_prefer_vector_width": 512},
    {"xla_cpu_enable_fast_math": True},
    {"xla_cpu_enable_fast_min_max": True},
    {"xla_cpu_enable_concurrency_optimized_scheduler": False},
    {"xla_cpu_copy_insertion_use_region_analysis": True},
  ),
  "tpu": (
    {"xla_tpu_scoped_vmem_limit_kib": 98304},
    {"xla_tpu_enable_latency_hiding_scheduler": False},
  ),
}


def main() -> int:
  if flags.FLAGS.config is None:
    raise BadConfig("--config=PATH.py is missing, such as configs/bench.py")
  config = run.read(flags.FLAGS.config)
  mesh = run.make_mesh(config)
  with jax.set_mesh(mesh):
    lines = [switches.Line("no flag", {}, config)]
    for options in OPTIONS[sharding.platform()]:
      name = " ".join(f"{k}={v}" for k, v in options.items())
      lines.append(switches.Line(name, options, config, options=options))
    switches.take_turns(lines, mesh, flags.FLAGS.steps)
  print("\n" + switches.lines_table(lines, lines[0].loss))
  print(json.dumps(bench.without_nan(switches.told(lines, lines[0].loss))))
  return 0


if __name__ == "__main__":
  flags.DEFINE_integer("steps", 50, "timed steps of each, in 10 windows")
  command.main(main, config=True)
