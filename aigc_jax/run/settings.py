"""Reading a config: plain values, every key known, sizes that go together.

A config is checked against the keyword arguments of what it configures, so a
missing or unknown key is an error that names the nearest one.
"""

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from aigc_jax import files, records, sharding
from aigc_jax.data import KINDS
from aigc_jax.errors import BadConfig, choose
from aigc_jax.models import COMPUTE, DERIVED, MODELS
from aigc_jax.records import COUNT
from aigc_jax.run import budget, compute, spelling
from aigc_jax.signature import (
  call,
  check_call,
  check_type,
  check_types,
  expect,
  keys_of,
  kind_of,
)
from aigc_jax.trainer.consumed import TOTALS

Config = dict[str, Any]  # plain JSON values, nested by section

# What holds the config of before a change at a step; more than one, if the run
# was changed there again before it got any further.
BEFORE = re.compile(r"config\.before-(\d{1,18})(?:\.(\d{1,18}))?\.json")

# What may be measured or used, and where a state has it.
WEIGHTS = {"raw": "params", "average": "average"}

INT32 = 2**31 - 1  # what steps, ids and sizes are on a device
# These have bounds of their own.
LARGE = ("seed", "total_tokens", "total_examples", "total_flops")

# The keys whose values are not all keyword arguments of one function, and the
# types of their values.
SECTIONS = {
  "seed": int,
  "steps": float | None,
  **dict.fromkeys(TOTALS, float | None),
  "mesh": Mapping,
  "data": Mapping,
  "model": Mapping,
  "compute": Mapping,
  "objective": Mapping,
  "optim": Mapping,
  "evaluate": Mapping,
  "checkpoint": Mapping,
  "log": Mapping,
  "init_from": str | None,
  "frozen": Mapping,
  "init_parts": Mapping,
  "branch_from": str | None,
  "branch_step": int | None,
}
CHECKPOINT = {
  "every_steps": int | None,
  "keep": int,
  "keep_every_steps": int | None,
}
LOG = {"every_steps": int}
MESH = dict.fromkeys(sharding.AXES, int | None)


# What files of a work directory are, so far as anything here looks into them.
# Of a config only what is read before `read` has looked at it.
SIZE = range(1, 2**31)
STORED = {
  "seed?": int,
  "steps?": (int, None),
  "data?": {"kind?": str, "path?": (str, None), "sources?": [dict],
            "length?": SIZE, "batch?": SIZE, "validation?": float,
            "validation_path?": (str, None), "root?": str, "tokenizer?": str,
            "tokenizer_vocab?": int, "field?": str, "segments?": bool,
            "shuffle?": bool, "task?": {"kind?": str}},
  "model?": {"kind?": str},
  "compute?": dict,
  "optim?": dict,
  "objective?": dict,
  "init_from?": (str, None),
  "branch_from?": (str, None),
  "frozen?": {str: (str, None)},
  "evaluate?": {str: {"kind?": str, "batches?": (int, None),
                      "features?": (str, None), "recogniser?": (str, None),
                      "data?": {"split?": str, "sources?": [dict]}}},
}  # fmt: skip
# What a model is made of and measured by must be there beside.
NEEDED = {
  "model": {"kind": str},
  "data": {"batch": SIZE},
  "objective": dict,
  "evaluate": {str: {"kind": str}},
  "init_from": (str, None),
}
NAMED = {str: (str, float, bool, None)}
PROVENANCE = {
  "seed?": int,
  "code?": {"dirty?": bool, "commit?": (str, None), "sha256?": str},
  "packages?": NAMED,
  "environment?": NAMED,
  "jax?": {"mesh?": NAMED, "config?": NAMED},
  "argv?": [str],
  "folder?": str,
  "data_fingerprint?": str,
  "tokenizer_fingerprint?": str,
  "heldout_fingerprints?": {str: str},
  "heldout_entries?": {str: str},
}
RESULT = {
  "step": COUNT,
  "digest?": ([COUNT], None),
  "goodput?": {str: float},
  str: (float, str, bool, None),
}


def read(config: ConfigDict | Mapping) -> Config:
  """The config as plain values, with widths settled.

  `steps` is None where a total says when the run ends (`budget.settle`).
  Raises BadConfig, naming the key.
  """
  plain = spelling.modern(plain_of(config))
  _check_whole_numbers("", {k: plain[k] for k in plain if k not in LARGE})
  expect("config", plain, SECTIONS, among=SECTIONS)
  check_types("", plain, SECTIONS)
  for section, types in (
    ("checkpoint", CHECKPOINT), ("log", LOG), ("mesh", MESH),
    ("compute", compute.KEYS),
  ):  # fmt: skip
    expect(section, plain[section], types)
    check_types(section, plain[section], types)
  check_data(plain)
  make, rest = kind_of("model", plain["model"], MODELS)
  check_call(make, "model", rest, *COMPUTE)
  compute.check_taken(plain)
  _settle_widths(plain)
  _settle_entries(plain["evaluate"])
  _check_sizes(plain)
  return plain


