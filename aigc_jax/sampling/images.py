"""Images from noise: what is asked of a model, samplers, guidance.

A model `Draws` where it makes images of noise, at once or step by step along
the path of its objective (objectives/paths.py), or `DrawsByCodes`, as
sampling/codes.py does it. Each sample's noise is a
function of (seed, number), so a grid is the same however often it is made.
"""

import contextlib
import zlib
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from aigc_jax import sharding
from aigc_jax.errors import BadConfig, choose
from aigc_jax.layers.readout import Readout
from aigc_jax.objectives.labels import NO_TOKEN
from aigc_jax.objectives.paths import Path

Predict = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class NotDrawn(BadConfig):
  """What a model draws or says is no number."""


@runtime_checkable
class Draws(Protocol):
  """A flax module that makes images of noise.

  image: (Y, X, C). noise: the shape of what an image is made of. classes: how
  many labels it may be told, 0 for none; that number itself says none of them.
  gradual: whether it takes steps along a path. One that also `ReadsCaptions` is
  given their tokens (B, S) in place of labels.
  """

  image: tuple[int, int, int]
  classes: int
  gradual: bool

  @property
  def noise(self) -> tuple[int, ...]: ...

  def draw(
    self, noise: jax.Array, time_B: jax.Array, labels_B: jax.Array
  ) -> jax.Array:
    """(B, Y, X, C): the images; if gradual, what its objective predicts."""


@runtime_checkable
class ReadsCaptions(Protocol):
  """A flax module that may be told captions.

  text_length: tokens of one, 0 where it is told none. Ids of NO_TOKEN say that
  there is no caption.
  """

  text_length: int


@runtime_checkable
class Finishes(Protocol):
  """A flax module that draws codes, which then become images."""

  def finish(self, codes: jax.Array) -> jax.Array:
    """(B, Y, X, C) of what a path ends at."""


def reads_captions(model: nn.Module) -> bool:
  """Whether images are drawn of captions and not of labels."""
  return isinstance(model, ReadsCaptions) and model.text_length > 0


@runtime_checkable
class DrawsByCodes(Protocol):
  """A flax module that tells the codes of an image, which a VQ makes one of.

  image, classes: as of `Draws`; one that also `ReadsCaptions` is given their
  tokens in place of labels. masked: whether it is asked for codes that are
  hidden, many at once, or for each after those before it. length: how many
  codes an image has. vq, prior: the two models, whose variables lie below
  these names; the VQ has `Codes` (models/vq.py), a prior that is not masked
  `Decodes` (sampling/decodes.py).
  """

  image: tuple[int, int, int]
  classes: int
  masked: bool
  length: int
  vq: nn.Module
  prior: nn.Module

  def lead(self, told: jax.Array) -> jax.Array:
    """(B, P) ids of the prior, of labels (B,) or of captions (B, S)."""

  def asked(
    self, told: jax.Array, codes_BT: jax.Array, hidden_BT: jax.Array | None
  ) -> dict[str, jax.Array]:
    """What the prior reads: what it is told, and the codes not hidden."""

  def told(self, output) -> Readout:
    """What the prior says, of codes alone."""


@runtime_checkable
class Reconstructs(Protocol):
  """A flax module that makes of images what it keeps of them."""

  image: tuple[int, int, int]

  def reconstruct(self, images_BYXC: jax.Array) -> jax.Array:
    """(B, Y, X, C) float32, in the units of the images."""


def check_draws(model: nn.Module, what: str) -> None:
  """BadConfig unless the model draws; `what` is what needs it."""
  if isinstance(model, Draws | DrawsByCodes):
    return
  way = "leave it out, or take a dit, a unet, a vae, a gan or an image_tokens"
  if isinstance(model, Reconstructs) and what.startswith("evaluate."):
    way = (
      "leave it out (`generate --grid=4x8 --reconstruct` draws what it makes "
      "of held-out images), or train an image_tokens on its codes"
    )
  elif isinstance(model, Reconstructs):
    way = "add --reconstruct, or train an image_tokens on its codes"
  raise BadConfig(
    f"{what} makes images, which a model of the kind {type(model).__name__} "
    f"does not: {way}"
  )


