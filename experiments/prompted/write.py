"""Digits of scikit-learn with captions, some of whose combinations are missing.

  python -m experiments.prompted.write FOLDER

writes FOLDER/captions.jsonl and the images beside it. Of the four ways to
caption a digit one is never used for it: `held_out` says which.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

WORDS = (
  "zero", "one", "two", "three", "four", "five", "six", "seven", "eight",
  "nine",
)  # fmt: skip
WAYS = ("a {}", "the digit {}", "a handwritten {}", "somebody wrote a {}")


def held_out(digit: int) -> int:
  """The way in which no training caption tells this digit."""
  return (digit * 3 + 1) % len(WAYS)


def caption(digit: int, way: int) -> str:
  return WAYS[way].format(WORDS[digit])


def main(folder: str) -> None:
  place, found = Path(folder), load_digits()
  place.mkdir(parents=True, exist_ok=True)
  lines = []
  for i, (image, digit) in enumerate(
    zip(found.images, found.target, strict=True)
  ):
    if i % 5 == 0:  # held out elsewhere too
      continue
    name = f"{i:04}.png"
    grey = np.round(image / 16 * 255).astype(np.uint8)
    Image.fromarray(grey).save(place / name)
    ways = [way for way in range(len(WAYS)) if way != held_out(digit)]
    own = [caption(digit, way) for way in ways]
    lines.append(json.dumps({"image": name, "caption": own}))
  (place / "captions.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
  main(sys.argv[1])
