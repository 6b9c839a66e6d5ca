"""A branch: a run that goes on from where another one stood.

With `branch_from` and `branch_step` a new work directory begins as a copy of
another run up to that step: its whole state, its place in the data, its rows.
From there on it is its own, with another schedule, length or data. So it is the
run that its config would have been from the start, as far as the data are the
same: a trunk with a constant learning rate serves decays of all lengths
(arXiv:2405.18392).
"""

import dataclasses
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax import files, records
from aigc_jax.data import listing
from aigc_jax.errors import BadConfig, StorageFailure
from aigc_jax.records import COUNT, SHA256
from aigc_jax.run.build import build
from aigc_jax.run.origin import hf_folder, identity_in, tokenizer_in
from aigc_jax.run.settings import (
  BEFORE,
  Config,
  config_file,
  config_in,
  earlier_configs,
  usable_config_in,
  written_fingerprint,
)
from aigc_jax.trainer import changes, history, manifest
from aigc_jax.trainer.consumed import TOTALS
from aigc_jax.trainer.journal import EVENTS, METRICS

# What a branch may have other than its trunk: when it ends, how it decays.
FREE = (
  "steps", *TOTALS, "optim.schedule", "optim.learning_rate",
  "optim.warmup_steps", "optim.warmup_fraction", "optim.decay_steps",
  "optim.final_fraction",
)  # fmt: skip
# Of which run at which step a work directory is a branch. Written before
# anything is copied, with "copying" until all of it is; config.json is the last
# that is copied, and "config" the hash of it as it is the trunk's.
MARK = "branch.json"
FORM = {"from": str, "step": COUNT, "copying?": bool, "config?": SHA256}
# All that is copied; a copy that was not finished is removed, and nothing else.
COPIED = (
  "checkpoints", METRICS, EVENTS, "tokenizer", "data.json", "run.json",
  "config.json",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Trunk:
  """A run at a step of which it has a checkpoint.

  content: its manifest. configs: (step from which on, file of the config) of
  all that the run went by until then; the last is that of the checkpoint.
  """

  path: Path
  step: int
  content: Mapping
  configs: tuple[tuple[int, str], ...]


def options_of(workdir: Path, config: Config, options):
  """The options of the session: the first start of a branch may change more.

  While the config in the work directory is still the trunk's, keys of FREE may
  differ from it, and the data where the config says others.
  """
  if not config["branch_from"] or not _begins(workdir, config):
    return options
  there = usable_config_in(workdir)
  return dataclasses.replace(
    options,
    allow_change=[*options.allow_change, *FREE],
    allow_data_change=options.allow_data_change
    or _others(there["data"], config["data"]),
  )


def _begins(workdir: Path, config: Config) -> bool:
  """Whether the config in the work directory is still the trunk's."""
  mark = _mark_in(workdir) or {}
  if "config" in mark:
    return written_fingerprint(workdir) == mark["config"]
  there = usable_config_in(workdir)
  keys = ("branch_from", "branch_step")
  return any(there.get(key) != config[key] for key in keys)


def _others(there: Mapping, here: Mapping) -> bool:
  """Whether a config asks for other data, and not for the same elsewhere."""
  found = changes.changes({"data": there}, {"data": here})
  return not all(map(changes.moved, found))


def begin(
  workdir: Path,
  config: Config,
  mesh,
  first: bool,
  say: Callable[[str], None] = lambda text: None,
) -> None:
  """Copies the trunk into a new work directory, unless that was done.

  Raises BadConfig for a trunk or a step that are not there, or that no branch
  can go on from, StorageFailure where it cannot be copied. first: whether this
  process writes.
  """
  if not config["branch_from"]:
    return
  mark = _mark_in(workdir)
  copying = mark is not None and mark.get("copying", False)
  if (workdir / "config.json").is_file():
    if copying and first:
      _note(workdir, mark | {"copying": False})
    return
  if mark is not None and not copying:
    raise BadConfig(
      f"{workdir} is a branch of {mark['from']} at step {mark['step']}, and "
      "its config.json is gone: put it back (this line with --print_config > "
      f"{workdir}/config.json makes one), or use another --workdir"
    )
  trunk = _trunk(trunk_of(config), config["branch_step"], workdir)
  check_schedule(config, mesh, trunk)
  for line in changed_before(trunk):
    say(line)
  if first:
    _copy(trunk, workdir)


def _trunk(path: Path, step: int | None, workdir: Path) -> Trunk:
  """What is gone on from. Raises BadConfig where it is not there."""
  if os.path.realpath(path) == os.path.realpath(workdir):
    raise BadConfig(f"branch_from={path} is this work directory itself")
  usable_config_in(path)  # says so where there is no run
  saved = history.checkpoints_in(path, identity_in(path))
  steps = saved.steps()
  if step is None:
    if not steps:
      raise BadConfig(f"branch_from={path} has no checkpoint to go on from")
    step = steps[-1]
  saved.check_whole(step)
  content = saved.manifest(step)
  if content is None:  # the trunk may be trained on
    raise BadConfig(
      f"branch_from={path}: the checkpoint of step {step} was removed just now;"
      " branch from a later one"
    )
  return Trunk(path, step, content, _configs(path, step, content))


def _configs(
  path: Path, step: int, content: Mapping
) -> tuple[tuple[int, str], ...]:
  """The configs that a run went by until a step, as Trunk has them.

  Raises BadConfig where that of the checkpoint is not there.
  """
  sha256 = content["meta"].get("config_sha256")
  own = "config.json" if sha256 is None else config_file(path, sha256)
  if own is None:
    raise BadConfig(
      f"{path}/config.json is not that of step {step}, nor is one of before a "
      "change: it was edited. Put back the config.json of that run"
    )
  found, since = [], 0
  for name in earlier_configs(path):
    until = int(BEFORE.fullmatch(name)[1])
    if until >= step or name == own:
      break
    found.append((since, name))
    since = until
  return (*found, (since, own))


def trunk_of(config: Config) -> Path:
  where = config["branch_from"]
  listing.check_local(where, "branch_from")
  if hf_folder(where) is not None:
    raise BadConfig(
      f"branch_from={where}: a Hugging Face folder holds no state of a run: "
      f"--config.init_from={shlex.quote(where)} begins with its parameters"
    )
  return Path(os.path.abspath(files.expanded(where)))


def _mark_in(workdir: Path) -> dict | None:
  """Of what a work directory is a branch; None where it is none."""
  if not os.path.lexists(workdir / MARK):
    return None
  found = files.read_json(workdir / MARK, error=BadConfig)
  return records.check(found, FORM, str(workdir / MARK), BadConfig)


def _note(workdir: Path, mark: Mapping) -> None:
  """Writes the mark; "copying" is there while it is true alone."""
  files.write_json(
    workdir / MARK, {k: x for k, x in mark.items() if x or k != "copying"}
  )


def check(workdir: Path, config: Config) -> None:
  """Raises BadConfig where the work directory is no branch of that trunk."""
  step = config["branch_step"]
  if not config["branch_from"]:
    if step is not None:
      raise BadConfig(f"branch_step={step} without branch_from=DIR")
    return
  trunk = trunk_of(config)
  if not (workdir / "config.json").is_file():
    return
  there = _mark_in(workdir)
  if there is None:
    raise BadConfig(
      f"branch_from={trunk}: {workdir} holds a run that is no branch; use "
      "another --workdir"
    )
  same = os.path.realpath(there["from"]) == os.path.realpath(trunk)
  if not same or step not in (None, there["step"]):
    raise BadConfig(
      f"{workdir} is a branch of {there['from']} at step {there['step']}: keep "
      "branch_from and branch_step, or use another --workdir"
    )


def _copy(trunk: Trunk, workdir: Path) -> None:
  """All that is known of the trunk up to a step; its config comes last."""
  there = [p.name for p in workdir.iterdir() if p.name != "LOCK"]
  unfinished = MARK in there
  # A writer that died left what it wrote aside under a hidden name.
  aside = tuple(f".{name}." for name in (MARK, *COPIED))
  gone = [n for n in there if n.startswith(aside)]
  if unfinished:
    gone += [n for n in there if n in COPIED]
  stays = [n for n in there if n not in gone and n != MARK]
  if stays:
    raise BadConfig(
      f"{workdir} is not empty ({stays[0]}): a branch begins in a new folder"
    )
  path, (_, own) = trunk.path, trunk.configs[-1]
  saved = f"checkpoints/{trunk.step}"
  mark = {"from": str(path), "step": trunk.step, "copying": True}
  mark["config"] = written_fingerprint(path, own)
  try:
    _note(workdir, mark)
    for name in gone:  # of a copy that was not finished
      _remove(workdir / name)
    for name in (*trunk.content["files"], manifest.NAME):
      _copy_file(path / saved / name, workdir / saved / name)
    for name in (METRICS, EVENTS):
      _copy_lines(path / name, workdir / name, trunk.step)
    tokenizer = path / "tokenizer"
    if tokenizer.is_dir():
      tokenizer_in(path)  # is no link
      for file in sorted(tokenizer.iterdir()):
        _copy_file(file, workdir / "tokenizer" / file.name)
    for name in ("data.json", "run.json"):
      if (path / name).is_file():
        _copy_file(path / name, workdir / name)
    for folder in (p for p in workdir.rglob("*") if p.is_dir()):
      files.sync(folder)
    files.write_bytes(workdir / "config.json", files.content(path / own))
    _note(workdir, mark | {"copying": False})
  except OSError as error:
    raise StorageFailure(
      f"{path} cannot be copied to {workdir}: {error}; run the same line again"
    ) from error


def _copy_file(there: Path, here: Path) -> None:
  """Regular files alone: nothing that is elsewhere comes along."""
  here.parent.mkdir(parents=True, exist_ok=True)
  with files.opened(there, BadConfig) as source, here.open("xb") as target:
    shutil.copyfileobj(source, target, 2**22)
    target.flush()
    os.fsync(target.fileno())


def _copy_lines(there: Path, here: Path, step: int) -> None:
  with here.open("xb") as target:
    target.writelines(_lines_until(there, step))
    target.flush()
    os.fsync(target.fileno())


def _remove(path: Path) -> None:
  folder = path.is_dir() and not path.is_symlink()
  shutil.rmtree(path) if folder else os.unlink(path)


def _lines_until(path: Path, step: int) -> Iterator[bytes]:
  """The whole lines of a journal that are of no later step.

  A line that is half, of a process that writes it now, or damaged stays there.
  """
  if not os.path.lexists(path):
    return
  for line in files.read_lines(path, error=BadConfig):
    at = None if line.row is None else line.row.get("step")
    early = at is None or (records.fits(at, COUNT) and at <= step)
    if line.row is not None and early:
      yield line.data


def changed_before(trunk: Trunk) -> list[str]:
  """A line for each change of the trunk's config that no branch could say.

  Such a branch is not the run that its config would have been.
  """
  lines = []
  configs = [config_in(trunk.path, name) for _, name in trunk.configs]
  for (since, _), old, new in zip(
    trunk.configs[1:], configs, configs[1:], strict=False
  ):
    found = [
      change
      for change in changes.changes(old, new)
      if change.key not in FREE and not changes.harmless(change)
    ]
    lines += [f"the trunk was changed at step {since}: {x}" for x in found]
  return lines


def check_schedule(config: Config, mesh, trunk: Trunk) -> None:
  """Raises BadConfig where the trunk was trained at other learning rates.

  Then a branch would be no run that any config describes.
  """
  step, path = trunk.step, trunk.path
  # And at the first step of the branch, where the trunk's may rise still.
  at = jnp.arange(step + 1)

  def rates(config: Config) -> np.ndarray:
    return np.asarray(jax.jit(build(config, mesh).schedule)(at))

  theirs, ours = np.zeros(step + 1, np.float32), rates(config)
  for since, name in trunk.configs:
    before = usable_config_in(path, name) | {"mesh": config["mesh"]}
    theirs[since:] = rates(before)[since:]
  saved = history.checkpoints_in(path, identity_in(path)).steps()
  try:
    check_rates(theirs, ours, path, saved)
  except BadConfig as refusal:
    n = _decay(usable_config_in(path, trunk.configs[-1][1]))
    if n is None or config["optim"]["schedule"] not in FALLING:
      raise
    kept = config | {"optim": config["optim"] | {"decay_steps": n}}
    if (rates(kept)[:step] != theirs[:step]).any():
      raise
    raise BadConfig(
      f"{refusal} (here --config.optim.decay_steps={n})"
    ) from None


# Schedules that fall from the warm-up on.
FALLING = ("cosine", "linear")


def _decay(config: Config) -> int | None:
  """Steps in which the rate falls; None where only a run knows."""
  optim, steps = config["optim"], config["steps"]
  if optim["decay_steps"] or steps is None or optim["warmup_fraction"]:
    return optim["decay_steps"]
  return steps - (optim["warmup_steps"] or 0)


def _earlier(rates: np.ndarray, at: int, saved: Sequence[int] | None) -> str:
  """The way out of a branch before step `at`, where the trunk has such."""
  if saved is None:
    return f"branch from step {at} at the latest, or "
  found = [s for s in saved if 0 < s <= at and rates[s] <= rates[s - 1]]
  return (
    f"branch from its checkpoint of step {max(found)}, or " if found else ""
  )


def check_rates(
  theirs: np.ndarray,
  ours: np.ndarray,
  path: Path | str,
  saved: Sequence[int] | None = None,
) -> None:
  """`check_schedule` of learning rates up to the step itself, of both.

  saved: the steps that the trunk has checkpoints of, None for any.
  """
  step = len(theirs) - 1
  if not step or theirs[step] > theirs[step - 1]:
    raise BadConfig(
      f"branch_step={step} is in the warm-up of {path}: branch "
      "from a later step"
    )
  differ = np.flatnonzero(theirs[:step] != ours[:step])
  if differ.size:
    at = int(differ[0])
    raise BadConfig(
      f"branch_step={step}: at step {at} the learning rate of "
      f"{path} was {theirs[at]:.4g}, and this config has "
      f"{ours[at]:.4g} there; {_earlier(theirs, at, saved)}keep the "
      "schedule as it was until the branch: of a cosine or a line by "
      "--config.optim.decay_steps=N, the trunk's steps behind its warm-up; wsd "
      "decays at the end only"
    )
