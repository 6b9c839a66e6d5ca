"""Spellings of before: 0, 0.0, "" and -1 where it is None today."""

import functools
from collections.abc import Mapping
from typing import Any

from absl import logging

from aigc_jax import tree
from aigc_jax.run import compute
from aigc_jax.trainer.consumed import TOTALS

# Key -> what once stood for "derived", "all" or "none" there.
BEFORE: dict[str, object] = {
  "total_tokens": 0,
  "init_from": "",
  "mesh/*": -1,
  "data/path": "",
  "data/validation_path": "",
  "model/head_dim": 0,
  "model/position_length": 0,
  "model/rotary_local_base": 0,
  "model/attention_scale": 0,
  "model/attention_softcap": 0,
  "model/logit_softcap": 0,
  "model/init_std": 0,
  "compute/unroll": 0,
  "model/parts/*/unroll": 0,
  "objective/chunk": 0,
  "optim/clip": 0,
  "optim/spike_sigma": 0,
  "evaluate/*/every_steps": 0,
  "evaluate/*/batches": -1,
  "checkpoint/every_steps": 0,
  "checkpoint/keep_every_steps": 0,
}
# Keys that came later, and what runs did before.
LATER = {"frozen": {}, "init_parts": {}} | dict.fromkeys(
  (*TOTALS, "branch_from", "branch_step")
)
LATER_DATA = {"kind": "text"}
LATER_TEXT = {"validation_path": None}

_told: set[str] = set()


def modern(config: Mapping[str, Any]) -> dict[str, Any]:
  """A config, also one from before, as it is spelt today; told once.

  Raises BadConfig where it is of neither layout (`compute.sectioned`).
  """
  old: list[str] = []
  found = _modern(LATER | compute.sectioned(config), "", old)
  if isinstance(found.get("data"), dict):
    found["data"] = LATER_DATA | found["data"]
    if found["data"]["kind"] == "text":
      found["data"] = LATER_TEXT | found["data"]
  new = [line for line in old if line not in _told]
  if new:
    _told.update(new)
    logging.warning("read as None, as it is written today: %s", ", ".join(new))
  return found


def modern_model(keywords: Mapping[str, Any]) -> dict[str, Any]:
  """{"model": ..., "compute": ...} of a model that is of no config.

  keywords: all of it and the kind, as of a folder of Hugging Face.
  """
  return _modern(compute.sectioned({"model": keywords}), "", [])


def _modern(section: Mapping, prefix: str, old: list[str]) -> dict[str, Any]:
  found: dict[str, Any] = {}
  for key, value in section.items():
    path = f"{prefix}{key}"
    if isinstance(value, Mapping):
      value = _modern(value, f"{path}/", old)
    elif _is_old(path, value):
      old.append(f"{path.replace('/', '.')}={value!r}")
      value = None
    found[key] = value
  return found


def _is_old(path: str, value: object) -> bool:
  if isinstance(value, bool) or value is None:
    return False
  return value in _before(path)


@functools.lru_cache(maxsize=4096)
def _before(path: str) -> tuple:
  """What once stood for None at this key."""
  return tuple(
    old for pattern, old in BEFORE.items() if tree.match((pattern,), path)
  )
