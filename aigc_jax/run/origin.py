"""Whether parameters are those of the model that they are read as.

A run, its checkpoints, a folder that it begins from or has frozen parts from:
each says what it is, and what does not fit is refused before it is used.
"""

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from absl import logging

from aigc_jax import data, files, hf
from aigc_jax.errors import BadConfig, BadData
from aigc_jax.run import spelling
from aigc_jax.run.alike import differences, differing, flags_of
from aigc_jax.run.drawing import (
  PIXELS,
  note_pixels,
  pixels_in,
)
from aigc_jax.run.settings import (
  Config,
  config_file,
  config_in,
  provenance_in,
  usable_config_in,
  written_fingerprint,
)
from aigc_jax.trainer import changes, identity
from aigc_jax.trainer.changes import Change
from aigc_jax.trainer.identity import Identity

# The fingerprint, beside others, of what a tokenizer's folder says beside ids.
SPECIAL = "data.special"


def hf_folder(where: str) -> str | None:
  """The folder of "hf:FOLDER", or None for anything else."""
  if not where.startswith("hf:"):
    return None
  if not where.removeprefix("hf:").strip():
    raise BadConfig("hf: names no folder: expected hf:FOLDER")
  return where.removeprefix("hf:")


def tokenizer_in(where: str | Path, missing: bool = False):
  """The tokenizer of the run in a work directory.

  Nothing outside that directory is read. missing: None where there is none.
  Raises BadData.
  """
  folder = files.expanded(where) / "tokenizer"
  if missing and not os.path.lexists(folder):
    return None
  if folder.is_symlink():
    raise BadData(
      f"{folder} is a link to {os.path.realpath(folder)}: only what lies in "
      "the work directory itself is read; put a copy in its place (cp -rL)"
    )
  return data.load(folder)


def check_origin(
  config: Config, tokenizer=None, allowed: Iterable[str] = ()
) -> list[Change]:
  """Refuses to train on with another model than that of init_from.

  Shapes do not tell a rotary base, an epsilon or a window: the weights would
  be read, and mean something else. tokenizer: of the run, where it is known.
  allowed: keys that are changed on purpose, as --allow_change names them; a
  key that the shapes follow cannot be. Returns what is changed so, to be
  journalled. Raises BadConfig with what to set instead.
  """
  where = config["init_from"]
  if not where:
    return []
  theirs, words = _model_of(where)
  own = config.get("data", {}).get("tokenizer")
  also = []
  if words is not None and own is not None and not _same_words(own, words):
    also = [f"--config.data.tokenizer={shlex.quote(words)}"]
  changed = _changed_on_purpose(
    where, config["model"], theirs, set(allowed), also
  )
  if tokenizer is not None and words is not None:
    _check_words(config, tokenizer, f"init_from={where}", words)
  return changed


def _same_words(own: str, theirs: str) -> bool:
  """Whether data.tokenizer is a place's tokenizer; one to be trained is not."""
  if own == theirs or own != "bytes":
    return own == theirs
  own, theirs = data.load_tokenizer(own), data.load_tokenizer(theirs)
  return own.fingerprint == theirs.fingerprint


def note_origin(config: Config) -> None:
  """Tells what of the data is other than that of init_from, if anything."""
  where = config["init_from"]
  if not where or "mean" not in config["data"]:
    return
  folder, pixels = hf_folder(where), None
  if folder is None:
    pixels = config_in(where).get("data")
  elif (files.expanded(folder) / PIXELS).is_file():
    pixels = pixels_in(folder)
  note_pixels(where, pixels, config)


def note_scaled(config: Config) -> None:
  """Tells where codes of a folder's VAE are scaled otherwise than it says."""
  model, where = config["model"], (config["frozen"] or {}).get("vae") or ""
  folder = hf_folder(where)
  if model["kind"] != "latent" or folder is None:
    return
  said = files.read_json(files.expanded(folder) / "config.json")
  theirs = dict(
    scale=said.get("scaling_factor"), shift=said.get("shift_factor")
  )
  flags = [
    f"--config.model.{key}={value}"
    for key, value in theirs.items()
    if type(value) in (int, float) and value != model[key]
  ]
  if flags:
    logging.warning(
      "frozen.vae=%s says how its codes are scaled, and here they are not "
      "scaled so: %s would, as what was published on them is",
      where, " ".join(flags),
    )  # fmt: skip


