"""Points of a sweep that go on from another one, their trunk.

The trunk of a branch is the point of the arm that its branch_from names which
has its seed and, of what both set beside their names, the same values. See
scaling/space.py for how a sweep file says it, and run/branch.py for what a
branch is.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from aigc_jax.errors import BadConfig
from aigc_jax.optim import schedules
from aigc_jax.run import branch
from aigc_jax.scaling.space import BRANCH, SEED, STEP, Point

NONE = {BRANCH: None, STEP: None}  # a config that is no branch


def named(fingerprint: str) -> str:
  """A trunk as the config of a branch names it: by its content."""
  return f"point:{fingerprint}"


def trunks_of(
  points: Sequence[Point], labels: Sequence[str], where: str
) -> dict[int, int]:
  """{number of a branch: number of its trunk}, of points of one sweep.

  labels: the arm of each point. A branch_from that no arm is called is a work
  directory, as in training. Raises BadConfig where a branch has no trunk or
  several, or where that is a branch itself.
  """
  arms = {p.arm for p in points} | set(labels)
  found = {}
  for i, point in enumerate(points):
    arm = point.values.get(BRANCH)
    if not isinstance(arm, str) or arm not in arms:
      continue
    which = f"{where}, point {i + 1} (a branch of {arm!r})"
    if not isinstance(point.values.get(STEP), int):
      raise BadConfig(
        f"{which}: {STEP} is missing: the step of the trunk to go on from"
      )
    known = [
      k
      for k, other in enumerate(points)
      if arm in (other.arm, labels[k]) and k != i and _fits(point, other)
    ]
    if len(known) != 1:
      raise BadConfig(
        f"{which}: {len(known)} points of that arm have its seed and what else "
        "both set; expected one: set in the branch what its trunk sets, and "
        "give both the same seeds"
      )
    if points[known[0]].values.get(BRANCH) in arms:
      raise BadConfig(
        f"{which}: that is a branch itself: name its own trunk, "
        f"{points[known[0]].values[BRANCH]!r}"
      )
    found[i] = known[0]
  return found


def _fits(branch: Point, trunk: Point) -> bool:
  """Whether both have one seed, and one value of what no arm is named for."""
  if branch.values.get(SEED) != trunk.values.get(SEED):
    return False
  named = branch.named | trunk.named
  return all(
    trunk.values[key] == value
    for key, value in branch.values.items()
    if key in trunk.values and key not in named
  )


def check(config: Mapping, trunk: Mapping, arm: str) -> None:
  """Raises BadConfig for a branch that its trunk could not begin."""
  check_kept(config, trunk, arm)
  if config["steps"] is not None and trunk["steps"] is not None:
    at = np.arange(config[STEP] + 1)
    branch.check_rates(_rates(trunk, at), _rates(config, at), f"arm {arm!r}")


def _rates(config: Mapping, at: np.ndarray) -> np.ndarray:
  """The learning rates of a run at these steps."""
  keys = (
    "learning_rate", "warmup_steps", "decay_steps", "final_fraction",
    "warmup_fraction",
  )  # fmt: skip
  schedule = schedules.build(
    kind=config["optim"]["schedule"],
    steps=config["steps"],
    **{key: config["optim"][key] for key in keys},
  )
  return np.asarray(jax.jit(schedule)(at))


def check_kept(config: Mapping, trunk: Mapping, arm: str) -> None:
  """Raises BadConfig where the trunk will lack that checkpoint at its end."""
  step, saves = config[STEP], trunk["checkpoint"]
  every, steps = saves["every_steps"], trunk["steps"]
  if steps is not None and not 0 < step <= steps:
    raise BadConfig(
      f"{STEP}={step}: expected 1 to {steps}, the steps of its trunk {arm!r}"
    )
  if step == steps:
    return  # its last one, which is always saved and kept
  whole, good = saves["keep_every_steps"], every and step % every == 0
  if good and whole and step % whole == 0:
    return
  if good and steps is not None:
    # Multiples of every_steps from it to the end, and the end itself.
    after = (steps - 1) // every - step // every + 1
    if after < saves["keep"]:
      return
  raise BadConfig(
    f"{STEP}={step}: its trunk {arm!r} saves every {every} steps and keeps "
    f"{'those of every ' + str(whole) + ' and ' if whole else ''}the last "
    f"{saves['keep']}, so it will have no checkpoint of that step: give the "
    f"trunk checkpoint.every_steps and checkpoint.keep_every_steps that divide "
    f"{step}"
  )


def planned(point: Any, trunk: Any) -> Any:
  """A point that is a branch of another, at the cost of what is left of it."""
  step = point.config[STEP]
  cost = point.cost
  left = max(cost.steps - step, 0) / max(cost.steps, 1)
  return dataclasses.replace(
    point,
    trunk=trunk.fingerprint,
    branch_step=step,
    cost=dataclasses.replace(
      cost, amount=round(cost.amount * left), flops=cost.flops * left
    ),
  )
