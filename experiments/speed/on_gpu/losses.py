"""Losses of 20 steps of a small decoder, and a digest of what it became.

  python -m experiments.speed.on_gpu.losses --change='{"compute.remat": "full"}'

Prints one line of JSON.
"""

import argparse
import json

import jax
import numpy as np

from aigc_jax import run, sharding, tree
from aigc_jax.timing import program, stepping, switches
from configs import bench as configs

STEPS = 20
MODEL = dict(layers=3, dim=256, heads=4, kv_heads=2, vocab=2000)


def config_of(change: dict) -> run.Config:
  config = configs.get_config("tiny,bf16")
  config.model.update(MODEL)
  config.compute.update(steps_per_call=1, unroll=None)
  config.data.update(batch=8, length=128)
  config.objective.chunk = 256
  config.optim.update(learning_rate=1e-4, warmup_steps=4)
  return switches.changed(run.read(config), change)


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--change", default="{}", help="JSON of dotted keys")
  parser.add_argument("--steps", type=int, default=STEPS)
  args = parser.parse_args()
  config = config_of(json.loads(args.change))
  mesh = sharding.mesh_of(jax.devices()[0])
  with jax.set_mesh(mesh):
    r = run.build(config, mesh)
    timed = stepping.Timed(r)
    timed.step(args.steps)
    found = {
      "losses": timed.losses[: args.steps],
      "digest": np.ravel(jax.jit(tree.digest)(timed.state.params)).tolist(),
      "kernel": program.attention_kernels(r),
      "calls": program.library_calls(timed.compiled.as_text()),
    }
  print(json.dumps(found))


if __name__ == "__main__":
  main()