def _model_of(where: str) -> tuple[Mapping, str | None]:
  """(config.model, the tokenizer's place or None) of a run or a folder."""
  folder = hf_folder(where)
  if folder is not None:
    imported = hf.load(folder)
    found = spelling.modern_model(
      {"kind": imported.family.kind} | imported.kwargs
    )
    return found["model"], imported.tokenizer
  words = None  # of images, say
  if tokenizer_in(where, missing=True) is not None:
    words = str(files.expanded(where) / "tokenizer")
  return usable_config_in(where)["model"], words


def check_frozen_there(part: str, where: str) -> None:
  """Raises BadConfig where a frozen part is to be read from what is no run."""
  there = files.expanded(where) / "config.json"
  if hf_folder(where) is None and not os.path.lexists(there):
    wanted = re.fullmatch("([A-Z]+)_RUN", where)
    what = "there is no run in this folder"
    if wanted:  # as a preset has it
      config = f"configs/{wanted[1].lower()}.py"
      what = f"stands for a run of yours, such as one of {config}"
    raise BadConfig(
      f"frozen.{part}={where}: {what}. Say where it is: "
      f"--config.frozen.{part}=DIR to train, or `frozen` in the config.json of "
      "the run that it is a part of"
    )


def check_frozen_origins(config: Config, tokenizer=None) -> None:
  """Refuses frozen parts that are read from another model than they are.

  And those that read tokens by another tokenizer than the data's, whose ids
  would mean something else to them. tokenizer: of the run, where it is known.
  Raises BadConfig with what to set instead, BadData for a folder that is none.
  """
  for part, where in config["frozen"].items():
    if not where:
      continue
    check_frozen_there(part, where)
    theirs, words = _model_of(where)
    found = _part_of(config["model"], part)
    if found is None:
      continue  # a piece of one: its shapes are all that is compared
    name, own = found
    lines = differences(own, theirs, name)
    if lines:
      raise BadConfig(
        f"frozen.{part}={where} is another model than {name}:\n  "
        + "\n  ".join(lines)
      )
    if own.get("vocab") and words is not None:
      _check_words(config, tokenizer, f"frozen.{part}={where}", words)
      _check_marks(config, f"frozen.{part}={where}", where)


def _part_of(model: Mapping, path: str) -> tuple[str, Mapping] | None:
  """(its name in a config, its keys) of the part at a path such as "a/b"."""
  name = "model"
  for key in path.split("/"):
    name, model = f"{name}.parts.{key}", model.get("parts", {}).get(key)
    if model is None:
      return None
  return name, model


def _check_words(config: Config, tokenizer, what: str, words: str) -> None:
  """Raises BadConfig unless the data's tokenizer is that of `words`."""
  own = config.get("data", {}).get("tokenizer")
  if tokenizer is None and own not in (None, "sentencepiece"):
    tokenizer = data.load_tokenizer(own)
  if tokenizer is None:
    return  # one that is to be trained is not known yet
  if data.load_tokenizer(words).fingerprint != tokenizer.fingerprint:
    raise BadConfig(
      f"{what} has a tokenizer of its own, and data.tokenizer={own!r} is "
      f"another: set --config.data.tokenizer={shlex.quote(words)}"
    )


def _check_marks(config: Config, what: str, where: str) -> None:
  """Raises BadConfig where texts begin or are filled up in another way."""
  if hf_folder(where) is not None:
    return  # which does not say
  theirs = usable_config_in(where).get("data", {})
  for key in ("start", "pad"):
    own = config.get("data", {}).get(key)
    if key in theirs and theirs[key] != own:
      raise BadConfig(
        f"{what} was trained on texts with data.{key}={theirs[key]}, and here "
        f"data.{key}={own}: set --config.data.{key}={theirs[key]}"
      )


