"""What there is to run: each point with its config, its name and its cost.

Nothing is written and nothing is computed but shapes. A point is named by its
content: a readable part, and a hash of its whole config as training reads it,
so that whatever changes the config (a key of the sweep, or of the config file
that it starts from) makes another point, and the order of points makes none.

A point whose branch_from is an arm of the sweep is a branch of a point of that
arm (`branches`); its config names that by its content.
"""

import collections
import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from aigc_jax import files, run, sharding, tree
from aigc_jax.errors import BadConfig, nearest
from aigc_jax.run import overrides, script
from aigc_jax.run.settings import plain_of
from aigc_jax.scaling.space import BRANCH, CONFIG, SEED, Point, Sweep
from aigc_jax.scaling.sweeps import branches

HASH = 8  # hexadecimal digits of a name
READABLE = 64  # characters before them, at most


@dataclasses.dataclass(frozen=True)
class Cost:
  """What a point takes: parameters, steps, what it is trained on, FLOPs.

  amount: of `unit`, tokens where the data counts any, else examples.
  """

  parameters: int
  steps: int
  amount: int
  flops: float
  unit: str = "tokens"


@dataclasses.dataclass(frozen=True)
class Planned:
  """A point that can be run.

  arm: what it is called in reports, without its seed. config: as it is given
  to training. fingerprint: of the config as training reads it. trunk: that of
  the point that it is a branch of, at branch_step; "" of one that is none.
  """

  name: str
  arm: str
  values: dict[str, Any]
  config: run.Config
  fingerprint: str
  cost: Cost
  trunk: str = ""
  branch_step: int = 0

  @property
  def seed(self) -> int:
    return self.config[SEED]


@dataclasses.dataclass(frozen=True)
class Plan:
  """All points of a sweep, in its order."""

  source: str  # as --sweep names it
  points: tuple[Planned, ...]
  baseline: str
  metric: str

  @property
  def arms(self) -> list[str]:
    return list(dict.fromkeys(point.arm for point in self.points))


def load(given: str, say: Callable[[str], None] = lambda text: None) -> Plan:
  """The plan of the sweep in "PATH.py" or "PATH.py:PRESET".

  say: is told how far it is, where that takes a while. Raises BadConfig, which
  names the point: for a key that no config has, for what cannot be trained,
  for two points of equal content, for a baseline that is no arm.
  """
  sweep = script.load_sweep(given)
  where = f"--sweep={given.partition(':')[0]}"
  if not isinstance(sweep, Sweep):
    raise BadConfig(
      f"{where}: its get_sweep() returns {_brief(sweep)} instead of a sweep: "
      "end it with `return Sweep('configs/quickstart.py', points)` of "
      "aigc_jax.scaling.space"
    )
  points = sweep.points
  if not isinstance(points, tuple | list) or not all(
    isinstance(point, Point) for point in points
  ):
    raise BadConfig(
      f"{where}: the points of its sweep are {_brief(points)}: expected those "
      "that arms, grid, zipped, ... of aigc_jax.scaling.space make"
    )
  if not points:
    raise BadConfig(f"{where}: the sweep has no points (a filter kept none?)")
  folder = files.expanded(script.parted(given)[0]).absolute().parent
  plan = Plan(given, tuple(_planned(sweep, folder, where, say)), "", "")
  baseline = sweep.baseline
  if baseline and not any(_is_arm(name, baseline) for name in plan.arms):
    raise BadConfig(
      f"{where}: baseline={baseline!r} is no arm of the sweep"
      f"{nearest(baseline, plan.arms)} (there are: "
      f"{', '.join(map(repr, plan.arms))})"
    )
  return dataclasses.replace(plan, baseline=baseline, metric=sweep.metric)


def of_arms(points: Sequence, arms: Sequence[str]) -> list:
  """The points (or entries) of these arms, all where none is named.

  A name is that of an arm, or what it begins with: "wide" is also "wide,
  learning_rate=0.01". Raises BadConfig for an arm that is not there.
  """
  names = list(dict.fromkeys(point.arm for point in points))
  for wanted in arms:
    if not any(_is_arm(name, wanted) for name in names):
      raise BadConfig(
        f"--arm={wanted}: the sweep has no such arm{nearest(wanted, names)} "
        f"(there are: {', '.join(map(repr, names))})"
      )
  if not arms:
    return list(points)
  return [p for p in points if any(_is_arm(p.arm, name) for name in arms)]


def _is_arm(name: str, wanted: str) -> bool:
  return name == wanted or name.startswith(f"{wanted}, ")


