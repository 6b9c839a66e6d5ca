"""How often a classifier reads from a drawn image what it was asked to show.

And how near drawn images, and real ones that are held out, lie to one that the
model was trained on: the median of root mean squares of pixels from 0 to 1.

  python -m experiments.diffusion.judge DIT_RUN CLASSIFIER_RUN [--each=50]

Both are work directories of configs/dit.py:tiny,digits and
configs/digits.py:resnet.
"""

import argparse
import json

import jax
import numpy as np
from sklearn.datasets import load_digits

from aigc_jax import run
from aigc_jax.layers.report import STATS


def nearest(images: np.ndarray, known: np.ndarray) -> np.ndarray:
  """Root mean square to the nearest of `known` (K, 64), of images (N, 64)."""
  squares = ((images[:, None] - known[None]) ** 2).mean(-1)
  return np.sqrt(squares.min(axis=1))


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

  pixels = load_digits().data / 16
  held = np.arange(len(pixels)) % 5 == 0
  real = nearest(pixels[held], pixels[~held])
  print(
    json.dumps(
      dict(
        held_out_from_training=float(np.median(real)), least=float(real.min())
      )
    )
  )
  for guidance in (1.0, 2.0):
    for steps in (4, 16, 50):
      sampler = drawing.sampler(
        sampler="heun", steps=steps, guidance=guidance, seed=0
      )
      drawn = sampler(np.arange(len(labels)), labels, 100)
      told = np.asarray(read((drawn / np.float32(255) - mean) / std))
      right = float((told == labels).mean())
      near = nearest(drawn.reshape(len(drawn), -1) / 255, pixels[~held])
      print(
        json.dumps(
          dict(
            guidance=guidance, steps=steps, right=right,
            from_training=float(np.median(near)), least=float(near.min()),
          )
        )
      )  # fmt: skip


if __name__ == "__main__":
  main()
