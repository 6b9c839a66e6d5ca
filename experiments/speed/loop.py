"""What the loop adds to the step of the bench, at steps of about 20 ms.

  python -m experiments.speed.loop [--steps=200] [--rounds=4] [--layers=2]

A real work directory, trained through `train.train` with the metrics that
users have (a row each 10 steps, TensorBoard, progress lines), in turns with
windows of the bench's step of the same config, in one process. The loop's time
is that between two of its own rows, far from its first step and before its last
save: compiling, saving and the last evaluation are not in it. Prints one line
of JSON; `added` is the median over rounds of loop / bench, less 1.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from pathlib import Path

from aigc_jax import memory

if __name__ == "__main__":
  memory.keep_freed()  # as training does

import jax
from absl import flags, logging

from aigc_jax import run, train
from aigc_jax.timing import stepping
from aigc_jax.trainer.journal import rows
from aigc_jax.trainer.lock import Lock
from aigc_jax.trainer.stop import Stop
from aigc_jax.trainer.watchdog import Watchdog
from configs import bench as configs

FIRST = 20  # rows before this step are not counted: the loop is starting


def config_of(layers: int, folder: Path, steps: int) -> run.Config:
  """The tiny model of the bench, one step in a call, on text that is here."""
  text = "".join(path.read_text() for path in Path("aigc_jax").rglob("*.py"))
  (folder / "text.txt").write_text(text)
  config = configs.get_config("tiny")
  config.steps, config.compute.steps_per_call = steps, 1
  config.model.layers = layers
  config.model.vocab = 384  # bytes need 257
  config.data.update(path=str(folder / "text.txt"), root=str(folder / "stores"))
  return run.read(config)


def trained(config: run.Config, mesh, workdir: Path) -> list[dict]:
  """The rows of a whole run."""
  workdir.mkdir()
  flags.FLAGS.workdir = str(workdir)
  with (
    Lock(workdir) as lock,
    Stop(workdir) as stop,
    Watchdog(workdir, step_seconds=600, compile_seconds=600) as watchdog,
  ):
    train.train(config, mesh, workdir, stop, lock, watchdog)
  return rows(workdir / "metrics.jsonl")


def step_ms(found: list[dict]) -> float:
  """Milliseconds of a step between the rows of steps FIRST and the last."""
  timed = [r for r in found if "train/loss" in r and r["step"] >= FIRST]
  first, last = timed[0], timed[-1]
  seconds = last["seconds"] - first["seconds"]
  return seconds * 1e3 / (last["step"] - first["step"])


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--steps", type=int, default=200)
  parser.add_argument("--rounds", type=int, default=4)
  parser.add_argument("--layers", type=int, default=2)
  args = parser.parse_args()
  logging.set_verbosity(logging.WARNING)
  train.define_flags()
  flags.FLAGS([sys.argv[0]])
  looped, alone = [], []
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    cache = str(folder / "compiled")
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    config = config_of(args.layers, folder, args.steps)
    mesh = run.make_mesh(config)
    with jax.set_mesh(mesh), contextlib.redirect_stdout(sys.stderr):
      timed = stepping.Timed(run.build(config, mesh))
      timed.step(FIRST)
      for turn in range(args.rounds):
        looped.append(step_ms(trained(config, mesh, folder / str(turn))))
        alone.append(timed.step(args.steps - FIRST))
    result = json.loads((folder / "0" / "result.json").read_text())
  ratios = [a / b for a, b in zip(looped, alone, strict=True)]
  print(json.dumps({
    "loop_ms": looped,
    "bench_ms": alone,
    "added": statistics.median(ratios) - 1,
    "goodput": result["goodput"],
  }))  # fmt: skip


if __name__ == "__main__":
  main()