def _check_whole_numbers(where: str, value: Any) -> None:
  """Raises BadConfig for a whole number that a device has no room for."""
  if isinstance(value, Mapping):
    for key, inner in value.items():
      _check_whole_numbers(f"{where}.{key}" if where else key, inner)
  elif isinstance(value, list):
    for i, inner in enumerate(value):
      _check_whole_numbers(f"{where}[{i}]", inner)
  elif isinstance(value, int) and abs(value) > INT32:
    raise BadConfig(f"{where}={value}: expected at most {INT32} (32 bits)")


def plain_of(config: ConfigDict | Mapping) -> Config:
  """The config as dicts and lists. Raises BadConfig for other values."""
  return _plain("config", config)


def _plain(where: str, value: Any) -> Any:
  """Lists, dicts and JSON's values; BadConfig for what a config cannot hold."""
  if isinstance(value, ConfigDict | Mapping):
    prefix = "" if where == "config" else f"{where}."
    return {str(k): _plain(f"{prefix}{k}", value[k]) for k in value}
  if isinstance(value, list | tuple):
    return [_plain(f"{where}[{i}]", x) for i, x in enumerate(value)]
  value = value.item() if hasattr(value, "item") else value  # NumPy's numbers
  if isinstance(value, str):
    files.check_text(value, f"{where}:")
  if value is None or isinstance(value, bool | int | float | str):
    return value
  raise BadConfig(
    f"{where}={value!r}: a config holds numbers, texts, True, False, None, "
    "lists and dicts of them"
  )


def _settle_entries(entries: Config) -> None:
  """Entries of config.evaluate that do not say when are made at the end."""
  check_types("evaluate", entries, dict.fromkeys(entries, Mapping))
  for entry in entries.values():
    entry.setdefault("every_steps", None)


def _settle_widths(config: Config) -> None:
  """Puts numbers for the widths that are None, and tells of odd ones."""
  for model in (config["model"], *config["model"].get("parts", {}).values()):
    _settle_model(model, config)


def _settle_model(model: dict, config: Config) -> None:
  derive = DERIVED.get(model["kind"])
  if derive is not None:
    model |= derive(**{key: model[key] for key in keys_of(derive)})
    dim, mlp, span = (
      model["dim"], model["mlp_dim"], model["heads"] * model["head_dim"],
    )  # fmt: skip
    if mlp < dim:
      logging.warning(
        "model.mlp_dim=%d is narrower than model.dim=%d: None follows it",
        mlp, dim,
      )  # fmt: skip
    if span < dim:
      logging.warning(
        "model.heads=%d of model.head_dim=%d span %d of model.dim=%d: a "
        "head_dim of None follows it",
        model["heads"], model["head_dim"], span, dim,
      )  # fmt: skip
  learned = "position" in model and model["position"] == "learned"
  length = config["data"].get("length")
  if learned and model.get("position_length", 0) is None and length:
    model["position_length"] = length


def most_positions(model: Mapping) -> int:
  """How many positions a model can write to at most; 0 where nothing ends them.

  Rows of learned positions; or up to where frequencies would be others with
  each position that comes, and keys that are kept would be turned by old ones.
  """
  if model.get("position", "learned") == "learned":
    return model.get("position_length") or 0
  scaling = model.get("rotary_scaling") or {}
  return scaling["original_length"] if scaling.get("kind") == "dynamic" else 0


