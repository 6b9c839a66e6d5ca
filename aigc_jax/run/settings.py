"""Reading a config: plain values, every key known, sizes that go together.

A config is checked against the keyword arguments of what it configures, so a
missing or unknown key is an error that names the nearest one.
"""

import inspect
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from aigc_jax import files, sharding
from aigc_jax.errors import BadConfig, choose, nearest

Config = dict[str, Any]  # plain JSON values, nested by section

# Sections whose keys are not all keyword arguments of one function.
SECTIONS = (
  "seed",
  "steps",
  "total_tokens",
  "microbatches",
  "steps_per_call",
  "cast_once",
  "library",
  "mesh",
  "data",
  "model",
  "objective",
  "optim",
  "evaluate",
  "checkpoint",
  "log",
  "init_from",
)
CHECKPOINT = ("every_steps", "keep", "keep_every_steps")
LOG = ("every_steps",)
DATA = (
  "sources", "path", "field", "tokenizer", "tokenizer_vocab", "task", "batch",
  "length", "segments", "shuffle", "validation", "validation_path", "root",
  "skip_steps",
)  # fmt: skip


def read(config: ConfigDict | Mapping) -> Config:
  """The config as plain values, with `steps` settled; raises BadConfig."""
  plain = json.loads(
    config.to_json() if isinstance(config, ConfigDict) else json.dumps(config)
  )
  plain = _completed(plain)
  expect("config", plain, SECTIONS)
  expect("checkpoint", plain["checkpoint"], CHECKPOINT)
  expect("log", plain["log"], LOG)
  expect("mesh", plain["mesh"], sharding.AXES)
  expect("data", plain["data"], DATA)
  expect("data.task", plain["data"]["task"], ("kind",))
  _check_sizes(plain)
  return plain


def _completed(config: Config) -> Config:
  """With the keys of before that have a default since."""
  data = config.get("data")
  if isinstance(data, dict):
    data = {"validation_path": ""} | data
  return {"library": "xla"} | config | {"data": data}


def expect(where: str, given: Iterable[str], wanted: Iterable[str]) -> None:
  """Raises BadConfig unless `given` are just the keys `wanted`."""
  given, wanted = list(given), list(wanted)
  prefix = "" if where == "config" else f"{where}."
  for key in given:
    if key not in wanted:
      raise BadConfig(
        f"config key {prefix}{key} is unknown{nearest(key, wanted)} "
        f"(there are: {', '.join(wanted)})"
      )
  for key in wanted:
    if key not in given:
      raise BadConfig(f"config key {prefix}{key} is missing")


def _check_sizes(config: Config) -> None:
  """Settles `steps` and checks what concerns more than one section."""
  batch, length = config["data"]["batch"], config["data"]["length"]
  positive = {
    "microbatches": config["microbatches"],
    "steps_per_call": config["steps_per_call"],
    "data.batch": batch,
    "data.length": length,
    "log.every_steps": config["log"]["every_steps"],
  }
  for name, value in positive.items():
    if not isinstance(value, int) or value < 1:
      raise BadConfig(f"{name}={value!r}: expected a positive integer")
  if not 0 <= config["seed"] < 2**32:
    raise BadConfig(f"seed={config['seed']}: expected 0 to {2**32 - 1}")
  at_least_0 = {"total_tokens": config["total_tokens"]}
  if "chunk" in config["objective"]:
    at_least_0["objective.chunk"] = config["objective"]["chunk"]
  for name, value in at_least_0.items():
    if value < 0:
      raise BadConfig(f"{name}={value}: expected 0 or more")
  for name, entry in config["evaluate"].items():
    if "every_steps" not in entry:
      raise BadConfig(f"config key evaluate.{name}.every_steps is missing")
  if config["checkpoint"]["keep"] < 1:
    keep = config["checkpoint"]["keep"]
    raise BadConfig(f"checkpoint.keep={keep}: expected at least 1")
  if config["total_tokens"]:
    config["steps"] = math.ceil(config["total_tokens"] / (batch * length))
  if config["steps"] < 0:
    raise BadConfig(f"steps={config['steps']}: expected 0 or more")
  call = config["steps_per_call"]
  if call > 1:
    intervals = {
      "steps": config["steps"],
      "checkpoint.every_steps": config["checkpoint"]["every_steps"],
      **{
        f"evaluate.{name}.every_steps": entry["every_steps"]
        for name, entry in config["evaluate"].items()
      },
    }
    for name, value in intervals.items():
      if value > 0 and value % call:
        raise BadConfig(
          f"{name}={value} is not a multiple of steps_per_call={call}: the "
          "host acts only between calls"
        )


def call(f: Callable, section: str, values: Mapping, /, **more):
  """f(**values, **more); keys that do not fit are BadConfig, by name."""
  check_call(f, section, values, *more)
  return f(**values, **more)


def check_call(f: Callable, section: str, values: Mapping, /, *more: str):
  """Raises BadConfig unless f takes `values` and what `more` names."""
  signature = inspect.signature(f).parameters.values()
  known = [p for p in signature if p.kind is p.KEYWORD_ONLY]
  wanted = [p.name for p in known if p.name not in more]
  for key in values:
    if key not in wanted:
      raise BadConfig(
        f"config key {section}.{key} is unknown{nearest(key, wanted)} "
        f"(there are: {', '.join(wanted)})"
      )
  for p in known:
    if p.default is p.empty and p.name not in values and p.name not in more:
      raise BadConfig(f"config key {section}.{p.name} is missing")


def kind_of(section: str, values: Mapping, table: Mapping) -> tuple:
  """(table[kind], the other keys) of a section that has a kind."""
  if "kind" not in values:
    raise BadConfig(f"config key {section}.kind is missing")
  rest = {k: v for k, v in values.items() if k != "kind"}
  return choose(values["kind"], table, f"{section}.kind"), rest


def fingerprint(config: Mapping) -> str:
  """A hash of all that a config says."""
  return files.sha256_json(config)


def config_from(path: str | Path) -> ConfigDict:
  """The config in a JSON file, as flags may change it: data, never executed.

  Raises BadConfig for what is no such file.
  """
  found = files.read_json(Path(path).expanduser(), error=BadConfig)
  return ConfigDict(_changeable(found)).lock()


def _changeable(value):
  """JSON's values as a config has them: tuples; None may become anything."""
  if isinstance(value, dict):
    return {key: _changeable(x) for key, x in value.items()}
  if isinstance(value, list):
    return tuple(_changeable(x) for x in value)
  return placeholder(object) if value is None else value


def config_in(workdir: str | Path) -> Config:
  """The config a run was started with, read as data."""
  return _completed(_json_in(workdir, "config.json"))


def provenance_in(workdir: str | Path) -> dict:
  """What a run recorded of its code, data and machine."""
  return _json_in(workdir, "run.json")


def result_in(workdir: str | Path) -> dict:
  """What a finished run left as its result."""
  return _json_in(workdir, "result.json")


def _json_in(workdir: str | Path, name: str) -> dict:
  path = Path(workdir).expanduser() / name
  if not os.path.lexists(path):
    raise BadConfig(
      f"{workdir} holds no run: there is no {name} in it "
      "(expected the --workdir that training was given)"
    )
  return files.read_json(path, error=BadConfig)
