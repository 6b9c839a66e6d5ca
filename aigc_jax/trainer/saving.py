"""Saving a step in the background, whole or not at all."""

import copy
import os
import secrets
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from aigc_jax import files, sharding, tree
from aigc_jax.errors import Diverged, NonFinite, Refusal, StorageFailure
from aigc_jax.trainer import (
  arrays,
  digests,
  faults,
  manifest,
  replicas,
  together,
)
from aigc_jax.trainer.retention import Steps


@dataclass
class Save:
  """A save under way in the background."""

  step: int
  folder: Path
  leaves: list[dict]
  meta: dict
  began: float
  writer: ocp.AsyncCheckpointer | None = None
  thread: threading.Thread | None = None
  error: BaseException | None = None
  nbytes: int = 0
  removed: list[int] = field(default_factory=list)
  problem: str = ""
  blocked: float = 0.0


class Saver:
  """Saves to `steps`, one step at a time; see `checkpoint.Checkpoints`.

  committed is the last step that is whole on the disk, digest that of its
  state; proven the step this process was restored from; failures counts those
  in a row, skipped all the saves that found another under way.
  """

  def __init__(
    self,
    steps: Steps,
    *,
    keep: int,
    keep_every_steps: int | None,
    retries: int,
    patience_seconds: float,
    finite: tuple[str, ...],
  ):
    self.committed: int | None = None
    self.proven: int | None = None
    self.digest: list[int] | None = None
    self.failures = 0
    self.failure = ""
    self.skipped = 0
    self._steps = steps
    self._keep = keep
    self._keep_every = keep_every_steps
    self._retries = retries
    self._patience = patience_seconds
    self._finite = finite
    self._save: Save | None = None
    self._tries = 0
    self._token: int | None = None

  def save(self, step: int, state, meta: Mapping) -> bool:
    """Begins to save; False if this step is saved, under way, or skipped."""
    if not self._previous_done(step):
      self.skipped += 1
      self._steps.loud(
        "save_skipped", step, "the previous save is still under way"
      )
      return False
    self.check()
    self._agree()
    if step == self.committed:
      return False
    self._give_up_if_failing()
    began = time.monotonic()
    sums, finite = jax.device_get(
      digests.whole(digests.summary, state, finite=self._finite)
    )
    if not finite:
      raise NonFinite(
        f"step {step}: the parameters are not finite; not saved. The last "
        f"checkpoint is {self.committed}"
      )
    self._check_replicas(step, state)
    leaves = manifest.table(state)
    for leaf, digest in zip(leaves, sums, strict=True):
      leaf["digest"] = [int(word) for word in digest]
    # As it is now: the run goes on, and with it what the meta was made of.
    meta = copy.deepcopy(dict(meta))
    save = Save(step, self._aside(step), leaves, meta, began)
    self._save = save
    try:
      self._begin(save, state)
    except arrays.ERRORS as error:
      save.error = error
      self._settle()
      return False
    save.blocked = time.monotonic() - began
    save.thread = threading.Thread(
      target=self._finish, args=(save,), name="checkpoint"
    )
    save.thread.start()
    return True

  def _check_replicas(self, step: int, state) -> None:
    odd = replicas.differing(state)
    if not odd:
      return
    devices = {device for devices in odd.values() for device in devices}
    where = ", ".join(
      sorted(f"{d} of process {d.process_index}" for d in devices)
    )
    text = (
      f"step {step}: copies that should be equal differ on {where}, in "
      f"{', '.join(list(odd)[:5])}. The last checkpoint is {self.committed}: "
      "if this comes back, leave out that machine and run the same line again"
    )
    self._steps.loud("diverged", step, text)
    if sharding.platform() == "gpu":
      return  # sums by atomic operations may differ from device to device
    raise Diverged(text)

  def _aside(self, step: int) -> Path:
    """A folder for a save that no other process of any run writes to.

    One that was frozen in a save may wake up while its successor saves.
    """
    if self._token is None:
      self._token = together.from_first(secrets.randbits(30))
    return self._steps.folder / f"{step}.{self._token:08x}.saving"

  def _previous_done(self, step: int) -> bool:
    """Waits for the save before this one; all processes decide alike."""
    forever = self._keep_every and step % self._keep_every == 0
    alive = False
    if self._save and self._save.thread:
      self._save.thread.join(None if forever else self._patience)
      alive = self._save.thread.is_alive()
    return not together.most(alive)

  def _agree(self) -> None:
    """Process 0 commits, so it knows; a failure anywhere is one of all."""
    self.failures = together.most(self.failures)
    step = together.from_first(-1 if self.committed is None else self.committed)
    self.committed = None if step < 0 else step

  def _begin(self, save: Save, state) -> None:
    error: Exception | None = None
    with together.all_or_none():
      if jax.process_index() == 0:
        try:
          faults.hit("save/begin", save.step)
          self._steps.fence()
          self._make_room(save.folder, tree.nbytes(state))
        except OSError as caught:
          error = caught
    if together.from_first(error is not None):
      raise error or OSError("process 0 could not begin to save")
    self._tries += 1
    save.writer = arrays.write(
      save.folder / arrays.NAME, state, name=f"save{self._tries}"
    )

  def _make_room(self, folder: Path, nbytes: int) -> None:
    """The empty folder of a save; OSError where the disk has no room."""
    # Not its parents: a work directory that was deleted stays so.
    files.own_folder(folder.parent)
    shutil.rmtree(folder, ignore_errors=True)
    free = shutil.disk_usage(folder.parent).free
    if free < 1.2 * nbytes:
      raise OSError(28, f"{free} bytes free for a checkpoint of {nbytes}")
    folder.mkdir()

  def _finish(self, save: Save) -> None:
    """In the background: waits for the arrays, then commits the step."""
    try:
      save.writer.wait_until_finished()
      if jax.process_index() == 0:
        self._commit(save)
    except StorageFailure as error:  # one failed save, not yet too many
      save.error = OSError(str(error))
    except BaseException as error:
      save.error = error
    finally:
      try:
        save.writer.close()
      except Exception as error:
        save.error = save.error or error

  def _commit(self, save: Save) -> None:
    steps = self._steps
    faults.hit("save/manifest", save.step)
    arrays.check_indexed(save.folder / arrays.NAME)
    save.nbytes = manifest.write(
      save.folder,
      step=save.step,
      leaves=save.leaves,
      meta=save.meta,
      run=steps.run,
    )
    final = steps.folder / str(save.step)
    steps.fence()
    if final.exists():
      steps.set_aside(save.step, "replaced")
    faults.hit("save/rename", save.step)
    os.rename(save.folder, final)
    faults.hit("save/renamed", save.step)
    files.sync(steps.folder)
    steps.manifest(save.step)  # nothing older goes before this one is whole
    try:
      save.removed = steps.retain(
        save.step, keep=self._keep, every=self._keep_every, proven=self.proven
      )
    except OSError as error:
      save.problem = f"old steps could not be removed: {error}"

  def check(self) -> None:
    """Surfaces the end of the save in the background, if it has ended."""
    if self._save and self._save.thread and not self._save.thread.is_alive():
      self._settle()

  def _settle(self) -> None:
    save, self._save = self._save, None
    error = save.error
    if isinstance(error, Refusal):
      # Of a folder that is deleted meanwhile, no part comes back.
      shutil.rmtree(save.folder, ignore_errors=True)
      raise error
    if error is None:
      self.failures, self.committed = 0, save.step
      self.digest = digests.total([leaf["digest"] for leaf in save.leaves])
      self._steps.tell(
        "save",
        step=save.step,
        seconds=round(time.monotonic() - save.began, 3),
        blocked_seconds=round(save.blocked, 3),
        bytes=save.nbytes,
        removed=save.removed,
      )
      if save.problem:
        self._steps.loud("retain_failed", save.step, save.problem)
      return
    self.failures += 1
    self.failure = f"{type(error).__name__}: {error}".split("\n")[0][:500]
    if jax.process_index() == 0:
      shutil.rmtree(save.folder, ignore_errors=True)
    self._steps.loud(
      "save_failed", save.step, self.failure, failures=self.failures
    )
    if jax.process_count() == 1:
      self._give_up_if_failing()

  def _give_up_if_failing(self) -> None:
    if self.failures > self._retries:
      raise StorageFailure(
        f"{self._steps.folder}: {self.failures} saves in a row failed "
        f"({self.failure or 'on another process'}); the last checkpoint is "
        f"{self.committed}. Make room or repair the disk, then run again"
      )

  def wait(self) -> bool:
    """Waits for the save under way; False if the last one failed anywhere."""
    self.close()
    self.check()
    self._agree()
    return self.failures == 0

  def commit(self, step: int, state, meta: Mapping) -> None:
    """Saves and waits, trying again at once; raises StorageFailure."""
    for attempt in range(self._retries + 1):
      if attempt:
        time.sleep(min(0.25 * 2**attempt, 10.0))
      self.wait()
      self.save(step, state, meta)
      if self.wait() and self.committed == step:
        return
    self._give_up_if_failing()
    raise StorageFailure(f"{self._steps.folder}: step {step} was not saved")

  def close(self) -> None:
    """Waits for this process's part of a save under way; raises nothing."""
    if self._save and self._save.thread:
      self._save.thread.join()
