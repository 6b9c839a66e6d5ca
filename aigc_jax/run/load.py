"""A model and its parameters, from a work directory or hf:FOLDER."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from flax import linen as nn

from aigc_jax import data, hf, sharding, tree
from aigc_jax.data import special
from aigc_jax.errors import BadConfig
from aigc_jax.hf.settings import FREE, canonical
from aigc_jax.run.build import abstract_params, model_of
from aigc_jax.run.settings import Config, config_in
from aigc_jax.sampling.decode import Engine
from aigc_jax.sampling.logits import Sampling
from aigc_jax.trainer.checkpoint import Checkpoints


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A model with its parameters and tokenizer, ready to be used."""

  model: nn.Module
  params: tree.Tree
  tokenizer: Any
  config: Config
  mesh: jax.sharding.Mesh
  step: int  # updates behind the parameters; 0 for a Hugging Face folder
  name: str

  @property
  def length(self) -> int:
    """How many tokens the model was made to read at once; 0 if it is unsaid."""
    made = self.config["model"]["position_length"]
    if made or "data" not in self.config:
      return made
    return self.config["data"]["length"]

  def engine(self, sampling: Sampling, *, seed: int, group: int) -> Engine:
    """Decoding with this model; see sampling/decode.py."""
    model = self.config["model"]
    learned = model["position"] == "learned"
    return Engine(
      self.model,
      self.params,
      sampling=sampling,
      stop_ids=special.stops(self.tokenizer),
      positions=model["position_length"] if learned else 0,
      unrolled=model["unroll"] == 0,
      group=group,
      seed=seed,
    )


def hf_folder(where: str) -> str | None:
  """The folder of "hf:FOLDER", or None for anything else."""
  return where.removeprefix("hf:") if where.startswith("hf:") else None


def everywhere(config: Config) -> Config:
  """The config with a mesh of whatever devices there are here."""
  sizes = {axis: 1 for axis in sharding.AXES}
  return config | {"mesh": sizes | {sharding.REST: -1}}


def load(where: str, *, step: int | None = None, **model_changes) -> Loaded:
  """The run in a work directory, or the model in "hf:FOLDER".

  `model_changes` replace keys of config.model that do not shape parameters,
  such as unroll. Raises BadConfig where there is none, StorageFailure where
  no checkpoint is valid.
  """
  folder = hf_folder(where)
  check_step(step, folder)
  if folder is not None:
    imported = hf.load(folder)
    model_config = {"kind": "decoder"} | imported.kwargs | model_changes
    config = {"model": model_config}
    tokenizer = data.load_tokenizer(where)
  else:
    config = config_in(where)
    config = config | {"model": config["model"] | model_changes}
    tokenizer = data.load(Path(where).expanduser() / "tokenizer")
  mesh = sharding.make_mesh(**everywhere(config)["mesh"])
  model = model_of(config)
  with jax.set_mesh(mesh):
    abstract = abstract_params(model, mesh)
    params, step = read_params(where, abstract, step)
  return Loaded(model, params, tokenizer, config, mesh, step, where)


def check_step(step: int | None, folder: str | None) -> None:
  """Raises BadConfig for a step that no checkpoint can have."""
  if step is None:
    return
  if folder is not None:
    raise BadConfig(
      f"step={step}: hf:{folder} holds one model, not steps; leave it out"
    )
  if isinstance(step, bool) or not isinstance(step, int) or step < 0:
    raise BadConfig(
      f"step={step!r}: expected 0 or more, the number of a checkpoint; the "
      "newest where it is left out"
    )


def check_origin(config: Config, tokenizer=None) -> None:
  """Refuses to train on with another model than that of init_from.

  Shapes do not tell a rotary base, an epsilon or a window: the weights would
  be read, and mean something else. tokenizer: of the run, where it is known.
  Raises BadConfig with what to set instead.
  """
  where = config["init_from"]
  if not where:
    return
  folder = hf_folder(where)
  if folder is not None:
    imported = hf.load(folder)
    theirs, words = imported.kwargs, imported.tokenizer
  else:
    theirs = config_in(where)["model"]
    words = str(Path(where).expanduser() / "tokenizer")
    if not Path(words).is_dir():  # of images, say
      words = None
  lines = differences(config["model"], theirs)
  if lines:
    raise BadConfig(
      f"init_from={where} is another model than the configured one:\n  "
      + "\n  ".join(lines)
    )
  if tokenizer is None or words is None:
    return
  if data.load_tokenizer(words).fingerprint != tokenizer.fingerprint:
    raise BadConfig(
      f"init_from={where} has a tokenizer of its own, and data.tokenizer="
      f"{config['data']['tokenizer']!r} is another: set "
      f"--config.data.tokenizer={words}"
    )


def differences(model: Mapping, theirs: Mapping) -> list[str]:
  """A line for each key of config.model that makes it another model."""
  kinds = {m.get("kind", "decoder") for m in (model, theirs)}
  kind = theirs.get("kind", "decoder")
  theirs = {**model, **theirs}
  if len(kinds) > 1:
    ours, asked, theirs = model, {"kind": kind}, {"kind": kind}
  elif kinds == {"decoder"}:
    ours, asked = canonical(model), canonical(theirs)
  else:
    ours, asked = model, {k: v for k, v in theirs.items() if k not in FREE}
  lines = []
  for key, value in asked.items():
    if key in ours and ours[key] == value:
      continue
    new = theirs[key]
    way = f"--config.model.{key}={new}"
    if key == "windows":
      way = f"--config.model.{key}='{tuple(new)}'"
    elif new is None or isinstance(new, Mapping):  # no flag can say these
      way = f"config.model.{key} = {new} in the config file"
    lines.append(f"model.{key}={model.get(key)!r}, there it is {new!r}: {way}")
  return lines


def read_params(where: str, abstract, step: int | None = None):
  """(parameters, their step) from a work directory or "hf:FOLDER"."""
  folder = hf_folder(where)
  if folder is not None:
    laid = jax.tree.map(lambda x: x.sharding, abstract)
    return hf.read_params(folder, abstract, laid), 0
  folder = Path(where).expanduser() / "checkpoints"
  found = Checkpoints(
    folder, every_steps=0, keep=1, keep_every_steps=0
  ).restore_params(abstract, step)
  return found[0], int(found[1]["step"])
