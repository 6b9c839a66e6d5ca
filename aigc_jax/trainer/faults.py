"""Faults on purpose, for tests of restarts: the only file with such hooks.

Nothing happens unless the environment variable AIGC_JAX_FAULTS holds JSON, and
then only in a work directory marked by a file FAULTS_ALLOWED, so that a normal
run refuses to see it by accident. The JSON is an object of any of

  {"die_at":   [{"site": "save/rename", "step": 10, "n": 1}, ...],
   "raise_at": [{"site": "save/manifest", "n": 1, "errno": 28}, ...],
   "sleep_at": [{"site": "step", "step": 9, "seconds": 30}, ...],
   "term_at":  [{"site": "evaluate", "n": 2}, ...],
   "stop_at":  [{"site": "save/begin", "step": 5}, ...],
   "nan_at":   [7, 8],
   "poison_at": [7],
   "bitflip":  [{"step": 5, "leaf": "params/w", "device": 3, "bit": 3}, ...]}

`site` is a place named in a call of `hit`; without `step` any step counts; `n`
is the how-manieth passage there (1 when absent, 0 for every one); "process"
limits a fault to one process of several. A process stopped by "stop_at" waits
for SIGCONT; the batch of a poisoned step asks for one token everywhere.
"""

import json
import os
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax import tree
from aigc_jax.errors import BadConfig

VARIABLE = "AIGC_JAX_FAULTS"
MARK = "FAULTS_ALLOWED"
KINDS = (
  "die_at", "raise_at", "sleep_at", "term_at", "stop_at", "nan_at",
  "poison_at", "bitflip",
)  # fmt: skip

_plan: dict = {}
_passed: dict[int, int] = {}


def enable(workdir: str | Path, environ=os.environ) -> bool:
  """Reads the plan for this process; False where there is none.

  Raises BadConfig when the variable is set and the work directory is unmarked.
  """
  _plan.clear()
  _passed.clear()
  text = environ.get(VARIABLE, "")
  if not text:
    return False
  if not (Path(workdir) / MARK).exists():
    raise BadConfig(
      f"{VARIABLE} is set, but {workdir} has no file {MARK}: unset the "
      "variable (it injects faults for tests)"
    )
  plan = json.loads(text)
  unknown = sorted(set(plan) - set(KINDS))
  if unknown:
    raise BadConfig(f"{VARIABLE}: unknown {unknown}, there are {KINDS}")
  _plan.update(plan)
  return True


def hit(site: str, step: int | None = None) -> None:
  """Passes `site`; whatever is planned for this passage happens here."""
  if not _plan:
    return
  if entry := _due("sleep_at", site, step):
    time.sleep(entry["seconds"])
  if entry := _due("raise_at", site, step):
    number = entry.get("errno", 5)
    raise OSError(number, f"{os.strerror(number)} (injected at {site})")
  if _due("stop_at", site, step):
    os.kill(os.getpid(), signal.SIGSTOP)
  if _due("term_at", site, step):
    os.kill(os.getpid(), signal.SIGTERM)
  if _due("die_at", site, step):
    os.kill(os.getpid(), signal.SIGKILL)


def batch(step: int, batch: dict, count: int = 1) -> dict:
  """The batch of `step`; its floating leaves are NaN if that is planned.

  With count > 1 the batch of that many steps, on a leading axis.
  """
  batch = _poisoned(step, batch, count)
  bad = _planned("nan_at", step, count)
  if not bad:
    return batch
  floating = [
    name for name, x in batch.items() if jnp.issubdtype(x.dtype, jnp.floating)
  ]
  if not floating:
    raise BadConfig(f"{VARIABLE}: nan_at needs a batch with a floating leaf")
  where = jnp.array(bad) if count > 1 else ...
  return batch | {name: batch[name].at[where].set(jnp.nan) for name in floating}


def _planned(kind: str, step: int, count: int) -> list[int]:
  """Which of the `count` steps from `step` on are planned."""
  return [i for i in range(count) if step + i in _plan.get(kind, ())]


def _poisoned(step: int, batch: dict, count: int) -> dict:
  """The batch with other targets, of a loss far above the rest, if planned."""
  bad = _planned("poison_at", step, count)
  if not bad:
    return batch
  where = jnp.array(bad) if count > 1 else ...
  return batch | {"targets": batch["targets"].at[where].set(1)}


def state(step: int, state):
  """The state before `step`, one bit of a device's copy flipped if planned."""
  for entry in _plan.get("bitflip", ()):
    if entry["step"] != step:
      continue
    leaves, structure = jax.tree.flatten(state)
    at = tree.names(state).index(entry["leaf"])
    leaves[at] = _flipped(leaves[at], entry["device"], entry.get("bit", 0))
    state = jax.tree.unflatten(structure, leaves)
  return state


def _flipped(x: jax.Array, device: int, bit: int) -> jax.Array:
  parts = []
  for shard in x.addressable_shards:
    value = np.array(shard.data)
    if shard.device.id == device:
      value.reshape(-1).view(np.uint8)[0] ^= np.uint8(1 << bit)
    parts.append(jax.device_put(value, shard.device))
  return jax.make_array_from_single_device_arrays(x.shape, x.sharding, parts)


def _mine(entry: dict) -> bool:
  return entry.get("process", jax.process_index()) == jax.process_index()


def _due(kind: str, site: str, step: int | None) -> dict | None:
  """The entry of `kind` that happens at this passage."""
  for entry in _plan.get(kind, ()):
    if entry["site"] != site or not _mine(entry):
      continue
    if "step" in entry and entry["step"] != step:
      continue
    _passed[id(entry)] = _passed.get(id(entry), 0) + 1
    wanted = entry.get("n", 1)
    wanted = wanted if isinstance(wanted, list) else [wanted]
    if 0 in wanted or _passed[id(entry)] in wanted:
      return entry
  return None