def _planned(sweep: Sweep, folder: Path, where: str, say) -> list[Planned]:
  given: dict[str, run.Config] = {}
  costs: dict[str, Cost] = {}
  seen: dict[str, int] = {}
  found: dict[int, Planned] = {}
  labels = _labels(sweep.points)
  trunks = branches.trunks_of(sweep.points, labels, where)
  # A trunk before its branches, whose configs name it.
  for i in sorted(range(len(sweep.points)), key=lambda i: i in trunks):
    point = sweep.points[i]
    which = f"{where}, point {i + 1} ({_shown(point)})"
    values = dict(point.values)
    path = values.pop(CONFIG, sweep.config)
    trunk = found[trunks[i]] if i in trunks else None
    if trunk is not None:
      values[BRANCH] = branches.named(trunk.fingerprint)
    try:
      if path not in given:
        given[path] = plain_of(script.load(_beside(path, folder)))
      config = overrides.apply(
        given[path], [(key, _text(key, value)) for key, value in values.items()]
      )
      settled = run.read(config)
      fingerprint = run.fingerprint(settled)
      if fingerprint in seen:
        other = seen[fingerprint]
        raise BadConfig(
          f"of equal content as point {other + 1} "
          f"({_shown(sweep.points[other])}): a point is run once; leave one of "
          "them out, or give them different seeds (repeat)"
        )
      seen[fingerprint] = i
      if trunk is not None:
        branches.check(settled, run.read(trunk.config), labels[trunks[i]])
      alike = run.fingerprint(settled | {SEED: 0} | branches.NONE)
      if alike not in costs:
        costs[alike] = cost_of(settled | branches.NONE)
        say(f"planned {len(found) + 1} of {len(sweep.points)} points")
    except BadConfig as error:
      raise BadConfig(f"{which}: {error}") from None
    name = f"{_readable(labels[i], config)}-{fingerprint[:HASH]}"
    found[i] = Planned(
      name, labels[i], dict(point.values), config, fingerprint, costs[alike]
    )
    if trunk is not None:
      found[i] = branches.planned(found[i], trunk)
  return [found[i] for i in range(len(sweep.points))]


def cost_of(config: run.Config) -> Cost:
  """What a run of a config takes; all of the config that can be is checked."""
  r = run.build(config, sharding.mesh_of(jax.devices("cpu")[0]))
  run.check_inputs(config)
  run.check_evaluators(config)
  return Cost(
    parameters=tree.count(r.state.params),
    steps=r.steps,
    amount=r.steps * r.units_per_step,
    flops=r.steps * r.flops_per_step,
    unit=r.unit,
  )


def _beside(path: Any, folder: Path) -> str:
  """A config as it is named, from here or from beside the sweep file."""
  if not isinstance(path, str):
    raise BadConfig(f"config={path!r}: expected 'PATH.py' or 'PATH.py:PRESET'")
  file, _, _ = script.parted(path)
  beside = folder / file
  if not files.expanded(file).exists() and beside.exists():
    return f"{beside}{path[len(file) :]}"
  return path


def _text(key: str, value: Any) -> str:
  """A value as it would be written after --config.KEY=."""
  plain = plain_of({key: value})[key]
  if isinstance(plain, str):
    return plain
  if isinstance(plain, float) and plain.is_integer() and abs(plain) < 1e15:
    return str(int(plain))  # 1e3 where whole numbers stand
  return repr(plain)


def _labels(points: Sequence[Point]) -> list[str]:
  """The arm of each point: its name, and the values that vary beside it."""
  keys = list(dict.fromkeys(key for p in points for key in p.values))
  varying = [
    key
    for key in keys
    if key != SEED and len({_json(p.values.get(key)) for p in points}) > 1
  ]
  last = collections.Counter(key.rpartition(".")[2] for key in varying)
  labels = []
  for point in points:
    words = [point.arm] * bool(point.arm)
    for key in varying:
      if key in point.values and key not in point.named:
        tail = key.rpartition(".")[2]
        short = tail if last[tail] == 1 else key
        words.append(f"{short}={_value(point.values[key])}")
    labels.append(", ".join(words) or "all")
  return labels


def _readable(label: str, config: Mapping) -> str:
  """A part of a file name that says what a point is."""
  text = re.sub(r"[^A-Za-z0-9._=+-]+", "-", label).strip("-.")
  return f"{text[:READABLE].rstrip('-.')}-seed{config[SEED]}"


def _value(value: Any) -> str:
  return value if isinstance(value, str) else _json(value)


def _json(value: Any) -> str:
  return json.dumps(value, default=str)


def _shown(point: Point) -> str:
  """A point in a message."""
  words = [repr(point.arm)] * bool(point.arm)
  words += [f"{key}={_value(value)}" for key, value in point.values.items()]
  return ", ".join(words) or "nothing set"


def _brief(value: Any) -> str:
  text = repr(value)
  return (
    "nothing" if value is None else f"{text[:60]}{'...' * (len(text) > 60)}"
  )
