"""Relative places in a config are of the folder its run was started in."""

import glob
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from aigc_jax.run import overrides
from aigc_jax.run.settings import Config, config_in, provenance_in, read

JUDGES = ("features", "recogniser")  # runs or folders that an entry names
WORDS = ("bytes", "sentencepiece")  # tokenizers that are no places


def repeated(
  workdir: str | Path, settings: Sequence[tuple[str, str | None]] = ()
) -> Config:
  """The config of the run in a work directory, to be run again from here.

  settings: keys set on the command line, as `overrides.apply` takes them.
  Raises BadConfig where the folder holds no run.
  """
  config = config_in(workdir)
  folder = provenance_in(workdir).get("folder")
  if folder:
    config = located(config, folder)
  return read(overrides.apply(config, settings))


def located(config: Config, folder: str) -> Config:
  """The config with its relative places as they are seen from `folder`.

  What is not there stays as it is: relative to where this process works.
  """
  data = dict(config["data"])
  for key in ("path", "validation_path", "tokenizer", "root"):
    if data.get(key) and data[key] not in WORDS:
      data[key] = _from(folder, data[key])
  found = dict(config) | {"data": _sourced(data, folder)}
  found["evaluate"] = {
    name: _measured(entry, folder) for name, entry in config["evaluate"].items()
  }
  for key in ("init_from", "branch_from"):
    if config.get(key):
      found[key] = _from(folder, config[key])
  if config.get("frozen"):
    found["frozen"] = {
      part: place and _from(folder, place)
      for part, place in config["frozen"].items()
    }
  return found


def _measured(entry: Mapping, folder: str) -> dict:
  """An entry of config.evaluate: its data, and who judges what is made."""
  entry = dict(entry)
  if "data" in entry:
    entry["data"] = _sourced(entry["data"], folder)
  for key in JUDGES:
    if entry.get(key):
      entry[key] = _from(folder, entry[key])
  return entry


def _sourced(section: Mapping, folder: str) -> dict:
  """A section with the places of its `sources`, where it has any."""
  section = dict(section)
  if section.get("sources"):
    section["sources"] = [_source(s, folder) for s in section["sources"]]
  return section


def _source(source: Mapping, folder: str) -> dict:
  source = dict(source)
  if source.get("path"):
    source["path"] = _from(folder, source["path"])
  elif source.get("kind") == "tfds" and source.get("name"):
    if Path(folder, source["name"], "dataset_info.json").is_file():
      source["name"] = _from(folder, source["name"])
  return source


def _from(folder: str, place: str) -> str:
  """A file, a folder, a glob or hf:FOLDER, below `folder` if it is there."""
  path = place.removeprefix("hf:")
  kind = place[: len(place) - len(path)]
  if os.path.isabs(path) or path.startswith("~"):
    return place
  there = os.path.join(folder, path)
  if os.path.lexists(there):
    return kind + os.path.normpath(there)
  pattern = os.path.join(glob.escape(folder), path)
  if glob.has_magic(path) and next(glob.iglob(pattern, recursive=True), None):
    return kind + pattern
  return place
