"""Bits per pixel of the held-out digits as PNG files, as pixels alone.

  python -m experiments.vae.png

Laid out in several ways, since a file of 64 pixels is mostly its own head.
"""

import io
import json

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def bits(pixels: np.ndarray) -> int:
  """Of one PNG file, as small as Pillow makes it."""
  out = io.BytesIO()
  Image.fromarray(pixels).save(out, format="PNG", optimize=True)
  return 8 * len(out.getvalue())


def main() -> None:
  images = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
  is_held = np.arange(len(images)) % 5 == 0
  held, seen = images[is_held], images[~is_held]
  sheet = held.reshape(18, 20, 8, 8).transpose(0, 2, 1, 3).reshape(144, 160)
  counts = np.bincount(seen.ravel(), minlength=256) + 1e-3
  share = counts / counts.sum()
  found = {
    "a file for each": sum(bits(x) for x in held),
    "one column": bits(held.reshape(-1, 8)),
    "a sheet of 18 x 20": bits(sheet),
    "a line for each": bits(held.reshape(len(held), -1)),
    "one row": bits(held.transpose(1, 0, 2).reshape(8, -1)),
    "each pixel by the shares of the greys": -np.log2(share[held]).sum(),
  }
  for name, total in found.items():
    print(json.dumps({name: round(float(total) / held.size, 3)}))


if __name__ == "__main__":
  main()
