"""The section `compute`: how a model is computed, which is not what it is.

It is one flat dict with one meaning for every kind of model. The functions in
models/ stay plain functions of keywords; each is handed those keys of `compute`
that its signature has, and so is each of the parts of a model of several. A
section of model.parts may have such a key of its own, which goes before: a VQ
in float32 under a prior in bfloat16.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from aigc_jax.errors import BadConfig
from aigc_jax.models import COMPUTE, MODELS
from aigc_jax.presets import skeleton
from aigc_jax.signature import check_type, expect, keys_of

# Those of the step itself, whatever the model; and of each key the type.
STEP = {
  "microbatches": int, "steps_per_call": int, "cast_once": bool, "library": str,
}  # fmt: skip
KEYS = dict(
  dtype=str, products=str, remat=str, unroll=int | None, kernel=str,
  fuse_projections=bool, embed_gradient=str, **STEP,
)  # fmt: skip


@functools.cache
def _defaults() -> dict[str, Any]:
  return skeleton().compute.to_dict()


def defaults() -> dict[str, Any]:
  """All keys as the skeleton has them: they are those of every family."""
  return dict(_defaults())


def settings(config: Mapping) -> dict[str, Any]:
  """config.compute, with the skeleton's for what it does not say."""
  return defaults() | dict(config.get("compute") or {})


def keywords(config: Mapping) -> dict:
  """config.model with what it takes of compute: all keywords, and the kind.

  Raises BadConfig for a value of another type than the model takes.
  """
  return _with(config["model"], settings(config))


def _with(model: Mapping, compute: Mapping) -> dict:
  taken = {key: compute[key] for key in _takes(model) if key not in model}
  for key, value in taken.items():
    make = MODELS[model["kind"]]
    check_type(f"compute.{key}", value, keys_of(make)[key].annotation)
  found = dict(model) | taken
  if isinstance(model.get("parts"), Mapping):
    found["parts"] = {
      name: _with(part, compute) if isinstance(part, Mapping) else part
      for name, part in model["parts"].items()
    }
  return found


def _takes(model: Mapping) -> list[str]:
  """The keys that the function of this section has, without its parts."""
  kind = model.get("kind")
  if not isinstance(kind, str) or kind not in MODELS:
    return []  # refused by name where it is read
  return [key for key in COMPUTE if key in keys_of(MODELS[kind])]


def sections(model: Mapping) -> Iterator[Mapping]:
  """The section of a model, then those of its parts."""
  yield model
  parts = model.get("parts")
  for part in parts.values() if isinstance(parts, Mapping) else ():
    if isinstance(part, Mapping):
      yield from sections(part)


def takes(model: Mapping) -> set[str]:
  """The keys that a model takes, or one of its parts."""
  return {key for section in sections(model) for key in _takes(section)}


def bare(model: Mapping, keys=COMPUTE) -> dict:
  """A section model without keys of compute, in its parts neither."""
  found = {key: value for key, value in model.items() if key not in keys}
  if isinstance(found.get("parts"), Mapping):
    found["parts"] = {
      name: bare(part, keys) if isinstance(part, Mapping) else part
      for name, part in found["parts"].items()
    }
  return found


def changed(config: Mapping, **values: object) -> dict:
  """The config with other values in compute, also for parts with their own.

  Raises BadConfig for a key that is none of compute.
  """
  expect("compute", values, (), among=KEYS)
  compute = settings(config) | values
  return dict(config) | {
    "compute": compute, "model": bare(config["model"], values)
  }  # fmt: skip


def taken(config: Mapping) -> set[str]:
  """The keys that the step of a config, its model or a part of it takes."""
  return {*STEP, *takes(config["model"])}


def check_taken(config: Mapping) -> None:
  """Raises BadConfig for a value that is no default and that nothing takes."""
  usual, known = _defaults(), taken(config)
  for key, value in config["compute"].items():
    if key not in known and value != usual[key]:
      raise BadConfig(
        f"compute.{key}={value!r}: nothing of this config takes it, no "
        f"model.kind={config['model'].get('kind')!r} has such a choice: "
        f"--config.compute.{key}={usual[key]}"
      )


def sectioned(config: Mapping[str, Any]) -> dict[str, Any]:
  """The config with a section compute, also one from before there was any.

  There its keys stood in model and beside the sections. Where parts of a model
  had different ones, they keep them. Raises BadConfig for a config with that
  section and such a key where it was before.
  """
  if "compute" in config:
    _check_places(config)
    found = dict(config)
    if isinstance(config["compute"], Mapping):
      found["compute"] = defaults() | dict(config["compute"])
    return found
  found = {key: value for key, value in config.items() if key not in STEP}
  compute = {key: config[key] for key in STEP if key in config}
  if isinstance(config.get("model"), Mapping):
    found["model"], own = parted(config["model"])
    compute |= own
  found["compute"] = defaults() | compute
  return found


def parted(model: Mapping) -> tuple[dict, dict]:
  """(section model, keys of compute) of a section that has both as one.

  As models are told of in folders and in configs of before.
  """
  compute = {}
  for key in COMPUTE:
    usual = _defaults()[key]
    values = [
      section.get(key, usual)
      for section in sections(model)
      if key in section or key in _takes(section)
    ]
    if values and all(value == values[0] for value in values):
      compute[key] = values[0]
  return bare(model, compute), compute


def now_at(key: str) -> str | None:
  """Where a key is today, "compute.remat", that stood elsewhere before."""
  section, _, last = key.rpartition(".")
  if key in STEP or (section.startswith("model") and last in COMPUTE):
    return f"compute.{last}"
  return None


def _check_places(config: Mapping) -> None:
  old = {key: config[key] for key in STEP if key in config}
  model = config.get("model")
  if isinstance(model, Mapping):
    old |= {f"model.{key}": model[key] for key in COMPUTE if key in model}
  for key, value in old.items():
    new = now_at(key)
    raise BadConfig(
      f"config key {key} is {new} today: in a config file config.{new} = "
      f"{value!r}, on the command line --config.{new}={value}"
    )
