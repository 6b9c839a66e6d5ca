"""Images per second of a small DiT beside diffusers, in turns.

  python -m experiments.speed.families.drawing [--turns=5] [--steps=20]
      [--rows=16] [--eager] [--out=x.json]

The size that its step is timed in, with fresh weights, in float32: Euler's
steps along the same path, without guidance, from noise to whole pixels. The
peer is diffusers' model with its own scheduler, eager and by torch.compile.
"""

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import diffusers
import jax
import numpy as np
import torch
from torch import nn

from aigc_jax import run, sharding, tree
from aigc_jax.layers.cpu import onednn
from aigc_jax.objectives.paths import Path as ImagePath
from aigc_jax.presets import timed
from aigc_jax.sampling.images import Sampler
from configs import bench
from experiments.speed.families.pictures import dit_of
from experiments.speed.families.sizes import OURS

NAME = OURS["dit"]


def ours(
  steps: int, labels: np.ndarray, library: Callable
) -> tuple[int, Callable]:
  """(how many parameters, what draws an image for each label)."""
  r = run.build(run.read(bench.get_config(NAME)))
  state = r.init()
  draw = Sampler(
    r.model, {"params": state.params}, ImagePath("velocity"), mean=[0.5] * 3,
    std=[0.5] * 3, sampler="euler", steps=steps, guidance=1.0, seed=0,
    library=library,
  )  # fmt: skip
  numbers = np.arange(len(labels))
  return tree.count(state.params), lambda: draw(numbers, labels, len(labels))


def theirs(
  model: nn.Module, steps: int, labels: np.ndarray, shape: tuple[int, ...]
) -> Callable:
  scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
  told = torch.as_tensor(labels, dtype=torch.long)

  def draw() -> np.ndarray:
    scheduler.set_timesteps(steps)
    noise = torch.randn((len(labels), *shape))
    with torch.inference_mode():
      for t in scheduler.timesteps:
        slope = model(noise, t.expand(len(labels)), class_labels=told).sample
        noise = scheduler.step(slope, t, noise).prev_sample
    images = (noise * 0.5 + 0.5).clamp(0, 1) * 255
    return images.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()

  return draw


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--turns", type=int, default=5)
  parser.add_argument("--steps", type=int, default=20)
  parser.add_argument("--rows", type=int, default=16)
  parser.add_argument("--eager", action="store_true", help="not compiled")
  parser.add_argument("--out", type=Path)
  args = parser.parse_args()
  config = timed.small(NAME)
  m, labels = config.model, np.arange(args.rows) % config.model.classes
  torch.manual_seed(0)
  peer = dit_of(config).eval()
  shape = (m.channels, m.image_size, m.image_size)
  with jax.set_mesh(sharding.mesh_of(jax.devices()[0])):
    count, own = ours(args.steps, labels, contextlib.nullcontext)
    _, by_onednn = ours(args.steps, labels, onednn.preferred)
    other = sum(p.numel() for p in peer.parameters() if p.requires_grad)
    if count != other:
      raise ValueError(f"these are not the same model: {count} and {other}")
    eager = theirs(peer, args.steps, labels, shape)
    made = {"ours": own, "ours, oneDNN": by_onednn, "eager": eager}
    if not args.eager:
      compiled = torch.compile(peer)
      made["compiled"] = theirs(compiled, args.steps, labels, shape)
    for draw in made.values():  # compiles
      assert draw().shape == (args.rows, *shape[1:], shape[0])
    seconds: dict[str, list[float]] = {what: [] for what in made}
    for turn in range(args.turns):
      for what in list(made)[:: -1 if turn % 2 else 1]:
        began = time.perf_counter()
        made[what]()
        seconds[what].append(time.perf_counter() - began)
  found = {k: args.rows / statistics.median(v) for k, v in seconds.items()}
  print(f"{args.rows} images, {args.steps} steps, {count:,} parameters")
  for what, rate in found.items():
    best = max(found["ours"], found["ours, oneDNN"]) / rate
    print(f"{what}: {rate:.2f} images/s (ours has {best:.2f} of its rate)")
  if args.out:
    said = dict(found, rows=args.rows, steps=args.steps, seconds=seconds)
    args.out.write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
  main()