def _check_sizes(config: Config) -> None:
  """Checks what concerns more than one section."""
  positive = {
    "compute.microbatches": config["compute"]["microbatches"],
    "compute.steps_per_call": config["compute"]["steps_per_call"],
    "log.every_steps": config["log"]["every_steps"],
  }
  for name, value in positive.items():
    if not isinstance(value, int) or value < 1:
      raise BadConfig(f"{name}={value!r}: expected a positive integer")
  if not 0 <= config["seed"] < 2**32:
    raise BadConfig(f"seed={config['seed']}: expected 0 to {2**32 - 1}")
  optional = {}
  if "chunk" in config["objective"]:
    optional["objective.chunk"] = config["objective"]["chunk"]
  for key in ("every_steps", "keep_every_steps"):
    optional[f"checkpoint.{key}"] = config["checkpoint"][key]
  for name, entry in config["evaluate"].items():
    optional[f"evaluate.{name}.every_steps"] = entry["every_steps"]
  for name, value in optional.items():
    check_type(name, value, int | None)
    if value is not None and value < 1:
      raise BadConfig(f"{name}={value}: expected 1 or more, or None")
  if config["checkpoint"]["keep"] < 1:
    keep = config["checkpoint"]["keep"]
    raise BadConfig(f"checkpoint.keep={keep}: expected at least 1")
  budget.read(config)
  call = config["compute"]["steps_per_call"]
  if call > 1:
    intervals = {
      "steps": config["steps"] or 0,
      "checkpoint.every_steps": config["checkpoint"]["every_steps"],
      **{
        f"evaluate.{name}.every_steps": entry["every_steps"]
        for name, entry in config["evaluate"].items()
      },
    }
    fits = math.gcd(*(x for x in intervals.values() if x), call)
    for name, value in intervals.items():
      if value and value % call:
        raise BadConfig(
          f"{name}={value} is not a multiple of compute.steps_per_call={call}: "
          "the host acts only between calls. Use "
          f"--config.compute.steps_per_call={fits}, which fits all of them, or "
          f"--config.{name}={math.ceil(value / call) * call}"
        )


def fingerprint(config: Mapping) -> str:
  """A hash of all that a config says."""
  return files.sha256_json(config)


def config_in(workdir: str | Path, name: str = "config.json") -> Config:
  """The config a run was started with, read as data, as it is spelt today.

  name: of the file, as config.before-STEP.json is that of before a change.
  """
  return spelling.modern(_json_in(workdir, name, STORED))


def usable_config_in(workdir: str | Path, name: str = "config.json") -> Config:
  """`config_in`, with all that using the model takes; else BadConfig."""
  config = config_in(workdir, name)
  where = str(files.expanded(workdir) / name)
  records.check(config, NEEDED, where, BadConfig)
  _check_whole_numbers("", {k: config[k] for k in config if k not in LARGE})
  return config


def check_data(config: Config) -> None:
  """Raises BadConfig where a section data is not one that can be opened."""
  data_of(config)


def data_of(config: Config):
  """The data that a config describes, of one of data.KINDS; opens nothing."""
  make, rest = kind_of("data", config["data"], KINDS)
  return call(make, "data", rest)


def check_weights(name: str, weights: str, config: Config) -> None:
  """Raises BadConfig unless a run has such weights: raw, or their average."""
  choose(weights, WEIGHTS, name)
  if weights != "raw" and not config["optim"].get("average"):
    raise BadConfig(
      f"{name}={weights}: this run keeps no average of its parameters "
      "(--config.optim.average=0.999 does, from its start)"
    )


def written_fingerprint(workdir: str | Path, name: str = "config.json") -> str:
  """The hash of a run's config as it is written, however that is spelt."""
  return fingerprint(as_written(workdir, name))


def as_written(workdir: str | Path, name: str = "config.json") -> Config:
  """A run's config word for word, however it is spelt."""
  return _json_in(workdir, name, STORED)


def earlier_configs(workdir: str | Path) -> list[str]:
  """The files that hold the configs of before a change, the first one first."""
  found = files.expanded(workdir).glob("config.before-*.json")
  known = ((BEFORE.fullmatch(path.name), path.name) for path in found)
  return [name for _, name in sorted(
    (tuple(int(n or 0) for n in m.groups()), name) for m, name in known if m
  )]  # fmt: skip


def config_file(workdir: str | Path, sha256: str | None) -> str | None:
  """The file of a work directory that holds the config of this hash, if one.

  sha256: as a checkpoint has it of the config that it was trained with.
  """
  for name in ("config.json", *reversed(earlier_configs(workdir))):
    try:
      if written_fingerprint(workdir, name) == sha256:
        return name
    except BadConfig:
      continue  # no config, and so not the one that is looked for
  return None


def provenance_in(workdir: str | Path, name: str = "run.json") -> dict:
  """What a run recorded of its code, data and machine at a start."""
  return _json_in(workdir, name, PROVENANCE)


def result_in(workdir: str | Path) -> dict:
  """What a finished run left as its result."""
  return _json_in(workdir, "result.json", RESULT)


def _json_in(workdir: str | Path, name: str, form: Mapping) -> dict:
  """A file of a work directory; BadConfig unless it is of this form."""
  path = files.expanded(workdir) / name
  if not os.path.lexists(path):
    raise BadConfig(
      f"{workdir} holds no run: there is no {name} in it "
      "(expected the --workdir that training was given)"
    )
  found = files.read_json(path, error=BadConfig)
  if "model" not in found and {"model_type", "_class_name"} & {*found}:
    raise BadConfig(
      f"{workdir} holds no run, but a model as Hugging Face has them: write it "
      f"as hf:{workdir}"
    )
  return records.check(found, form, str(path), BadConfig)
