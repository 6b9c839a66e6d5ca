"""Images side by side, as the bytes of a PNG file."""

import io

import numpy as np

from aigc_jax.errors import BadConfig

GAP = 2  # white pixels between images
LEAST = 48  # pixels of an image's height; smaller ones are enlarged


def pillow():
  """The library, which comes with the extra [images]."""
  try:
    from PIL import Image
  except ImportError as e:
    raise BadConfig("a PNG needs Pillow: pip install 'aigc_jax[images]'") from e
  return Image


def grid(images: np.ndarray, rows: int, columns: int) -> np.ndarray:
  """(Y, X, C) uint8 of rows * columns images (n, Y, X, C), row by row.

  Small images are enlarged, each pixel to a square of as many.
  """
  _, Y, X, C = images.shape
  times = max(1, -(-LEAST // Y))
  images = images.repeat(times, axis=1).repeat(times, axis=2)
  Y, X = Y * times + GAP, X * times + GAP
  whole = np.full((rows * Y - GAP, columns * X - GAP, C), 255, np.uint8)
  for i, image in enumerate(images):
    y, x = i // columns * Y, i % columns * X
    whole[y : y + Y - GAP, x : x + X - GAP] = image
  return whole


def png(pixels_YXC: np.ndarray) -> bytes:
  """The bytes of a PNG of uint8 pixels, of 1 or 3 channels."""
  if pixels_YXC.shape[-1] not in (1, 3):
    raise BadConfig(
      f"a PNG has 1 or 3 channels, and the model draws {pixels_YXC.shape[-1]}"
    )
  grey = pixels_YXC.shape[-1] == 1
  image = pillow().fromarray(pixels_YXC[:, :, 0] if grey else pixels_YXC)
  out = io.BytesIO()
  image.save(out, format="PNG")
  return out.getvalue()
