"""Relative places in a config are of the folder its run was started in."""

import glob
import itertools
import os
import re
from collections.abc import Mapping
from pathlib import Path

from aigc_jax import files
from aigc_jax.run.settings import Config, provenance_in
from aigc_jax.trainer import changes

JUDGES = ("features", "recogniser")  # runs or folders that an entry names
LATER = re.compile(r"run\.(\d{1,18})\.json")  # of a later start


def as_meant(config: Config, workdir: str | Path, say=None) -> Config:
  """A run's config with its places as they are seen from this folder.

  say: is given a line where they are not as they are written.
  """
  workdir = files.expanded(workdir)
  folder = started_in(workdir)
  if not folder or not {"data", "evaluate"} <= config.keys():
    return config
  if os.path.realpath(folder) == os.path.realpath(os.getcwd()):
    return config
  found = located(config, folder)
  moved = changes.changes(config, found)
  if moved and say:
    say(
      f"note: the run of {workdir} was started in {folder}, and what it names "
      f"is looked for there: {', '.join(change.key for change in moved)}"
    )
  return found


def started_in(workdir: Path) -> str | None:
  """The folder in which a run was started, the last time; None if not told."""
  later = [(int(m[1]), m[0]) for p in workdir.glob("run.*.json")
           if (m := LATER.fullmatch(p.name))]  # fmt: skip
  name = max(later)[1] if later else "run.json"
  if not (workdir / name).is_file():
    return None
  return provenance_in(workdir, name).get("folder")


def located(config: Config, folder: str) -> Config:
  """The config with its relative places as they are seen from `folder`.

  What is not there stays as it is: relative to where this process works.
  """
  data = dict(config["data"])
  for key in ("path", "validation_path", "tokenizer", "root"):
    if data.get(key) and data[key] not in changes.WORDS:
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
    name = str(source["name"])
    if os.path.isfile(os.path.join(folder, name, "dataset_info.json")):
      source["name"] = _from(folder, source["name"])
  return source


def _from(folder: str, place: str) -> str:
  """A file, a folder, a glob or hf:FOLDER, below `folder` if it is there.

  Of a glob what stands before its first sign; nothing is searched.
  """
  if not isinstance(place, str):
    return place
  path = place.removeprefix("hf:")
  kind = place[: len(place) - len(path)]
  if os.path.isabs(path) or path.startswith("~"):
    return place
  there = os.path.join(folder, path)
  if os.path.lexists(there):
    return kind + os.path.normpath(there)
  parts = Path(path).parts
  plain = itertools.takewhile(lambda part: not glob.has_magic(part), parts)
  if glob.has_magic(path) and os.path.isdir(os.path.join(folder, *plain)):
    return kind + os.path.join(glob.escape(folder), path)
  return place
