"""Checkpoints: what was saved comes back bit for bit, or is not used.

  DIR/checkpoints/<step>/arrays/         written by Orbax
  DIR/checkpoints/<step>/manifest.json   see `manifest`
  DIR/checkpoints/<step>.<token>.saving  a save under way, or a killed one
  DIR/checkpoints/<step>.corrupt-<time>  set aside by a restore; never deleted

A step is written aside, gets its manifest and is renamed: the rename is the
commit. It counts only if its manifest is there and sound, every file has its
size, and the digest of the restored state is the saved one, whatever devices
wrote it and read it; and only for the run that saved it.

Which steps there are is in `retention`, how one is written in `saving`, how one
is read in `restoring`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from aigc_jax.errors import BadConfig
from aigc_jax.trainer import arrays, restoring
from aigc_jax.trainer.identity import Identity
from aigc_jax.trainer.retention import REWOUND, Steps, quiet
from aigc_jax.trainer.saving import Saver
from aigc_jax.trainer.state import kept


class Checkpoints:
  """The checkpoints of one run.

  Kept are the newest `keep`, every step divisible by `keep_every_steps` (None
  for none), and the one this process was restored from, the last whose digest
  was proven. `fence` is called before each commit and deletion and raises when
  the directory is no longer ours; `tell(kind, step=, ...)` takes each event and
  may be changed later, as `run`, the run that they must be of (None: of any).

  Saving runs in the background; a failure surfaces at the next `check`. Then
  training goes on and the next interval tries again; after `retries` failures
  in a row StorageFailure is raised. A save that finds the previous one still
  under way waits for it `patience_seconds` and is skipped after that, but one
  that is to be kept for good always waits. All processes call each method at
  the same point. Raises BadConfig for a folder that cannot hold arrays.
  """

  def __init__(
    self,
    folder: str | Path,
    *,
    every_steps: int | None,
    keep: int,
    keep_every_steps: int | None,
    fence: Callable[[], None] = lambda: None,
    tell: Callable = quiet,
    run: Identity | None = None,
    retries: int = 3,
    patience_seconds: float = 60.0,
    finite: tuple[str, ...] = ("params/*",),
  ):
    if keep < 1:
      raise BadConfig(f"checkpoint.keep={keep}: expected at least 1")
    arrays.check_place(Path(folder).absolute())
    self.every_steps = every_steps
    self._steps = Steps(folder, fence=fence, tell=tell, run=run)
    self._saver = Saver(
      self._steps,
      keep=keep,
      keep_every_steps=keep_every_steps,
      retries=retries,
      patience_seconds=patience_seconds,
      finite=finite,
    )

  @property
  def tell(self) -> Callable:
    return self._steps.tell

  @tell.setter
  def tell(self, tell: Callable) -> None:
    self._steps.tell = tell

  @property
  def run(self) -> Identity | None:
    return self._steps.run

  @run.setter
  def run(self, run: Identity | None) -> None:
    self._steps.run = run

  @property
  def committed(self) -> int | None:
    """The last step that is whole on the disk."""
    return self._saver.committed

  @property
  def digest(self) -> list[int] | None:
    """That of the last committed or restored state."""
    return self._saver.digest

  @property
  def failures(self) -> int:
    """Saves in a row that failed."""
    return self._saver.failures

  @property
  def failure(self) -> str:
    """Why the last of them failed."""
    return self._saver.failure

  @property
  def skipped(self) -> int:
    """Saves that found another one under way for too long."""
    return self._saver.skipped

  def steps(self) -> list[int]:
    """The steps that hold something, oldest first; none of them checked."""
    return self._steps.all()

  def latest(self) -> int | None:
    """The newest step whose manifest and files are sound, digest unread."""
    return self._steps.latest()

  def clean(self) -> None:
    """Removes what killed saves left; only for the holder of the lock."""
    self._steps.clean()

  def due(self, step: int) -> bool:
    """Whether `step` is one to save at."""
    return bool(self.every_steps) and step > 0 and step % self.every_steps == 0

  def save(self, step: int, state, meta: Mapping) -> bool:
    """Begins to save; False if this step is saved, under way, or skipped.

    Returns when the state has been copied to the host. Raises NonFinite where
    the parameters are not finite, Diverged where devices differ in what should
    be equal, StorageFailure after too many failures.
    """
    return self._saver.save(step, kept(state), meta)

  def check(self) -> None:
    """Surfaces the end of the save in the background, if it has ended."""
    self._saver.check()

  def wait(self) -> bool:
    """Waits for the save under way; False if the last one failed anywhere."""
    return self._saver.wait()

  def commit(self, step: int, state, meta: Mapping) -> None:
    """Saves and waits, trying again at once; raises StorageFailure."""
    self._saver.commit(step, kept(state), meta)

  def close(self) -> None:
    """Waits for this process's part of a save under way; raises nothing."""
    self._saver.close()

  def restore(self, abstract, check: Callable = lambda content: None):
    """(state, manifest) of the newest valid step, or None if there is none.

    `abstract` is the state as ShapeDtypeStruct with shardings; the devices may
    be others than those that saved. `check` is given the manifest before the
    arrays are read. What is frozen is in no checkpoint, and None in the state
    that comes back, as `average_stats` is of a checkpoint that has none yet.
    Steps that fail are renamed aside and told; only the holder of the lock may
    call this. Raises StorageFailure when there are steps and none is valid,
    BadConfig when the checkpoint is of another run or of a state of another
    shape.
    """
    self.wait()
    found = restoring.restore(
      self._steps, kept(abstract), aside=True, check=check
    )
    if found:
      self._saver.committed = self._saver.proven = found[1]["step"]
      self._saver.digest = found[1]["digest"]
    return found

  def restore_parts(
    self,
    abstract: Mapping,
    step: int | None = None,
    check: Callable = lambda content: None,
  ):
    """(parts, manifest), read only; for any mesh, without the lock.

    abstract: {"params": shapes, ...}, some fields of the state;
    "average_stats" is left out of what comes back where it has none. Raises
    BadConfig when there is no checkpoint.
    """
    found = restoring.restore(
      self._steps,
      dict(abstract),
      prefix=tuple(f"{name}/" for name in abstract),
      step=step,
      check=check,
    )
    if found is None:
      raise BadConfig(f"{self._steps.folder} holds no checkpoint: train first")
    return found

  def restore_params(
    self,
    abstract,
    step: int | None = None,
    check: Callable = lambda content: None,
  ):
    """(params, manifest) alone; see `restore_parts`."""
    parts, content = self.restore_parts({"params": abstract}, step, check)
    return parts["params"], content

  def rewind(self, step: int) -> list[int]:
    """Sets aside the steps after `step`; which those were.

    Only for the holder of the lock. Raises BadConfig where `step` is not whole.
    """
    self.check_whole(step)
    later = [s for s in self.steps() if s > step]
    for s in reversed(later):
      self._steps.fence()
      self._steps.set_aside(s, REWOUND)
    return later

  def check_whole(self, step: int) -> None:
    """Raises BadConfig where `step` has no whole checkpoint of this run."""
    self._steps.check_whole(step)

  def manifest(self, step: int) -> dict | None:
    """The manifest of a step that is whole and of this run, or None."""
    return self._steps.manifest(step) if self._steps.sound(step) else None
