"""Arms of an ablation: runs that differ in their seed only."""

import collections
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from aigc_jax import run, tree
from aigc_jax.errors import BadConfig, nearest
from aigc_jax.scaling.runs import Record
from aigc_jax.trainer.changes import HARMLESS

# Keys by which no two arms differ: the seed, and what changes no result
# beyond rounding. Where a run begins, and what of its data it passes over,
# is harmless to continue with and yet makes another experiment.
MATTERS = {"init_from", "data/skip_steps*"}
NOT_AN_ARM = ("seed", *(key for key in HARMLESS if key not in MATTERS))
EACH_RUN = "run"  # --by=run: every run is an arm of its own
MOST_IN_NAME, MOST_KEYS = 28, 4  # characters of a value; keys in a name


@dataclasses.dataclass(frozen=True)
class Arm:
  """Runs of one setting. values: the keys that set it apart, by dots."""

  name: str
  runs: tuple[Record, ...]
  values: dict[str, Any]

  @property
  def seeds(self) -> list[int | None]:
    """The seed of each run."""
    return [r.seed for r in self.runs]


def arms_of(runs: Sequence[Record], by: Sequence[str] = ()) -> list[Arm]:
  """The runs by arms, in the order in which these first appear.

  by: config keys, such as "optim.learning_rate"; none: as the sweep named them
  that all runs are of, else all keys in which the runs differ, but for the seed
  and what changes no result; "run": each run. An arm that differs in more than
  MOST_KEYS is called as its first run is.
  Raises BadConfig for a key that no config has.
  """
  if tuple(by) == (EACH_RUN,):
    return [Arm(r.name, (r,), {}) for r in runs]
  if not by and all(r.arm for r in runs):
    return _by_name(runs)
  leaves = [
    leaves_of(config) for config in run.filled([r.config for r in runs])
  ]
  keys = list(by) or differing(leaves)
  known = sorted({key for one in leaves for key in one})
  for key in keys:
    if key not in known:
      raise BadConfig(
        f"--by={key}: no run has this config key{nearest(key, known)} "
        "(--by=run takes each run by itself)"
      )
  groups: dict[str, list[int]] = collections.defaultdict(list)
  for i, one in enumerate(leaves):
    values = [one.get(key, "(not there)") for key in keys]
    groups[json.dumps(values, sort_keys=True)].append(i)
  if by or len(keys) <= MOST_KEYS:
    names = _names(keys, [leaves[members[0]] for members in groups.values()])
  else:  # of other models, data or tasks: no name could say in what they differ
    names = [runs[members[0]].name for members in groups.values()]
  return [
    Arm(
      name,
      tuple(runs[i] for i in members),
      {key: leaves[members[0]].get(key) for key in keys},
    )
    for name, members in zip(names, groups.values(), strict=True)
  ]


def _by_name(runs: Sequence[Record]) -> list[Arm]:
  """The arms of a sweep, with the keys that it sets in them."""
  groups: dict[str, list[Record]] = collections.defaultdict(list)
  for r in runs:
    groups[r.arm].append(r)
  return [
    Arm(name, tuple(members), _without_seed(members[0].values))
    for name, members in groups.items()
  ]


def _without_seed(values: Mapping) -> dict[str, Any]:
  return {key: value for key, value in values.items() if key != "seed"}


def leaves_of(config: Mapping, prefix: str = "") -> dict[str, Any]:
  """{"optim.learning_rate": 1e-3}; a list is one value."""
  found = {}
  for key, value in config.items():
    if isinstance(value, Mapping) and value:
      found |= leaves_of(value, f"{prefix}{key}.")
    else:
      found[f"{prefix}{key}"] = value
  return found


def differing(leaves: Sequence[Mapping]) -> list[str]:
  """The keys whose values are not all equal and make an arm."""
  keys = sorted({key for one in leaves for key in one})
  return [
    key
    for key in keys
    if len({json.dumps(one.get(key), sort_keys=True) for one in leaves}) > 1
    and not tree.match(NOT_AN_ARM, key.replace(".", "/"))
  ]


def _names(keys: Sequence[str], values: Sequence[Mapping]) -> list[str]:
  """ "learning_rate=0.001, warmup_steps=10", keys as short as is clear."""
  if not keys:
    return ["all runs"]
  last = collections.Counter(key.rpartition(".")[2] for key in keys)
  names: list[str] = []
  for one in values:
    words = []
    for key in keys:
      tail = key.rpartition(".")[2]
      text = _shown(one.get(key, "(not there)"))
      words.append(f"{tail if last[tail] == 1 else key}={text}")
    name = ", ".join(words)
    # Two long values may begin alike.
    count = sum(n == name or n.startswith(f"{name} #") for n in names)
    names.append(f"{name} #{count + 1}" if count else name)
  return names


def _shown(value) -> str:
  text = value if isinstance(value, str) else json.dumps(value)
  return text if len(text) <= MOST_IN_NAME else f"{text[: MOST_IN_NAME - 3]}..."


def find_arm(arms: Sequence[Arm], name: str) -> Arm:
  """The arm of that name; BadConfig, with the names there are, without one."""
  for arm in arms:
    if arm.name == name:
      return arm
  names = [arm.name for arm in arms]
  listed = "".join(f"\n  {n!r}" for n in names)
  raise BadConfig(
    f"--baseline={name!r}: there is no such arm{nearest(name, names)} "
    f"(there are:{listed})"
  )


def baselines_of(arms: Sequence[Arm], name: str = "") -> dict[str, Arm | None]:
  """{name of an arm: the arm that it is held against}.

  name: that of an arm, "" of the first, which is for all. Or what the names of
  several begin with, as those of a grid do: "plain" of "plain, b1=0.8" and
  "plain, b1=0.9"; an arm is held against the one whose name goes on as its own
  ends, and None where there is none. Raises BadConfig for a name of no arm.
  """
  ends = {
    arm.name.removeprefix(name): arm
    for arm in arms
    if arm.name.startswith(f"{name}, ")
  }
  if not name or not ends or any(arm.name == name for arm in arms):
    return dict.fromkeys(
      (arm.name for arm in arms), find_arm(arms, name) if name else arms[0]
    )
  return {
    arm.name: next(
      (base for end, base in ends.items() if f", {arm.name}".endswith(end)),
      None,
    )
    for arm in arms
  }
