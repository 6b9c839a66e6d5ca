"""How often a classifier reads from a drawn image what it was asked to show.

  python -m experiments.diffusion.judge DIT_RUN CLASSIFIER_RUN [--each=50]

Both are work directories of configs/dit.py:tiny,digits and
configs/digits.py:resnet.
"""

import argparse
import json

import jax
import numpy as np

from aigc_jax import run
from aigc_jax.layers.report import STATS


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("drawing")
  parser.add_argument("judging")
  parser.add_argument("--each", type=int, default=50)
  given = parser.parse_args()
  drawing = run.load(given.drawing, weights="average")
  judge = run.load(given.judging)
  classes = drawing.model.classes
  labels = np.repeat(np.arange(classes), given.each)
  data = judge.config["data"]
  mean, std = (np.asarray(data[k], np.float32) for k in ("mean", "std"))

  @jax.jit
  def read(images):
    variables = {"params": judge.params, STATS: judge.fixed.stats}
    return judge.model.apply(variables, {"images": images}).logits().argmax(-1)

  for guidance in (1.0, 2.0):
    for steps in (4, 16, 50):
      sampler = drawing.sampler(
        sampler="heun", steps=steps, guidance=guidance, seed=0
      )
      drawn = sampler(np.arange(len(labels)), labels, 100)
      told = np.asarray(read((drawn / np.float32(255) - mean) / std))
      right = float((told == labels).mean())
      print(json.dumps(dict(guidance=guidance, steps=steps, right=right)))


if __name__ == "__main__":
  main()