def _changed_on_purpose(
  where: str,
  model: Mapping,
  theirs: Mapping,
  allowed: set[str],
  also: Sequence[str],
) -> list[Change]:
  """The allowed differences of two models; BadConfig where there are others.

  also: what the line needs besides to train on with theirs.
  """
  found = [
    Change(f"model.{key}", value, model.get(key))
    for key, value in differing(model, theirs).items()
  ]
  never = [change.key for change in found if changes.fits_never(change.key)]
  if not never and all(change.key in allowed for change in found):
    return found
  ways = [change.key for change in found if change.key not in never]
  lines = differences(model, theirs)
  raise BadConfig(
    f"init_from={where} is another model than the configured one:\n  "
    + "\n  ".join(lines)
    + "\nall in one line: "
    + " ".join([*flags_of(model, theirs), *also])
    + (f"\nor, on purpose, --allow_change={','.join(ways)}" if ways else "")
    + (
      f"\n{', '.join(never)} cannot be changed, the parameters would not fit"
      if never
      else ""
    )
  )


def saved_model(content: Mapping) -> dict | None:
  """config.model of when a checkpoint was saved; None where it has none."""
  saved = content["meta"].get("model")
  if not isinstance(saved, Mapping):
    return None
  return spelling.modern_model(saved)["model"]


def check_saved(
  where: str, config: Config, tokenizer, content: Mapping
) -> None:
  """Refuses parameters that were trained as another model than config.json's.

  content: the manifest of their checkpoint, which holds the model and the
  fingerprint of the tokenizer that they were trained with. tokenizer: that of
  the work directory, or None where there is none. Raises BadConfig.
  """
  step, meta = content["step"], content["meta"]
  saved = saved_model(content)
  if saved is not None:
    model = config["model"]
    lines = [
      f"model.{key}={model.get(key)!r}, there it is {value!r}"
      for key, value in differing(model, saved).items()
    ]
    if lines:
      raise BadConfig(
        f"{where}/config.json is not of the model that step {step} was saved "
        "of:\n  "
        + "\n  ".join(lines)
        + "\nPut back the config.json of that run (a config.before-STEP.json "
        "beside it is from before a change)"
      )
    note_edited(where, content)
  elif meta.get("config_sha256") not in (None, written_fingerprint(where)):
    logging.warning(
      "step %d is from before checkpoints held their model, and "
      "%s/config.json is not as it was then: it is taken as it is", step, where
    )  # fmt: skip
  words = meta.get("tokenizer_fingerprint")
  if tokenizer is None:
    return
  if words in (None, tokenizer.fingerprint):
    special = meta.get("heldout_fingerprints", {}).get(SPECIAL)
    if special in (None, tokenizer.special_fingerprint):
      return
    raise BadConfig(
      f"{where}/tokenizer says other special tokens (mask_token, eos_token_id "
      f"and the like) than step {step} was trained with: put back its "
      "tokenizer_config.json, special_tokens_map.json, config.json and "
      "generation_config.json"
    )
  raise BadConfig(
    f"{where}/tokenizer is not the tokenizer that step {step} was trained with "
    f"({tokenizer.fingerprint[:12]}, there it was {words[:12]}): put back that "
    "of this run"
  )


def note_edited(where: str | Path, content: Mapping) -> None:
  """Tells where no config of a work directory is that of a checkpoint.

  content: its manifest. Of the model that would be refused; the rest says how
  a run goes on, or how its pixels were scaled.
  """
  sha256 = content["meta"].get("config_sha256")
  if sha256 is not None and config_file(where, sha256) is None:
    logging.warning(
      "%s/config.json is not the one that step %d was saved with: it was "
      "edited, and is taken as it is now", where, content["step"],
    )  # fmt: skip


def check_resumed(
  model: Mapping, allowed: Iterable[str], content: Mapping
) -> None:
  """Refuses to train a checkpoint on as another model than it was saved of.

  model: config.model. allowed: keys that may change. Raises BadConfig.
  """
  saved = saved_model(content)
  if saved is None:
    return
  keys = [f"model.{key}" for key in differing(model, saved)]
  if set(keys) <= set(allowed):
    return
  lines, flag = differences(model, saved), f"--allow_change={','.join(keys)}"
  raise BadConfig(
    f"the checkpoint of step {content['step']} is of another model than the "
    "config:\n  " + "\n  ".join(lines) + f"\nor, to change it now, {flag}"
  )


def identity_in(workdir: Path) -> Identity | None:
  """Which run a work directory holds; None where it has no run.json."""
  if not (workdir / "run.json").is_file():
    return None
  return identity.of(provenance_in(workdir))
