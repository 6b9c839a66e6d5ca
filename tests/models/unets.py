"""Tiny U-Nets with weights that their names make, and what they are given."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from aigc_jax import tree
from aigc_jax.models.unet import unet

UNET = dict(
  image_size=8, channels=1, widths=(8, 12), blocks=1, attention=(4,), groups=4,
)  # fmt: skip
STYLES = {
  "ddpm": UNET | dict(classes=0),
  "adm": UNET
  | dict(classes=3, head_dim=4, scale_shift=True, resample="block", sigma=True),
}
TIMES = (0.25, 0.875)
LABELS = (1, 3)  # 3 is none of them


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Of a parameter at this path: the same numbers everywhere."""
  draw = np.random.RandomState(zlib.crc32(name.encode()))
  return (0.3 * draw.standard_normal(shape)).astype(np.float32)


def shapes_of(style: str) -> dict[str, tuple[int, ...]]:
  """{path: shape} of the parameters."""
  model = unet(**STYLES[style])
  found = jax.eval_shape(model.init, jax.random.key(0), model.example())
  flat = tree.flat(nn.unbox(found)["params"])
  return {name: x.shape for name, x in flat.items()}


def params_of(style: str):
  model = unet(**STYLES[style])
  found = jax.eval_shape(model.init, jax.random.key(0), model.example())
  return jax.tree_util.tree_map_with_path(
    lambda path, x: jnp.asarray(weight(tree.name_of(path), x.shape)),
    nn.unbox(found)["params"],
  )


def images() -> np.ndarray:
  draw = np.random.RandomState(0)
  return draw.standard_normal((2, 8, 8, 1)).astype(np.float32)