def check_reconstructs(model: nn.Module, what: str) -> None:
  """BadConfig unless the model reconstructs; `what` is what needs it."""
  if not isinstance(model, Reconstructs):
    raise BadConfig(
      f"{what} is of models that make images of images, a vq or a vae, or a "
      f"part that is one (--part=vq), and not of {type(model).__name__}"
    )


def labels_of(given: Sequence[str], rows: int, classes: int) -> np.ndarray:
  """(rows,) labels: those given in turn, or all that there are.

  "none" is no label. Raises BadConfig for one that the model has not.
  """
  if given and not classes:
    raise BadConfig(
      "labels: this model knows no labels: leave it out (or where it reads "
      "captions, give prompts)"
    )
  found = [classes if word == "none" else word for word in given]
  for i, word in enumerate(found):
    if word == classes:
      continue
    if not word.isdecimal() or int(word) >= classes:
      raise BadConfig(
        f"labels={word}: expected numbers from 0 to {classes - 1}, or none"
      )
    found[i] = int(word)
  return np.resize(found or np.arange(max(classes, 1)), rows).astype(np.int32)


def without_caption(model: nn.Module, rows: int) -> np.ndarray:
  """(rows, S) int32: tokens that say there is no caption."""
  return np.full((rows, model.text_length), NO_TOKEN, np.int32)


def keys_of(seed: int, numbers_B: jax.Array) -> jax.Array:
  """(B,) keys, functions of seed and number."""
  key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(b"images") >> 1)
  return jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers_B)


def noise_of(seed: int, numbers_B: jax.Array, shape: tuple[int, ...]):
  """(B, *shape) of mean 0 and deviation 1, a function of seed and number."""
  keys_B = keys_of(seed, numbers_B)
  return jax.vmap(lambda key: jax.random.normal(key, shape))(keys_B)


def guided(predict: Predict, none: int, guidance: float) -> Predict:
  """Guidance without a classifier, arXiv:2207.12598.

  What is predicted without a label or caption, whose ids are all `none`, and
  from there `guidance` times the way to what is predicted with it: 1 is the
  model itself, and asks it once.
  """
  if guidance == 1.0:
    return predict

  def run(z, t_B, labels_B):
    both = [jnp.concatenate([a, a]) for a in (z, t_B)]
    labels = jnp.concatenate([labels_B, jnp.full_like(labels_B, none)])
    told, free = jnp.split(predict(*both, labels), 2)
    return free + guidance * (told - free)

  return run


def _slope(path: Path, ends: Callable, z, t_B) -> jax.Array:
  return path.velocity(*ends(z, t_B), t_B)


def _euler(path: Path, ends: Callable, z, t_B, s_B) -> jax.Array:
  step = (s_B - t_B).reshape(-1, *(1,) * (z.ndim - 1))
  return z + step * _slope(path, ends, z, t_B)


def _heun(path: Path, ends: Callable, z, t_B, s_B) -> jax.Array:
  """Of second order: the mean of the slopes at both ends of an Euler step."""
  step = (s_B - t_B).reshape(-1, *(1,) * (z.ndim - 1))
  first = _slope(path, ends, z, t_B)
  second = _slope(path, ends, z + step * first, s_B)
  return z + step * (first + second) / 2


def _ddim(path: Path, ends: Callable, z, t_B, s_B) -> jax.Array:
  """The path between the ends that are predicted (arXiv:2010.02502, eta 0)."""
  return path.between(*ends(z, t_B), s_B)


SAMPLERS = {"euler": _euler, "heun": _heun, "ddim": _ddim}


def walk(
  predict: Predict,
  path: Path,
  z: jax.Array,
  labels_B: jax.Array,
  *,
  sampler: str,
  steps: int,
  limits: tuple[np.ndarray, np.ndarray] | None = None,
) -> jax.Array:
  """From noise z at time 1 to images at time 0, in `steps` equal ones.

  limits: the least and the largest value (C,) that images have, to which the
  predicted image is cut where there is more noise than image; without it, a
  predicted epsilon says nothing of the image where it is next to nothing.
  """
  step = choose(sampler, SAMPLERS, "--sampler")

  def ends(z, t_B):
    x, e = path.ends(predict(z, t_B, labels_B), z, t_B)
    if limits is None:
      return x, e
    alpha, sigma = path.parts(t_B.reshape(-1, *(1,) * (z.ndim - 1)))
    noisy, cut = alpha < sigma, jnp.clip(x, *limits)
    rest = (z - alpha * cut) / sigma
    return jnp.where(noisy, cut, x), jnp.where(noisy, rest, e)

  times = jnp.linspace(1.0, 0.0, steps + 1)

  def one(z, pair):
    t, s = (jnp.full(len(z), time) for time in pair)
    return step(path, ends, z, t, s), None

  z, _ = jax.lax.scan(one, z, (times[:-1], times[1:]))
  return z


