"""What safety costs: the gate in every step, digest and manifest in every save.

  python -m experiments.reliability.cost --out=experiments/reliability/cost.json

The step of configs/bench.py:small; the same step with a score that costs
nothing, so that what is left is the update, with and without its gate in turn;
then the parts of a save, with the state of that run. Times are CPU seconds of
the process, all threads together, the median of several: other work on the
machine changes them little.
"""

import argparse
import contextlib
import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax import run
from aigc_jax.metrics import Mean
from aigc_jax.trainer import digests, manifest
from aigc_jax.trainer import step as step_module
from aigc_jax.trainer.checkpoint import Checkpoints
from configs import bench

EVERY = 100  # steps between two saves


def batch_of(r: run.Run) -> dict:
  """Random ids, as the benchmark takes them."""
  draw = np.random.default_rng(0)
  vocab = r.config["model"]["vocab"]
  shape = r.batch["tokens"].shape
  ids = draw.integers(0, vocab, shape).astype(np.int32)
  return {
    "tokens": jnp.asarray(ids),
    "targets": jnp.asarray(np.roll(ids, -1, 1)),
    "weights": jnp.ones(shape, jnp.float32),
  }


@contextlib.contextmanager
def ungated():
  """Without the checks for finite numbers the gate folds away."""
  with mock.patch.object(
    step_module.jnp, "isfinite", lambda x: jnp.ones(jnp.shape(x), bool)
  ):
    yield


def compiled(r: run.Run, state, batch):
  return r.advance().lower(state, batch).compile()


def updates_only(r: run.Run) -> run.Run:
  """The run with the real update, of gradients that cost nothing."""

  def score(params, batch, key):
    total = sum(x.sum() for x in jax.tree.leaves(params))
    weight = batch["weights"].sum()
    return {"loss": Mean(total * weight, weight)}

  step = step_module.make_step(score, r.optimizer, r.schedule)
  return dataclasses.replace(r, step=step)


def steps(program, state, batch, count: int) -> tuple:
  """(state, seconds of each step)."""
  seconds = []
  for _ in range(count):
    began = time.process_time()
    state, metrics = program(state, batch)
    jax.block_until_ready((state, metrics))
    seconds.append(time.process_time() - began)
  return state, seconds


def median(f, times: int) -> float:
  seconds = []
  for _ in range(times):
    began = time.process_time()
    f()
    seconds.append(time.process_time() - began)
  return statistics.median(seconds)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--out", required=True)
  parser.add_argument("--rounds", type=int, default=20)
  parser.add_argument("--steps", type=int, default=10)
  parser.add_argument("--preset", default="small")
  options = parser.parse_args()

  config = run.read(bench.get_config(options.preset))
  mesh = run.make_mesh(config)
  with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as folder:
    r = run.build(config, mesh)
    state, batch = r.init(), batch_of(r)
    state, whole_steps = steps(
      compiled(r, state, batch), state, batch, options.steps
    )
    step = statistics.median(whole_steps)
    gated = compiled(updates_only(r), state, batch)
    with ungated():  # another run: what was traced is remembered
      bare = compiled(updates_only(r), state, batch)
    timed: dict = {"gated": [], "bare": []}
    for _ in range(options.rounds):  # in turn: what disturbs disturbs both
      for name, program in (("gated", gated), ("bare", bare)):
        state, seconds = steps(program, state, batch, 3)
        timed[name] += seconds
    update = statistics.median(timed["gated"])
    gate = update - statistics.median(timed["bare"])

    checkpoints = Checkpoints(folder, every_steps=1, keep=1, keep_every_steps=0)

    def digest():
      jax.device_get(
        digests.whole(digests.summary, state, finite=("params/*",))
      )

    digest()
    digest_seconds = median(digest, 9)
    began = time.process_time()
    checkpoints.save(1, state, {})
    checkpoints.wait()
    whole = time.process_time() - began
    saved = Path(folder) / "1"
    leaves = manifest.read(saved)["leaves"]

    def write():
      manifest.write(saved, step=1, leaves=leaves, meta={})

    manifest_seconds = median(write, 9)

  found = {
    "preset": options.preset,
    "device": jax.devices()[0].device_kind,
    "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
    "step_seconds": step,
    "update_seconds": update,
    "gate_seconds": gate,
    "gate_share": gate / step,
    "digest_seconds": digest_seconds,
    "manifest_seconds": manifest_seconds,
    "save_seconds": whole,
    "share": max(0.0, gate) / step
    + (digest_seconds + manifest_seconds) / (EVERY * step),
    "every_steps": EVERY,
  }
  Path(options.out).write_text(json.dumps(found, indent=1) + "\n")
  print(json.dumps(found, indent=1))


if __name__ == "__main__":
  main()
