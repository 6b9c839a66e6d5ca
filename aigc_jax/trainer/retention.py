"""The steps in a folder of checkpoints: which there are and which stay."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import jax
from absl import logging

from aigc_jax.errors import BadConfig
from aigc_jax.trainer import faults, manifest
from aigc_jax.trainer.identity import Identity

ASIDE = (".saving", ".deleting")
REWOUND = "rewound"  # why a step is set aside that --rewind leaves behind
MOST_SHOWN = 12  # steps that a message names


def step_of(name: str) -> int | None:
  """The step a folder is named after; None for any other name.

  "12" is one; "012" or digits of another script are not.
  """
  if not (name.isascii() and name.isdecimal()) or len(name) > 18:
    return None
  return int(name) if str(int(name)) == name else None


def quiet(kind: str, **fields) -> None:
  """Tells nobody."""


class Steps:
  """The steps of one folder, DIR/checkpoints/<step>.

  `fence` is called before each deletion and rename and raises when the
  directory is no longer ours; `tell(kind, step=, ...)` takes each event. `run`
  says whose steps they must be; None where any run's will do.
  """

  def __init__(
    self,
    folder: str | Path,
    *,
    fence: Callable[[], None] = lambda: None,
    tell: Callable = quiet,
    run: Identity | None = None,
  ):
    self.folder = Path(folder).absolute()
    self.fence = fence
    self.tell = tell
    self.run = run

  def entries(self) -> list[Path]:
    return list(self.folder.iterdir()) if self.folder.is_dir() else []

  def all(self) -> list[int]:
    """The steps that hold something, oldest first; none of them checked."""
    return sorted(
      step_of(path.name)
      for path in self.entries()
      if step_of(path.name) is not None
      and path.is_dir()
      and any(path.iterdir())
    )

  def manifest(self, step: int) -> dict:
    """The manifest of a step whose files are sound; raises Invalid."""
    folder = self.folder / str(step)
    content = manifest.read(folder)
    manifest.check_files(folder, content)
    return content

  def sound(self, step: int) -> bool:
    """Whether a step is whole, its digest unread, and this run's."""
    try:
      content = self.manifest(step)
    except manifest.Invalid:
      return False
    return self.run is None or self.run.owns(content)

  def latest(self) -> int | None:
    """The newest sound step."""
    return next((s for s in reversed(self.all()) if self.sound(s)), None)

  def check_there(self, step: int) -> None:
    """Raises BadConfig, with the steps there are, where there is no `step`."""
    steps = self.all()
    if step in steps or not steps:
      return
    near = sorted(sorted(steps, key=lambda s: abs(s - step))[:MOST_SHOWN])
    more = f", {len(steps)} in all" if len(steps) > len(near) else ""
    raise BadConfig(
      f"{self.folder} has no checkpoint of step {step} (there are: "
      f"{', '.join(map(str, near))}{more})"
    )

  def check_whole(self, step: int) -> None:
    """Raises BadConfig where `step` has no whole checkpoint of this run."""
    if step not in self.all() or not self.sound(step):
      raise BadConfig(
        f"{self.folder} has no whole checkpoint of step {step} of this run "
        f"(there are: {', '.join(map(str, self.all())) or 'none'})"
      )

  def clean(self) -> None:
    """Removes what killed saves left; only for the holder of the lock."""
    if jax.process_index() != 0:
      return
    for path in self.entries():
      stem, _, suffix = path.name.partition(".")
      step = step_of(stem)
      if step is None or not path.is_dir():
        continue
      if f".{suffix}".endswith(ASIDE) or "orbax-checkpoint-tmp" in suffix:
        self.loud("leftover", step, f"removing {path.name}, unfinished")
        shutil.rmtree(path, ignore_errors=True)
      elif not suffix and not any(path.iterdir()):
        self.loud("rubbish", step, f"ignoring {path.name}, it is empty")

  def retain(
    self, newest: int, *, keep: int, every: int, proven: int | None
  ) -> list[int]:
    """Deletes older sound steps of this run; which those were.

    Kept are the newest `keep`, `proven`, and those divisible by `every`.
    """
    steps = self.all()
    if len(steps) <= keep:
      return []
    sound = [step for step in steps if self.sound(step)]
    kept = {*sound[-keep:], newest, proven}
    gone = [
      s for s in sound if s not in kept and not (every and s % every == 0)
    ]
    for step in gone:
      faults.hit("save/retain", step)
      self.fence()
      # Under another name first: a half deleted step is no step.
      path = self.folder / f"{step}.deleting"
      os.rename(self.folder / str(step), path)
      shutil.rmtree(path)
    return gone

  def set_aside(self, step: int, why: str) -> None:
    """Renames a step, which is no step after that: <step>.<why>-<time>.

    Told at once where nobody asked for it.
    """
    path = self.folder / str(step)
    stamp = time.strftime("%Y%m%dT%H%M%S")
    aside = path.with_name(f"{path.name}.{why}-{stamp}")
    number = 1
    while aside.exists():
      number += 1
      aside = path.with_name(f"{path.name}.{why}-{stamp}-{number}")
    os.rename(path, aside)
    if why != REWOUND:
      logging.error("%s is set aside as %s", path, aside.name)

  def loud(self, kind: str, step: int, text: str, **fields) -> None:
    """Tells an event that somebody should hear of at once."""
    logging.error("checkpoint %d: %s", step, text)
    self.tell(kind, step=step, reason=text, **fields)