class Batches:
  """Images by their numbers, of a function that draws some at once.

  draw(variables, numbers_B, labels_B): what images are in the units of the
  data, of whose pixels from 0 to 1 `mean` (C,) was taken, and which were
  divided by `std` (C,). library: the context in which `draw` is traced.
  """

  def __init__(
    self,
    variables,
    draw: Callable,
    mean,
    std,
    library: Callable = contextlib.nullcontext,
  ):
    self._variables, self._library = variables, library
    self._mean, self._std = (np.asarray(v, np.float32) for v in (mean, std))
    # Whole on each device, of which other processes have some.
    self._draw = jax.jit(
      lambda *given: sharding.constrain(draw(*given), "....")
    )

  def use(self, variables) -> None:
    """Draws with others from now on; what is compiled stays."""
    self._variables = variables

  def drop(self) -> None:
    """Holds on to no variables."""
    self._variables = None

  def __call__(
    self,
    numbers: np.ndarray,
    labels: np.ndarray,
    batch: int,
    poll: Callable[[], None] = lambda: None,
  ) -> np.ndarray:
    """(n, Y, X, C) uint8, of samples with these numbers and labels.

    labels: (n,), or (n, S) of a model that `reads_captions`.
    batch: how many are made at once. `poll` is called between those, and may
    raise.
    """
    count, found = len(numbers), []
    # The last batch is filled up.
    rows = np.minimum(np.arange(-(-count // batch) * batch), count - 1)
    numbers, labels = (
      a[rows].reshape(-1, batch, *a.shape[1:])
      for a in (np.asarray(numbers, np.uint32), np.asarray(labels, np.int32))
    )
    for some, told in zip(numbers, labels, strict=True):
      poll()
      with self._library():
        images = self._draw(self._variables, some, told)
      found.append(np.asarray(images))
    images = np.concatenate(found)[:count]
    if not np.isfinite(images).all():
      raise NotDrawn(
        "the images are not finite: more --steps, less --guidance, or another "
        "checkpoint"
      )
    return pixels_of(images, self._mean, self._std)


def pixels_of(images: np.ndarray, mean, std) -> np.ndarray:
  """uint8 from 0 to 255, of images in the units of the data."""
  images = images * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
  return np.round(np.clip(images, 0, 1) * 255).astype(np.uint8)


class Sampler(Batches):
  """Images of a model that Draws, and its variables.

  path: None of a model that draws at once. mean, std, library: as of `Batches`.
  """

  def __init__(
    self,
    model: nn.Module,
    variables,
    path: Path | None,
    *,
    mean,
    std,
    sampler: str,
    steps: int,
    guidance: float,
    seed: int,
    library: Callable = contextlib.nullcontext,
  ):
    check_draws(model, "a grid of images")
    self.model = model
    none = NO_TOKEN if reads_captions(model) else model.classes
    limits = None
    of_codes = isinstance(model, Finishes)
    if path is not None and path.prediction == "epsilon" and not of_codes:
      mean, std = (np.asarray(v, np.float32) for v in (mean, std))
      limits = (-mean / std, (1 - mean) / std)

    def draw(variables, numbers_B, labels_B):
      z = sharding.constrain_rows(noise_of(seed, numbers_B, model.noise))

      def predict(z, t_B, labels_B):
        return model.apply(variables, z, t_B, labels_B, method="draw")

      if path is None:
        return predict(z, jnp.zeros(len(z)), labels_B)
      found = walk(
        guided(predict, none, guidance), path, z, labels_B,
        sampler=sampler, steps=steps, limits=limits,
      )  # fmt: skip
      if not of_codes:
        return found
      return model.apply(variables, found, method="finish")

    super().__init__(variables, draw, mean, std, library)
