"""Augmentations: functions of an image and of numbers drawn for it.

Every number comes from a Draw, so that what is seen of an image is a function
of (seed, place in the order, name), on any number of hosts and after any stop.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from aigc_jax.data.images.decoding import pillow
from aigc_jax.errors import BadConfig

MOST = 30  # RandAugment's magnitudes go from 0 to this


def fitted(image, size: int, share: float):
  """The square of `size` in the middle, `share` of what the short side has."""
  W, H = image.size
  if (W, H) == (size, size):
    return image
  side = min(W, H) * share
  box = ((W - side) / 2, (H - side) / 2, (W + side) / 2, (H + side) / 2)
  return image.resize((size, size), pillow().Resampling.BICUBIC, box=box)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment:
  """What is done to a training image; keys of `config.data.augment`.

  crop: the least share of an image's area that a random crop has, of a ratio
  from 3/4 to 4/3 (arXiv:1409.4842), or None for the middle, as in evaluation.
  shift: by how many pixels, at most, an image is moved, black coming in.
  flip: whether it is mirrored at random, left and right. operations, magnitude:
  how many of RandAugment's (arXiv:1909.13719), how strong (0 to 30). mixup,
  cutmix: alpha of the share by which two images are mixed (arXiv:1710.09412) or
  one is pasted into the other (arXiv:1905.04899), with both each half of the
  time; None for neither.
  """

  crop: float | None = None
  shift: int = 0
  flip: bool = False
  operations: int = 0
  magnitude: int = 9
  mixup: float | None = None
  cutmix: float | None = None

  def __post_init__(self):
    legal = {
      "crop": self.crop is None or 0 < self.crop <= 1,
      "shift": self.shift >= 0,
      "operations": self.operations >= 0,
      "magnitude": 0 <= self.magnitude <= MOST,
      "mixup": self.mixup is None or self.mixup > 0,
      "cutmix": self.cutmix is None or self.cutmix > 0,
    }
    for key, good in legal.items():
      if not good:
        raise BadConfig(
          f"data.augment.{key}={getattr(self, key)!r} is out of range (see "
          "aigc_jax/data/images/augmenting.py)"
        )

  @property
  def mixes(self) -> bool:
    return self.mixup is not None or self.cutmix is not None

  def names(self) -> dict[str, int]:
    """{name: how many} of the numbers that `apply` takes of a Draw."""
    return dict(crop=4, shift=2, flip=1, operations=2 * max(self.operations, 1))

  def apply(self, image, size: int, share: float, drawn: Mapping):
    """One image of `size`; drawn: as `names` has it, each from 0 to below 1."""
    if self.crop is not None:
      image = _cropped(image, size, self.crop, drawn["crop"])
    else:
      image = fitted(image, size, share)
    if self.shift:
      image = _shifted(image, self.shift, drawn["shift"])
    if self.flip and drawn["flip"][0] < 0.5:
      image = image.transpose(pillow().Transpose.FLIP_LEFT_RIGHT)
    for i in range(self.operations):
      which, sign = drawn["operations"][2 * i : 2 * i + 2]
      operation = OPERATIONS[int(which * len(OPERATIONS))]
      strength = self.magnitude / MOST
      image = operation(image, strength, 1 if sign < 0.5 else -1)
    return image


def _cropped(image, size: int, least: float, drawn):
  """A random rectangle, resized."""
  W, H = image.size
  area = (least + (1 - least) * drawn[0]) * W * H
  ratio = math.exp((2 * drawn[1] - 1) * math.log(4 / 3))
  w = min(max(round(math.sqrt(area * ratio)), 1), W)
  h = min(max(round(math.sqrt(area / ratio)), 1), H)
  x, y = int(drawn[2] * (W - w + 1)), int(drawn[3] * (H - h + 1))
  box = (x, y, x + w, y + h)
  return image.resize((size, size), pillow().Resampling.BILINEAR, box=box)


def _shifted(image, most: int, drawn):
  x, y = (int(u * (2 * most + 1)) - most for u in drawn)
  return image.transform(
    image.size, pillow().Transform.AFFINE, (1, 0, x, 0, 1, y)
  )


def _moved(image, matrix):
  Image = pillow()
  fill = (128,) * len(image.getbands())
  return image.transform(
    image.size, Image.Transform.AFFINE, matrix,
    resample=Image.Resampling.NEAREST, fillcolor=fill if len(fill) > 1 else 128,
  )  # fmt: skip


def _enhanced(name: str):
  def run(image, strength, sign):
    from PIL import ImageEnhance

    return getattr(ImageEnhance, name)(image).enhance(1 + sign * 0.9 * strength)

  return run


def _ops(name: str):
  def run(image, strength, sign):
    from PIL import ImageOps

    return getattr(ImageOps, name)(image)

  return run


def _posterised(image, strength, sign):
  from PIL import ImageOps

  return ImageOps.posterize(image, 8 - round(4 * strength))


def _solarised(image, strength, sign):
  from PIL import ImageOps

  return ImageOps.solarize(image, round(256 * (1 - strength)))


def _rotated(image, strength, sign):
  fill = (128,) * len(image.getbands())
  return image.rotate(
    sign * 30 * strength, fillcolor=fill if len(fill) > 1 else 128
  )


# Of RandAugment, with its strengths; each (image, 0 to 1, +1 or -1) -> image.
OPERATIONS = (
  lambda image, strength, sign: image,
  _ops("autocontrast"),
  _ops("equalize"),
  _rotated,
  _posterised,
  _solarised,
  _enhanced("Color"),
  _enhanced("Contrast"),
  _enhanced("Brightness"),
  _enhanced("Sharpness"),
  lambda image, s, sign: _moved(image, (1, sign * 0.3 * s, 0, 0, 1, 0)),
  lambda image, s, sign: _moved(image, (1, 0, 0, sign * 0.3 * s, 1, 0)),
  lambda image, s, sign: _moved(
    image, (1, 0, sign * 150 / 331 * s * image.size[0], 0, 1, 0)
  ),
  lambda image, s, sign: _moved(
    image, (1, 0, 0, 0, 1, sign * 150 / 331 * s * image.size[1])
  ),
)


def mixed(
  batch: dict, others: dict, drawn: Mapping[str, np.ndarray], augment: Augment
) -> dict:
  """Rows mixed each with one of `others`: "images" and "labels" of both.

  drawn: "mix" (n, 4). Adds "other_labels" (n,) and "share" (n,), that of the
  first image.
  """
  from scipy.special import betaincinv

  u, images = drawn["mix"].astype(np.float64), batch["images"].copy()
  n, Y, X, _ = images.shape
  share = np.ones(n, np.float32)
  for i in range(n):
    paste = augment.cutmix is not None and (
      augment.mixup is None or u[i, 0] < 0.5
    )
    alpha = augment.cutmix if paste else augment.mixup
    part = float(betaincinv(alpha, alpha, u[i, 1]))
    if not paste:
      share[i] = part
      first, second = np.float32(part), np.float32(1 - part)
      images[i] = first * images[i] + second * others["images"][i]
      continue
    # A rectangle of the other's share of the area, its middle anywhere.
    h, w = Y * math.sqrt(1 - part), X * math.sqrt(1 - part)
    top, left = u[i, 2] * Y - h / 2, u[i, 3] * X - w / 2
    y0, y1 = (round(min(max(v, 0), Y)) for v in (top, top + h))
    x0, x1 = (round(min(max(v, 0), X)) for v in (left, left + w))
    images[i, y0:y1, x0:x1] = others["images"][i, y0:y1, x0:x1]
    share[i] = 1 - (y1 - y0) * (x1 - x0) / (Y * X)
  return batch | {
    "images": images,
    "other_labels": others["labels"],
    "share": share,
  }
