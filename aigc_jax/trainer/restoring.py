"""The newest step that is what was saved, back on any devices."""

import shlex
from collections.abc import Callable

import jax
import numpy as np
from absl import logging

from aigc_jax import tree
from aigc_jax.errors import BadConfig, StorageFailure
from aigc_jax.trainer import arrays, digests, faults, manifest, together
from aigc_jax.trainer.retention import Steps
from aigc_jax.trainer.state import State

LATER = "average_stats"  # the field of a state that came later


def restore(
  steps: Steps,
  abstract,
  *,
  prefix: str | tuple[str, ...] = "",
  step: int | None = None,
  aside: bool = False,
  check: Callable[[dict], None] = lambda content: None,
):
  """(state, manifest) of the newest valid step, or of `step`.

  `abstract` is the state as ShapeDtypeStruct with shardings, or the part of it
  below `prefix`. `check` is given the manifest before any array is read, and
  raises what it likes. With `aside` the steps that fail are renamed; without,
  nothing is changed. None where there never was a step. Raises StorageFailure
  where there are steps and none is valid, BadConfig where one is of another
  run, model or optimizer. All processes call it alike.
  """
  tried: set[int] = set()
  if step is not None:
    steps.check_there(step)
  while True:
    found = _newest(steps, tried) if step is None else step
    found = together.from_first(-1 if found is None else found)
    if found < 0:
      return _none_left(steps, tried, aside)
    for _ in range(2):  # a read may fail once on a storage that is well
      state, content, reason = _attempt(steps, found, abstract, prefix, check)
      if state is not None:
        _tell_of_old_digest(steps, content)
        return state, content
    tried.add(found)
    steps.loud("corrupt", found, f"step {found} cannot be used: {reason}")
    if step is not None:
      raise StorageFailure(f"{steps.folder}/{step} cannot be used: {reason}")
    if aside and jax.process_index() == 0:
      steps.fence()
      steps.set_aside(found, "corrupt")


def _attempt(steps: Steps, step: int, abstract, prefix, check: Callable):
  """(state, manifest, "") of a step, or (None, None, why not)."""
  content, reason = _tried(lambda: _checked(steps, step, abstract, prefix))
  state = None
  if content is not None:
    abstract = _as_saved(content, abstract)
  if content is not None:
    check(content)  # apart: what it raises is no damage of the checkpoint
    state, reason = _tried(lambda: _read(steps, step, abstract))
  if together.most(state is None):
    return None, None, reason or "another process could not read it"
  saved = {leaf["name"]: leaf["digest"] for leaf in content["leaves"]}
  version = manifest.digest_version(content)
  read = np.asarray(digests.whole(digests.of, state, version=version)).tolist()
  damaged = [
    name
    for name, digest in zip(tree.names(state), read, strict=True)
    if saved[name] != digest
  ]
  if damaged:
    return None, None, f"the digests of {', '.join(damaged[:5])} differ"
  return state, content, ""


def _tried(f: Callable):
  """(f(), ""), or (None, why not) where it meets what is damaged."""
  try:
    return f(), ""
  except PermissionError as error:
    raise StorageFailure(f"a checkpoint cannot be read: {error}") from error
  except (manifest.Invalid, *arrays.STRANGE) as error:
    return None, f"{type(error).__name__}: {error}".split("\n")[0][:500]


def _read(steps: Steps, step: int, abstract):
  faults.hit("restore/read", step)
  return arrays.read(steps.folder / str(step) / arrays.NAME, abstract)


def _checked(steps: Steps, step: int, abstract, prefix) -> dict:
  """The manifest of a step of this run, sound, whose leaves fit."""
  content = steps.manifest(step)
  where = f"{steps.folder}/{step}"
  manifest.digest_version(content)
  if steps.run is not None:
    steps.run.check(content, where)
  wanted = manifest.table(_as_saved(content, abstract))
  lines = manifest.differences(content, wanted, prefix)
  if lines and not prefix and _params_alone(content):
    raise BadConfig(
      f"{where} holds parameters alone, such as an average of others, and no "
      "state of an optimizer from which a run could go on. To begin a run with "
      f"them, in another --workdir: --config.init_from="
      f"{shlex.quote(str(steps.folder.parent))}"
    )
  if lines:
    more = f"\n  and {len(lines) - 10} more" if len(lines) > 10 else ""
    raise BadConfig(
      f"{where} is of another model or optimizer:\n  "
      + "\n  ".join(lines[:10])
      + more
      + "\nUse the configuration it was made with, or another --workdir"
    )
  return content


def _as_saved(content: dict, abstract):
  """What is asked for, less what checkpoints of before do not have."""
  if any(leaf["name"].startswith(f"{LATER}/") for leaf in content["leaves"]):
    return abstract
  if isinstance(abstract, State):
    return abstract.replace(average_stats=None)
  if isinstance(abstract, dict):  # some fields of a state
    return {name: x for name, x in abstract.items() if name != LATER}
  return abstract


def _params_alone(content: dict) -> bool:
  return all(leaf["name"].startswith("params/") for leaf in content["leaves"])


def _tell_of_old_digest(steps: Steps, content: dict) -> None:
  version = manifest.digest_version(content)
  if version == digests.VERSION:
    return
  text = (
    f"proven by a digest of version {version} only, in which some damages "
    "undo each other; what is saved from now on has version "
    f"{digests.VERSION}"
  )
  logging.warning("checkpoint %d: %s", content["step"], text)
  steps.tell("old_digest", step=content["step"], reason=text)


def _newest(steps: Steps, tried: set[int]) -> int | None:
  return max((s for s in steps.all() if s not in tried), default=None)


def _none_left(steps: Steps, tried: set[int], aside: bool) -> None:
  """None when there never was a step, otherwise StorageFailure."""
  names = [p.name for p in steps.entries() if ".corrupt-" in p.name]
  if not together.from_first(bool(tried or names)):
    return None
  if not aside:
    shown = f"tried: steps {sorted(tried)}" if tried else "none is left"
    raise StorageFailure(
      f"{steps.folder}: no checkpoint is valid ({shown}; nothing was changed)."
      " Name another --workdir, or train this one again"
    )
  raise StorageFailure(
    f"{steps.folder}: no checkpoint is valid (set aside: "
    f"{', '.join(sorted(names)) or sorted(tried)}). To begin again from step "
    "0, move this folder away or choose another --workdir"
  )
