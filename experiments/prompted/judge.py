"""How often a digit is drawn that its caption says, seen or never seen.

  python -m experiments.prompted.judge RUN [--weights=average] [--each=20]
      [--steps=8] [--grid=x.png]

RUN is a work directory of configs/prompted.py:digits, or of configs/dalle.py:
tiny_text or tiny_text_masked with --weights=raw, trained on what
experiments/prompted/write.py wrote. The judges are scikit-learn's nearest
neighbour and logistic regression, of the same training digits.
"""

import argparse
import json

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from aigc_jax import run
from aigc_jax.sampling import png
from experiments.prompted.write import WAYS, caption, held_out


def judges() -> dict:
  """{name: (a classifier of 8 x 8 pixels from 0 to 1, right on real ones)}."""
  found = load_digits()
  x, y = found.data / 16, found.target
  test = np.arange(len(x)) % 5 == 0
  made = {
    "nearest": KNeighborsClassifier(1),
    "logistic": LogisticRegression(max_iter=2000),
  }
  return {
    name: (m.fit(x[~test], y[~test]), float(m.score(x[test], y[test])))
    for name, m in made.items()
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("run")
  parser.add_argument("--weights", default="average")
  parser.add_argument("--each", type=int, default=20)
  parser.add_argument("--steps", type=int, default=8)
  parser.add_argument("--grid")
  given = parser.parse_args()
  drawing = run.load(given.run, weights=given.weights)
  pairs = [(d, way) for d in range(10) for way in range(len(WAYS))]
  told = drawing.told_rows(
    len(pairs), labels=(), prompts=[caption(*pair) for pair in pairs]
  )
  told = np.repeat(told, given.each, axis=0)
  digit = np.repeat([d for d, _ in pairs], given.each)
  unseen = np.repeat([way == held_out(d) for d, way in pairs], given.each)
  readers = judges()
  for guidance in (1.0, 2.0, 4.0):
    sampler = drawing.sampler(
      sampler="heun", steps=given.steps, guidance=guidance, seed=0
    )
    drawn = sampler(np.arange(len(told)), told, 200)
    found = dict(
      step=drawing.step, weights=given.weights, guidance=guidance,
      steps=given.steps, images=len(drawn),
      different=len({image.tobytes() for image in drawn}) / len(drawn),
    )  # fmt: skip
    pixels = drawn.reshape(len(drawn), -1) / 255
    for name, (reader, real) in readers.items():
      right = reader.predict(pixels) == digit
      found[name] = dict(
        real=real, seen=float(right[~unseen].mean()),
        unseen=float(right[unseen].mean()),
      )  # fmt: skip
    print(json.dumps(found), flush=True)
    if given.grid and guidance == 2.0:
      # A row of a digit: four of each way, the one that was never seen last.
      rows = []
      for d in range(10):
        ways = [w for w in range(len(WAYS)) if w != held_out(d)]
        for way in (*ways, held_out(d)):
          at = (d * len(WAYS) + way) * given.each
          rows.extend(drawn[at : at + 4])
      with open(given.grid, "wb") as file:
        file.write(png.png(png.grid(np.stack(rows), 10, 16)))


if __name__ == "__main__":
  main()
