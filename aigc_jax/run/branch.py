"""A branch: a run that goes on from where another one stood.

With `branch_from` and `branch_step` a new work directory begins as a copy of
another run up to that step: its whole state, its place in the data, its rows.
From there on it is its own, with another schedule, length or data. So it is the
run that its config would have been from the start, as far as the data are the
same: a trunk with a constant learning rate serves decays of all lengths
(arXiv:2405.18392).
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax import files, records
from aigc_jax.errors import BadConfig, StorageFailure
from aigc_jax.records import COUNT
from aigc_jax.run.build import build
from aigc_jax.run.load import identity_in
from aigc_jax.run.settings import Config, usable_config_in
from aigc_jax.trainer import changes, history
from aigc_jax.trainer.consumed import TOTALS
from aigc_jax.trainer.journal import EVENTS, METRICS

# What a branch may have other than its trunk: when it ends, how it decays.
FREE = (
  "steps", *TOTALS, "optim.schedule", "optim.learning_rate",
  "optim.warmup_steps", "optim.warmup_fraction", "optim.decay_steps",
  "optim.final_fraction",
)  # fmt: skip
# Of which run at which step a work directory is a branch. Written before
# anything is copied; config.json is the last that is.
MARK = "branch.json"
FORM = {"from": str, "step": COUNT}


def options_of(workdir: Path, config: Config, options):
  """The options of the session: the first start of a branch may change more.

  While the config in the work directory is still the trunk's, keys of FREE may
  differ from it, and the data where the config says others.
  """
  if not config["branch_from"]:
    return options
  there = usable_config_in(workdir)
  keys = ("branch_from", "branch_step")
  if all(there.get(key) == config[key] for key in keys):
    return options
  return dataclasses.replace(
    options,
    allow_change=[*options.allow_change, *FREE],
    allow_data_change=options.allow_data_change
    or _others(there["data"], config["data"]),
  )


def _others(there: Mapping, here: Mapping) -> bool:
  """Whether a config asks for other data, and not for the same elsewhere."""
  found = changes.changes({"data": there}, {"data": here})
  return not all(map(changes.moved, found))


def begin(workdir: Path, config: Config, mesh, first: bool) -> None:
  """Copies the trunk into a new work directory, unless that was done.

  Raises BadConfig for a trunk or a step that are not there, or that no branch
  can go on from, StorageFailure where it cannot be copied. first: whether this
  process writes.
  """
  if not config["branch_from"] or (workdir / "config.json").is_file():
    return
  trunk, step = trunk_of(config), config["branch_step"]
  if trunk == workdir:
    raise BadConfig(f"branch_from={trunk} is this work directory itself")
  usable_config_in(trunk)  # says so where there is no run
  known = identity_in(trunk)
  saved = history.checkpoints_in(trunk, known)
  steps = saved.steps()
  if step is None:
    if not steps:
      raise BadConfig(f"branch_from={trunk} has no checkpoint to go on from")
    step = steps[-1]
  saved.check_whole(step)
  check_schedule(config, mesh, trunk, step)
  if first:
    _copy(trunk, workdir, step)


def trunk_of(config: Config) -> Path:
  return files.expanded(config["branch_from"]).absolute()


def check(workdir: Path, config: Config) -> None:
  """Raises BadConfig where the work directory is no branch of that trunk."""
  step = config["branch_step"]
  if not config["branch_from"]:
    if step is not None:
      raise BadConfig(f"branch_step={step} without branch_from=DIR")
    return
  if not (workdir / "config.json").is_file():
    return
  trunk, there = trunk_of(config), None
  if (workdir / MARK).is_file():
    there = files.read_json(workdir / MARK, error=BadConfig)
    records.check(there, FORM, workdir / MARK, BadConfig)
  if there is None:
    raise BadConfig(
      f"branch_from={trunk}: {workdir} holds a run that is no branch; use "
      "another --workdir"
    )
  if there["from"] != str(trunk) or step not in (None, there["step"]):
    raise BadConfig(
      f"{workdir} is a branch of {there['from']} at step {there['step']}: keep "
      "branch_from and branch_step, or use another --workdir"
    )


def _copy(trunk: Path, workdir: Path, step: int) -> None:
  """All that is known of the trunk up to a step; its config comes last."""
  stays = [p.name for p in workdir.iterdir() if p.name != "LOCK"]
  if stays and MARK not in stays:
    raise BadConfig(
      f"{workdir} is not empty ({stays[0]}): a branch begins in a new folder"
    )
  saved = f"checkpoints/{step}"
  try:
    files.write_json(workdir / MARK, {"from": str(trunk), "step": step})
    for name in stays:  # of a copy that was not finished
      if name != MARK:
        _remove(workdir / name)
    (workdir / "checkpoints").mkdir()
    _copy_folder(trunk / saved, workdir / saved)
    for name in (METRICS, EVENTS):
      lines = "".join(_lines_until(trunk / name, step))
      files.write_text(workdir / name, lines)
    if (trunk / "tokenizer").is_dir():
      _copy_folder(trunk / "tokenizer", workdir / "tokenizer")
    for name in ("data.json", "run.json", "config.json"):
      if (trunk / name).is_file():
        _copy_file(trunk / name, workdir / name)
    files.sync(workdir)
  except OSError as error:
    raise StorageFailure(
      f"{trunk} cannot be copied to {workdir}: {error}; run the same line again"
    ) from error


def _copy_folder(there: Path, here: Path) -> None:
  here.mkdir()
  for path in sorted(there.iterdir()):
    if path.is_dir() and not path.is_symlink():
      _copy_folder(path, here / path.name)
    else:
      _copy_file(path, here / path.name)


def _copy_file(there: Path, here: Path) -> None:
  """Regular files alone: nothing that is elsewhere comes along."""
  with files.opened(there) as source, here.open("xb") as target:
    shutil.copyfileobj(source, target, 2**22)
  files.sync(here)


def _remove(path: Path) -> None:
  shutil.rmtree(path) if path.is_dir() else os.unlink(path)


def _lines_until(path: Path, step: int) -> Iterator[str]:
  """The whole lines of a journal that are of no later step."""
  if not path.is_file():
    return
  whole = files.content(path).decode(errors="replace")
  for line in whole.splitlines(keepends=True):
    try:
      row = json.loads(line)
    except ValueError:
      continue  # half a line, of a process that writes it now
    at = row.get("step") if isinstance(row, dict) else None
    if line.endswith("\n") and (at is None or at <= step):
      yield line


def check_schedule(config: Config, mesh, trunk: Path, step: int) -> None:
  """Raises BadConfig where the trunk was trained at other learning rates.

  Then a branch would be no run that any config describes.
  """
  before = usable_config_in(trunk) | {"mesh": config["mesh"]}
  # And at the first step of the branch, where the trunk's may rise still.
  at = jnp.arange(step + 1)
  theirs, ours = (
    np.asarray(jax.jit(build(x, mesh).schedule)(at)) for x in (before, config)
  )
  if not step or theirs[step] > theirs[step - 1]:
    raise BadConfig(
      f"branch_step={step} is in the warm-up of {trunk}: branch "
      "from a later step"
    )
  differ = np.flatnonzero(theirs[:step] != ours[:step])
  if differ.size:
    at = int(differ[0])
    raise BadConfig(
      f"branch_step={step}: at step {at} the learning rate of "
      f"{trunk} was {theirs[at]:.4g}, and this config has "
      f"{ours[at]:.4g} there; branch from step {at} at the latest, or keep the "
      "schedule as it was until the branch (wsd decays at the end only: "
      "--config.optim.schedule=wsd --config.optim.decay_steps=N)"
    )
