"""Checkpoints: what was saved comes back bit for bit, or is not used.

  DIR/checkpoints/<step>/arrays/         written by Orbax
  DIR/checkpoints/<step>/manifest.json   see `manifest`
  DIR/checkpoints/<step>.<run>.saving    a save under way, or a killed one
  DIR/checkpoints/<step>.corrupt-<time>  set aside by a restore; never deleted

A step is written aside, gets its manifest and is renamed: the rename is the
commit. It counts only if its manifest is there and sound, every file has its
size, and the digest of the restored state is the saved one, whatever devices
wrote it and read it.
"""

import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from aigc_jax import sharding, tree
from aigc_jax.errors import (
  BadConfig,
  Diverged,
  NonFinite,
  Refusal,
  StorageFailure,
)
from aigc_jax.trainer import arrays, faults, manifest, replicas, together

ARRAYS = "arrays"
ASIDE = (".saving", ".deleting")


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


def _quiet(kind: str, **fields) -> None:
  """Tells nobody."""


class Checkpoints:
  """The checkpoints of one run.

  Kept are the newest `keep`, every step divisible by `keep_every_steps` (0 for
  none), and the one this process was restored from, the last whose digest was
  proven. `fence` is called before each commit and deletion and raises when the
  directory is no longer ours; `tell(kind, step=, ...)` takes each event and may
  be changed later.

  Saving runs in the background; a failure surfaces at the next `check`. Then
  training goes on and the next interval tries again; after `retries` failures
  in a row StorageFailure is raised. A save that finds the previous one still
  under way waits for it `patience_seconds` and is skipped after that, but one
  that is to be kept for good always waits. All processes call each method at
  the same point.
  """

  def __init__(
    self,
    folder: str | Path,
    *,
    every_steps: int,
    keep: int,
    keep_every_steps: int,
    fence: Callable[[], None] = lambda: None,
    tell: Callable = _quiet,
    retries: int = 3,
    patience_seconds: float = 60.0,
    finite: tuple[str, ...] = ("params/*",),
  ):
    if keep < 1:
      raise BadConfig(f"checkpoint.keep={keep}: expected at least 1")
    self.folder = Path(folder).absolute()
    self.every_steps = every_steps
    self.keep = keep
    self.keep_every_steps = keep_every_steps
    self.committed: int | None = None
    self.proven: int | None = None
    self.digest: list[int] | None = None
    self.failures = 0
    self.failure = ""
    self.skipped = 0
    self._fence = fence
    self.tell = tell
    self._retries = retries
    self._patience = patience_seconds
    self._finite = finite
    self._save: Save | None = None
    self._tries = 0
    self._token: int | None = None
    self._jits: dict = {}

  # What is there.

  def steps(self) -> list[int]:
    """The steps that hold something, oldest first; none of them checked."""
    return sorted(
      int(path.name)
      for path in self._entries()
      if path.name.isdecimal() and path.is_dir() and any(path.iterdir())
    )

  def latest(self) -> int | None:
    """The newest step whose manifest and files are sound, digest unread."""
    return next((s for s in reversed(self.steps()) if self._sound(s)), None)

  def _entries(self) -> list[Path]:
    return list(self.folder.iterdir()) if self.folder.is_dir() else []

  def _sound(self, step: int) -> bool:
    try:
      self._manifest(step)
    except manifest.Invalid:
      return False
    return True

  def _manifest(self, step: int) -> dict:
    folder = self.folder / str(step)
    content = manifest.read(folder)
    manifest.check_files(folder, content)
    return content

  def clean(self) -> None:
    """Removes what killed saves left; only for the holder of the lock."""
    if jax.process_index() != 0:
      return
    for path in self._entries():
      stem, _, suffix = path.name.partition(".")
      if not stem.isdecimal() or not path.is_dir():
        continue
      if f".{suffix}".endswith(ASIDE) or "orbax-checkpoint-tmp" in suffix:
        self._loud("leftover", int(stem), f"removing {path.name}, unfinished")
        shutil.rmtree(path, ignore_errors=True)
      elif not suffix and not any(path.iterdir()):
        self._loud("rubbish", int(stem), f"ignoring {path.name}, it is empty")

  # Saving.

  def due(self, step: int) -> bool:
    """Whether `step` is one to save at."""
    return self.every_steps > 0 and step > 0 and step % self.every_steps == 0

  def save(self, step: int, state, meta: dict) -> bool:
    """Begins to save; False if this step is saved, under way, or skipped.

    Returns when the state has been copied to the host. Raises NonFinite where
    the parameters are not finite, Diverged where devices differ in what should
    be equal, StorageFailure after too many failures.
    """
    if not self._previous_done(step):
      self.skipped += 1
      self._loud("save_skipped", step, "the previous save is still under way")
      return False
    self.check()
    self._agree()
    if step == self.committed:
      return False
    self._give_up_if_failing()
    began = time.monotonic()
    sums, finite = jax.device_get(self._whole(self._summarize, state))
    if not finite:
      raise NonFinite(
        f"step {step}: the parameters are not finite; not saved. The last "
        f"checkpoint is {self.committed}"
      )
    self._check_replicas(step, state)
    leaves = manifest.table(state)
    for leaf, digest in zip(leaves, sums, strict=True):
      leaf["digest"] = [int(word) for word in digest]
    save = Save(step, self._aside(step), leaves, dict(meta), began)
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
    self._loud("diverged", step, text)
    if sharding.platform() == "gpu":
      return  # sums by atomic operations may differ from device to device
    raise Diverged(text)

  def _aside(self, step: int) -> Path:
    """A folder for a save that no other process of any run writes to.

    One that was frozen in a save may wake up while its successor saves.
    """
    if self._token is None:
      self._token = together.from_first(secrets.randbits(30))
    return self.folder / f"{step}.{self._token:08x}.saving"

  def _previous_done(self, step: int) -> bool:
    """Waits for the save before this one; all processes decide alike."""
    forever = self.keep_every_steps and step % self.keep_every_steps == 0
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
          self._fence()
          self._make_room(save.folder, tree.nbytes(state))
        except OSError as caught:
          error = caught
    if together.from_first(error is not None):
      raise error or OSError("process 0 could not begin to save")
    self._tries += 1
    save.writer = arrays.write(
      save.folder / ARRAYS, state, name=f"save{self._tries}"
    )

  def _make_room(self, folder: Path, nbytes: int) -> None:
    """The empty folder of a save; OSError where the disk has no room."""
    self.folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    free = shutil.disk_usage(self.folder).free
    if free < 1.2 * nbytes:
      raise OSError(28, f"{free} bytes free for a checkpoint of {nbytes}")
    folder.mkdir()

  def _finish(self, save: Save) -> None:
    """In the background: waits for the arrays, then commits the step."""
    try:
      save.writer.wait_until_finished()
      if jax.process_index() == 0:
        self._commit(save)
    except BaseException as error:
      save.error = error
    finally:
      try:
        save.writer.close()
      except Exception as error:
        save.error = save.error or error

  def _commit(self, save: Save) -> None:
    faults.hit("save/manifest", save.step)
    save.nbytes = manifest.write(
      save.folder, step=save.step, leaves=save.leaves, meta=save.meta
    )
    final = self.folder / str(save.step)
    self._fence()
    if final.exists():
      self._rename(final, "replaced")
    faults.hit("save/rename", save.step)
    os.rename(save.folder, final)
    faults.hit("save/renamed", save.step)
    manifest.sync(self.folder)
    self._manifest(save.step)  # nothing older goes before this one is whole
    try:
      save.removed = self._retain(save.step)
    except OSError as error:
      save.problem = f"old steps could not be removed: {error}"

  def _retain(self, newest: int) -> list[int]:
    every = self.keep_every_steps
    steps = self.steps()
    if len(steps) <= self.keep:
      return []
    sound = [step for step in steps if self._sound(step)]
    kept = {*sound[-self.keep :], newest, self.proven}
    gone = [
      s for s in sound if s not in kept and not (every and s % every == 0)
    ]
    for step in gone:
      faults.hit("save/retain", step)
      self._fence()
      # Under another name first: a half deleted step is no step.
      path = self.folder / f"{step}.deleting"
      os.rename(self.folder / str(step), path)
      shutil.rmtree(path)
    return gone

  def check(self) -> None:
    """Surfaces the end of the save in the background, if it has ended."""
    if self._save and self._save.thread and not self._save.thread.is_alive():
      self._settle()

  def _settle(self) -> None:
    save, self._save = self._save, None
    error = save.error
    if isinstance(error, Refusal):
      raise error
    if error is None:
      self.failures, self.committed = 0, save.step
      self.digest = manifest.total([leaf["digest"] for leaf in save.leaves])
      self.tell(
        "save",
        step=save.step,
        seconds=round(time.monotonic() - save.began, 3),
        blocked_seconds=round(save.blocked, 3),
        bytes=save.nbytes,
        removed=save.removed,
      )
      if save.problem:
        self._loud("retain_failed", save.step, save.problem)
      return
    self.failures += 1
    self.failure = f"{type(error).__name__}: {error}".split("\n")[0][:500]
    if jax.process_index() == 0:
      shutil.rmtree(save.folder, ignore_errors=True)
    self._loud("save_failed", save.step, self.failure, failures=self.failures)
    if jax.process_count() == 1:
      self._give_up_if_failing()

  def _give_up_if_failing(self) -> None:
    if self.failures > self._retries:
      raise StorageFailure(
        f"{self.folder}: {self.failures} saves in a row failed "
        f"({self.failure or 'on another process'}); the last checkpoint is "
        f"{self.committed}. Make room or repair the disk, then run again"
      )

  def wait(self) -> bool:
    """Waits for the save under way; False if the last one failed anywhere."""
    if self._save and self._save.thread:
      self._save.thread.join()
    self.check()
    self._agree()
    return self.failures == 0

  def commit(self, step: int, state, meta: dict) -> None:
    """Saves and waits, trying again at once; raises StorageFailure."""
    for attempt in range(self._retries + 1):
      if attempt:
        time.sleep(min(0.25 * 2**attempt, 10.0))
      self.wait()
      self.save(step, state, meta)
      if self.wait() and self.committed == step:
        return
    self._give_up_if_failing()
    raise StorageFailure(f"{self.folder}: step {step} could not be saved")

  def close(self) -> None:
    """Waits for this process's part of a save under way; raises nothing."""
    if self._save and self._save.thread:
      self._save.thread.join()

  # Restoring.

  def restore(self, abstract):
    """(state, manifest) of the newest valid step, or None if there is none.

    `abstract` is the state as ShapeDtypeStruct with shardings; the devices may
    be others than those that saved. Steps that fail a check are renamed aside
    and told; only the holder of the lock may call this. Raises StorageFailure
    when there are steps and none is valid, BadConfig when the checkpoint is of
    a state of another shape.
    """
    found = self._restore(abstract, "", None, aside=True)
    if found:
      self.committed = self.proven = found[1]["step"]
      self.digest = found[1]["digest"]
    return found

  def rewind(self, step: int) -> list[int]:
    """Sets aside the steps after `step`; which those were.

    Only for the holder of the lock. Raises BadConfig where `step` is not whole.
    """
    self.check_whole(step)
    later = [s for s in self.steps() if s > step]
    for s in reversed(later):
      self._fence()
      self._rename(self.folder / str(s), "rewound")
    return later

  def check_whole(self, step: int) -> None:
    """Raises BadConfig where `step` has no whole checkpoint."""
    if step not in self.steps() or not self._sound(step):
      raise BadConfig(
        f"{self.folder} has no whole checkpoint of step {step} (there are: "
        f"{', '.join(map(str, self.steps())) or 'none'})"
      )

  def restore_params(self, abstract, step: int | None = None):
    """(params, manifest) alone, read only; for any mesh, without the lock.

    Raises BadConfig when there is no checkpoint.
    """
    found = self._restore({"params": abstract}, "params/", step, aside=False)
    if found is None:
      raise BadConfig(f"{self.folder} holds no checkpoint: train first")
    return found[0]["params"], found[1]

  def _restore(self, abstract, prefix: str, step: int | None, aside: bool):
    self.wait()
    tried: set[int] = set()
    while True:
      found = self._newest(tried) if step is None else step
      found = together.from_first(-1 if found is None else found)
      if found < 0:
        return self._none_left(tried, aside)
      for _ in range(2):  # a read may fail once on a storage that is well
        state, content, reason = self._attempt(found, abstract, prefix)
        if state is not None:
          return state, content
      tried.add(found)
      self._loud("corrupt", found, f"step {found} cannot be used: {reason}")
      if step is not None:
        raise StorageFailure(f"{self.folder}/{step} cannot be used: {reason}")
      if aside and jax.process_index() == 0:
        self._fence()
        self._rename(self.folder / str(found), "corrupt")

  def _attempt(self, step: int, abstract, prefix: str):
    """(state, manifest, "") of a step, or (None, None, why not)."""
    state, reason = None, "another process could not read it"
    try:
      content = self._checked(step, abstract, prefix)
      faults.hit("restore/read", step)
      state = arrays.read(self.folder / str(step) / ARRAYS, abstract)
    except PermissionError as error:
      raise StorageFailure(f"{self.folder}: {error}") from error
    except (manifest.Invalid, *arrays.STRANGE) as error:
      reason = f"{type(error).__name__}: {error}".split("\n")[0][:500]
    if together.most(state is None):
      return None, None, reason
    saved = {leaf["name"]: leaf["digest"] for leaf in content["leaves"]}
    read = np.asarray(self._whole(manifest.digests, state)).tolist()
    damaged = [
      name
      for name, digest in zip(tree.names(state), read, strict=True)
      if saved[name] != digest
    ]
    if damaged:
      return None, None, f"the digests of {', '.join(damaged[:5])} differ"
    return state, content, ""

  def _newest(self, tried: set[int]) -> int | None:
    return max((s for s in self.steps() if s not in tried), default=None)

  def _none_left(self, tried: set[int], aside: bool) -> None:
    """None when there never was a step, otherwise StorageFailure."""
    names = [p.name for p in self._entries() if ".corrupt-" in p.name]
    if not together.from_first(bool(tried or names)):
      return None
    if not aside:
      steps = f"tried: steps {sorted(tried)}" if tried else "none is left"
      raise StorageFailure(
        f"{self.folder}: no checkpoint is valid ({steps}; nothing was changed)."
        " Name another --workdir, or train this one again"
      )
    raise StorageFailure(
      f"{self.folder}: no checkpoint is valid (set aside: "
      f"{', '.join(sorted(names)) or sorted(tried)}). To begin again from step "
      "0, move this folder away or choose another --workdir"
    )

  def _checked(self, step: int, abstract, prefix: str) -> dict:
    """The manifest of a step whose files are sound and whose leaves fit."""
    content = self._manifest(step)
    lines = manifest.differences(content, manifest.table(abstract), prefix)
    if lines:
      more = f"\n  and {len(lines) - 10} more" if len(lines) > 10 else ""
      raise BadConfig(
        f"{self.folder}/{step} is of another model or optimizer:\n  "
        + "\n  ".join(lines[:10])
        + more
        + "\nUse the configuration it was made with, or another --workdir"
      )
    return content

  def _whole(self, function: Callable, state):
    """function(state) under jit, its result whole on every process."""
    meshes = [
      x.sharding.mesh
      for x in jax.tree.leaves(state)
      if isinstance(getattr(x, "sharding", None), jax.sharding.NamedSharding)
    ]
    key = (function.__name__, meshes[0] if meshes else None)
    if key not in self._jits:
      where = sharding.replicated(meshes[0]) if meshes else None
      self._jits[key] = jax.jit(function, out_shardings=where)
    return self._jits[key](state)

  def _summarize(self, state):
    """The digests of all leaves, and whether what must be finite is."""
    finite = jnp.array(True)
    for name, x in tree.flat(state).items():
      floating = jnp.issubdtype(x.dtype, jnp.floating)
      if floating and tree.match(self._finite, name):
        finite &= jnp.isfinite(x).all()
    return manifest.digests(state), finite

  def _rename(self, path: Path, why: str) -> None:
    stamp = time.strftime("%Y%m%dT%H%M%S")
    aside = path.with_name(f"{path.name}.{why}-{stamp}")
    number = 1
    while aside.exists():
      number += 1
      aside = path.with_name(f"{path.name}.{why}-{stamp}-{number}")
    os.rename(path, aside)
    logging.error("%s is set aside as %s", path, aside.name)

  def _loud(self, kind: str, step: int, text: str, **fields) -> None:
    logging.error("checkpoint %d: %s", step, text)
    self.tell(kind, step=step, reason=text, **fields)
