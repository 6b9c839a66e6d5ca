"""What a model draws while it is trained: grids to look at, and scores."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import logging

from aigc_jax import data, files, tree
from aigc_jax.errors import BadConfig
from aigc_jax.evaluators import image_scores
from aigc_jax.evaluators.choices import Estimate
from aigc_jax.evaluators.features import Features
from aigc_jax.layers.report import STATS
from aigc_jax.sampling import png
from aigc_jax.sampling.images import NotDrawn, Sampler, reads_captions
from aigc_jax.trainer.journal import Picture

AT_ONCE = 64  # images


def variables_of(state, average: bool):
  """What a model of a state draws with."""
  params, fixed = state.read(average)
  if fixed is None:
    return {"params": params}
  found = {"params": tree.joined(params, fixed.frozen)}
  return found if fixed.stats is None else found | {STATS: fixed.stats}


class Grid:
  """evaluate(step, state) -> {name: Picture}: writes FOLDER/<step>.<name>.png.

  The noise of a place in the grid is the same each time, so that pictures
  differ by the model alone. told: what each row is drawn of, labels (rows,) or
  tokens (rows, S). Only the first process writes; all take part.
  """

  def __init__(
    self,
    sampler: Sampler,
    mesh: jax.sharding.Mesh,
    folder: Path,
    *,
    name: str,
    rows: int,
    columns: int,
    told: np.ndarray,
    average: bool,
    poll: Callable[[], None],
  ):
    self._sampler, self._mesh, self._folder = sampler, mesh, folder
    self._name, self._shape, self._average = name, (rows, columns), average
    self._told, self._poll = np.repeat(told, columns, axis=0), poll

  def __call__(self, step: int, state) -> dict[str, Picture]:
    """Writes the picture of this state. Raises StorageFailure."""
    count = len(self._told)
    with jax.set_mesh(self._mesh):
      self._sampler.use(variables_of(state, self._average))
      images = or_none(
        self._name, step, self._sampler,
        np.arange(count), self._told, min(AT_ONCE, count), self._poll,
      )  # fmt: skip
      self._sampler.drop()
    if images is None:
      return {}
    whole = png.grid(images, *self._shape)
    picture = Picture(png.png(whole), *whole.shape)
    if jax.process_index() == 0:
      files.own_folder(self._folder)
      files.write_bytes(self._folder / f"{step}.{self._name}.png", picture.png)
    return {f"eval/{self._name}/images": picture}


def or_none(name: str, step: int, draw: Callable, *args):
  """draw(*args); None, and a warning, for what is no number.

  A picture of a model that is trained on is not worth the training.
  """
  try:
    return draw(*args)
  except NotDrawn as refusal:
    logging.warning("evaluate.%s at step %d: %s", name, step, refusal)
    return None


class Scores:
  """evaluate(step, state) -> {"eval/<name>/fid": ...}: drawn beside held out.

  images: how many of each at most.
  """

  def __init__(
    self,
    sampler: Sampler,
    mesh: jax.sharding.Mesh,
    comparison: "Comparison",
    *,
    name: str,
    average: bool,
    poll: Callable[[], None],
  ):
    self._sampler, self._mesh, self._comparison = sampler, mesh, comparison
    self._name, self._average, self._poll = name, average, poll
    self.fingerprint = comparison.fingerprint
    self.judges = {"features": comparison.features_fingerprint}
    if comparison.features_said:
      self.judges["features.config"] = comparison.features_said

  def __call__(self, step: int, state) -> dict[str, float]:
    """The scores of this state."""
    with jax.set_mesh(self._mesh):
      self._sampler.use(variables_of(state, self._average))
      images = or_none(
        self._name, step, self._comparison.draw, self._sampler, self._poll
      )
      self._sampler.drop()
    if images is None:
      return {}
    found = self._comparison.scores(images, poll=self._poll)
    return {f"eval/{self._name}/{k}": e.value for k, e in found.items()}


class Comparison:
  """Drawn images against as many of a held-out set, by one network's features.

  mean, std: what the data took from pixels of 0 to 1 and divided them by.
  most: how many of them; None is all that are held out. Which ones is the same
  each time.
  """

  def __init__(
    self,
    features: Features,
    held: data.EvalSet,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    most: int | None = None,
  ):
    self._features = features
    self._mean, self._std = (np.asarray(v, np.float32) for v in (mean, std))
    self.count = min(len(held), most or len(held))
    if self.count < image_scores.LEAST:
      raise BadConfig(
        f"images are compared by {image_scores.LEAST} or more, and these are "
        f"{self.count} ({len(held)} are held out): ask for more of them, or "
        "hold out more"
      )
    self._held, self.fingerprint = held, held.fingerprint
    self.features_fingerprint = features.fingerprint
    self.features_said = features.said
    self._known: tuple | None = None

  def _real(self) -> tuple[np.ndarray, np.ndarray]:
    """(features, what is told of them) of the held-out images."""
    if self._known is None:
      images, told = self.images(self._held)
      self._known = self._features(images), told
    return self._known

  def images(self, some: data.EvalSet) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 images, labels or tokens), `count` of a set or all it has."""
    numbers = np.random.default_rng(0).permutation(len(some))[: self.count]
    numbers = np.sort(numbers)
    images, told = [], []
    for index in np.unique(numbers // some.batch):
      own = numbers[numbers // some.batch == index] % some.batch
      rows = some.rows(index, own)
      images.append(rows["images"] * self._std + self._mean)
      told.append(rows["labels" if "labels" in rows else "tokens"])
    bytes_ = np.round(np.clip(np.concatenate(images), 0, 1) * 255)
    return bytes_.astype(np.uint8), np.concatenate(told)

  def draw(
    self, sampler: Sampler, poll: Callable[[], None] = lambda: None
  ) -> np.ndarray:
    """As many images as are compared with, of the same labels or captions."""
    _, told = self._real()
    if not (sampler.model.classes or reads_captions(sampler.model)):
      told = np.zeros(len(told), np.int32)
    batch = min(AT_ONCE, self.count)
    return sampler(np.arange(self.count), told, batch, poll)

  def scores(
    self,
    images: np.ndarray,
    prefix: str = "",
    poll: Callable[[], None] = lambda: None,
  ) -> dict[str, Estimate]:
    """Of uint8 images beside those that are held out."""
    real, _ = self._real()
    drawn = self._features(images, poll)
    return image_scores.all_scores(real, drawn, prefix)
