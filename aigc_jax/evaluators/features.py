"""Features of images: what a network reads its labels from.

Scores of drawn images are of these. Which network it is has to be told beside
them: numbers by two networks cannot be compared.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from aigc_jax import files, sharding, tree
from aigc_jax.data.images.augmenting import fitted
from aigc_jax.data.images.decoding import MODES, pillow, pixels
from aigc_jax.errors import BadConfig
from aigc_jax.terminal import counted


class Features:
  """features(images) -> (n, D) float32, of uint8 images (n, Y, X, C).

  model: one whose output has `features_BD`. mean, std: of its channels, as it
  was trained. Images of another size are resized as those of held-out sets are;
  grey becomes colour and the other way round. said: a fingerprint of what else
  makes the network what it is, "" where its parameters say it.
  """

  def __init__(
    self,
    model: nn.Module,
    variables,
    *,
    name: str,
    mean: Sequence[float],
    std: Sequence[float],
    batch: int = 64,
    said: str = "",
  ):
    check_features(model, name)
    channels = model.image[-1]
    if not len(mean) == len(std) == channels:
      raise BadConfig(
        f"features={name}: it looks at {counted(channels, 'channel')}, and its "
        f"pixels are scaled by mean={list(mean)}, std={list(std)}"
      )
    self.name, self._image, self._batch = name, model.image, batch
    self.said = said
    self._mean, self._std = (np.asarray(v, np.float32) for v in (mean, std))
    self._variables = variables

    def run(variables, images):
      told = model.apply(variables, {"images": sharding.constrain_rows(images)})
      return sharding.constrain(told.features_BD.astype(jnp.float32), "..")

    self._run = jax.jit(run)

  def __call__(
    self, images: np.ndarray, poll: Callable[[], None] = lambda: None
  ) -> np.ndarray:
    """`poll` is called between batches and may raise."""
    found = []
    for start in range(0, len(images), self._batch):
      poll()
      some = self._prepared(images[start : start + self._batch])
      lacking = self._batch - len(some)
      padded = np.pad(some, ((0, lacking), (0, 0), (0, 0), (0, 0)))
      part = np.asarray(self._run(self._variables, padded))
      found.append(part[: len(some)])
    return np.concatenate(found)

  @functools.cached_property
  def fingerprint(self) -> str:
    """sha256 over the network's parameters and how it takes pixels."""
    words = jax.jit(tree.digest)(self._variables)
    scale = [self._mean.tolist(), self._std.tolist()]
    return files.sha256_json(["features 1", np.asarray(words).tolist(), scale])

  def _prepared(self, images: np.ndarray) -> np.ndarray:
    """Pixels as the network takes them, float32."""
    size, _, channels = self._image
    if images.shape[1:] != self._image:
      images = np.stack([_resized(x, size, channels) for x in images])
    return (images / np.float32(255) - self._mean) / self._std


def _resized(image: np.ndarray, size: int, channels: int) -> np.ndarray:
  grey = image.shape[-1] == 1
  found = pillow().fromarray(image[:, :, 0] if grey else image)
  return pixels(fitted(found.convert(MODES[channels]), size, 1.0))


def check_features(model: nn.Module, name: str) -> None:
  """BadConfig unless a model says from what it reads labels."""
  if set(model.example()) == {"images"}:
    variables = jax.eval_shape(model.init, jax.random.key(0), model.example())
    told = jax.eval_shape(model.apply, variables, model.example())
    if getattr(told, "features_BD", None) is not None:
      return
  raise BadConfig(
    f"features={name}: a model of the kind {type(model).__name__} has no "
    "features of images: name a run of a vit or a resnet, or hf:FOLDER of one"
  )
