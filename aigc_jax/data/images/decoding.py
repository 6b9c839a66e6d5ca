"""Images from bytes, strictly: what is refused, and how odd ones are read.

Read are JPEG, PNG, WebP, GIF, BMP and PNM. Refused (`Unusable`): what is
damaged, even in part; what claims more than LARGEST pixels, before any of them
is made; what no such format is. Stated policies: of an animated image its first
frame counts; what is transparent lies on white; 16 bits become the upper 8; a
palette, CMYK and grey become what is asked for. The orientation that a camera
noted is left alone, as everybody's pipelines do.
"""

import io
import warnings

import numpy as np

from aigc_jax.errors import BadConfig

LARGEST = 1 << 26  # pixels
LARGEST_FILE = 256 << 20  # bytes
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM")
MODES = {1: "L", 3: "RGB"}  # by channels
TRANSPARENT = ("LA", "PA", "RGBA", "La", "RGBa")


class Unusable(Exception):
  """Why bytes are no image that could be used, in a few words."""


def pillow():
  """The library, which comes with the extra [images]."""
  try:
    from PIL import Image
  except ImportError as e:
    raise BadConfig(
      "data.kind='images' needs Pillow: pip install 'aigc_jax[images]'"
    ) from e
  return Image


def checked(data: bytes) -> list[str]:
  """What has to be told of an image, all of which is decoded once.

  Raises Unusable.
  """
  with warnings.catch_warnings():
    # Pillow's own, of many pixels: LARGEST is a limit of ours.
    warnings.simplefilter("ignore")
    image = _opened(data)
  notes = []
  try:
    frames = getattr(image, "n_frames", 1)
  except MemoryError:
    raise
  except Exception as e:  # it looks for the frames behind the first
    raise Unusable("damaged") from e
  if frames > 1:
    notes.append("animated (its first frame counts)")
  if _is_transparent(image):
    notes.append("transparent (laid on white)")
  _whole(image, 3)
  return notes


def decoded(data: bytes, channels: int):
  """A Pillow image of mode L or RGB. Raises Unusable."""
  return _whole(_opened(data), channels)


def pixels(image) -> np.ndarray:
  """(Y, X, C) uint8 of an image of mode L or RGB."""
  found = np.asarray(image)
  return found[:, :, None] if found.ndim == 2 else found


def _opened(data: bytes):
  if len(data) > LARGEST_FILE:
    raise Unusable(f"larger than {LARGEST_FILE >> 20} MB")
  Image = pillow()
  try:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
  except Image.DecompressionBombError:
    raise Unusable(f"more than {LARGEST:,} pixels") from None
  except Exception as e:  # parsers of files of others raise anything
    raise Unusable("no image that can be read") from e
  if image.width * image.height > LARGEST:
    raise Unusable(f"more than {LARGEST:,} pixels")
  if not image.width or not image.height:
    raise Unusable("no pixels")
  return image


def _is_transparent(image) -> bool:
  return image.mode in TRANSPARENT or "transparency" in image.info


def _whole(image, channels: int):
  Image = pillow()
  mode = MODES[channels]
  try:
    image.load()
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):
      # Pillow itself would cut off whatever is above 255.
      high = np.asarray(image).astype(np.int64) >> 8
      image = Image.fromarray(np.clip(high, 0, 255).astype(np.uint8))
    elif image.mode == "F":
      raise Unusable("fractions for pixels")
    elif _is_transparent(image):
      image = image.convert("RGBA")
      white = Image.new("RGBA", image.size, (255, 255, 255, 255))
      image = Image.alpha_composite(white, image)
    return image if image.mode == mode else image.convert(mode)
  except Unusable:
    raise
  except MemoryError:
    raise
  except Exception as e:
    raise Unusable("damaged") from e
