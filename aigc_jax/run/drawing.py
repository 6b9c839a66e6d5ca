"""What a run says of the images that its model draws or looks at."""

import contextlib
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import linen as nn

from aigc_jax import files, records, sharding
from aigc_jax.data.captions import Captions
from aigc_jax.data.images.decoding import MODES
from aigc_jax.errors import BadConfig, BadData
from aigc_jax.layers.cpu import onednn
from aigc_jax.objectives.paths import Path as ImagePath
from aigc_jax.run import compute
from aigc_jax.run.build import objective_of
from aigc_jax.run.settings import Config, check_data, data_of
from aigc_jax.sampling.codes import CodeSampler
from aigc_jax.sampling.images import (
  Batches,
  DrawsByCodes,
  Sampler,
  labels_of,
  reads_captions,
  without_caption,
)

# How images are made for a model of Hugging Face's.
PIXELS = "preprocessor_config.json"
PROCESSOR = {
  "image_mean": [float], "image_std": [float], "rescale_factor?": float,
  "do_normalize?": (bool, None), "do_rescale?": (bool, None),
}  # fmt: skip


SCALED = {"mean": [float], "std": [float]}


def check_own(config: Config) -> None:
  """Raises BadConfig for the config of a model that is no run's.

  And for one whose data nothing could be made of.
  """
  if "data" not in config:
    raise BadConfig(
      "images are drawn with a run of one's own, which says how its pixels "
      "were scaled; a Hugging Face folder does not"
    )
  check_data(config)


def sampler_of(
  config: Config,
  model: nn.Module,
  variables,
  *,
  sampler: str,
  steps: int,
  guidance: float,
  seed: int,
) -> Batches:
  """What draws images with a model of a run, by the library of its products.

  Raises BadConfig.
  """
  how = {key: config["data"][key] for key in ("mean", "std")}
  how["library"] = _library(config, model)
  if isinstance(model, DrawsByCodes):
    return CodeSampler(
      model, variables, **how, steps=steps, guidance=guidance, seed=seed
    )
  path = path_of(config) if model.gradual else None
  if path is None and guidance != 1.0:
    raise BadConfig(
      f"guidance={guidance} is of models that draw step by step: leave it out"
    )
  told = model.classes or reads_captions(model)
  if path is not None and guidance != 1.0 and not told:
    raise BadConfig(
      f"guidance={guidance} leads to a label or a caption, and this model is "
      "told neither: leave it out"
    )
  return Sampler(
    model, variables, path, **how, sampler=sampler, steps=steps,
    guidance=guidance, seed=seed,
  )  # fmt: skip


def _library(config: Config, model: nn.Module) -> Callable:
  """The context in which the products of a run are traced, where it can be."""
  if (
    compute.settings(config)["library"] == "onednn"
    and sharding.platform() == "cpu"
    and sharding.alone()
    and onednn.usable(jnp.dtype(model.operand_dtype).name)
  ):
    return onednn.preferred
  return contextlib.nullcontext


def told_rows(
  config: Config,
  model: nn.Module,
  tokenizer,
  *,
  rows: int,
  labels: Sequence[str] = (),
  prompts: Sequence[str] = (),
) -> np.ndarray:
  """What the rows of a grid are drawn of: labels (rows,), or tokens (rows, S).

  Those given in turn. Raises BadConfig for what the model is not told.
  """
  check_told(model, labels, prompts)
  if not reads_captions(model):
    return labels_of(labels, rows, model.classes)
  if not prompts:
    return without_caption(model, rows)
  tokens = _captions_of(config).tokens_of_all(tokenizer, prompts)
  return tokens[np.arange(rows) % len(tokens)]


def check_told(
  model: nn.Module, labels: Sequence[str], prompts: Sequence[str]
) -> None:
  """Raises BadConfig for labels or prompts that the model is not told."""
  labels_of(labels, 1, model.classes)
  if prompts and not reads_captions(model):
    raise BadConfig(
      "prompts are of models that read captions, and this one "
      f"({type(model).__name__}) does not: leave them out"
      + (", or give labels" if model.classes else "")
    )


def _captions_of(config: Config) -> Captions:
  found = data_of(config)
  if not isinstance(found, Captions):
    raise BadConfig(
      "prompts are read as data.kind='captions' has texts: this config has "
      f"data.kind={config['data']['kind']!r}"
    )
  return found


def pixels_in(folder: str) -> dict[str, list[float]]:
  """mean and std of a Hugging Face folder's images. Raises BadData."""
  path = files.expanded(folder) / PIXELS
  if not path.is_file():
    raise BadData(
      f"{path} is not there, and nothing else says how the model's pixels are "
      "scaled: put it back, as it is published beside the weights"
    )
  found = records.check(files.read_json(path), PROCESSOR, str(path))
  if abs(found.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-3:
    raise BadData(
      f"{path}: rescale_factor={found['rescale_factor']}: expected 1 / 255"
    )
  if found.get("do_rescale") is False:
    raise BadData(
      f"{path}: do_rescale=false: models whose pixels go to 255 are not read"
    )
  mean, std = found["image_mean"], found["image_std"]
  if len(mean) not in MODES or len(std) != len(mean) or min(std) <= 0:
    raise BadData(
      f"{path}: image_mean={mean}, image_std={std}: expected a number for each "
      "channel, 1 or 3, those of image_std above 0"
    )
  if found.get("do_normalize") is False:
    mean, std = [0.0] * len(mean), [1.0] * len(std)
  return dict(mean=mean, std=std)


def note_pixels(where: str, pixels: Mapping | None, config: Config) -> None:
  """Tells where a run scales pixels otherwise than what it begins from.

  pixels: its mean and std, where they are known.
  """
  if not records.fits(pixels, SCALED) or not records.fits(
    config["data"], SCALED
  ):
    return
  keys = ("mean", "std")
  theirs, ours = (
    [x for key in keys for x in some[key]] for some in (pixels, config["data"])
  )
  if len(theirs) == len(ours) and np.allclose(theirs, ours, 0, 1e-3):
    return
  flags = " ".join(f"--config.data.{k}='{tuple(pixels[k])}'" for k in keys)
  logging.warning(
    "init_from=%s was trained on pixels that were scaled otherwise: %s", where,
    flags,
  )  # fmt: skip


def path_of(config: Config) -> ImagePath:
  """The path to noise that a run's objective had its model follow."""
  options = objective_of(config).keywords
  if "prediction" not in options:
    raise BadConfig(
      f"objective.kind={config['objective']['kind']!r} says of no path from "
      "noise to images: draw with a run whose objective is flow"
    )
  return ImagePath(options["prediction"])
