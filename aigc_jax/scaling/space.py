"""The points of a sweep: plain combinators over config keys.

  from aigc_jax.scaling.space import Sweep, arms, grid, product, repeat

  def get_sweep():
    points = product(
      arms(plain={}, qk_norm={"model.qk_norm": True}),
      grid({"optim.learning_rate": [1e-3, 1e-2]}),
    )
    return Sweep("configs/quickstart.py", repeat(points, seeds=3))

A space is a tuple of points; every function here takes spaces or plain values
and returns a space, so that they nest, and a space can be sliced and joined
with + like any tuple. A point sets keys of a config, "optim.b1"; the key
"config" names another config file than the sweep's.

A branch goes on from another point, which it waits for: its branch_from is the
name of that point's arm, and branch_step the step it goes on from,

  trunk = arms(trunk={"steps": 800, "checkpoint.keep_every_steps": 200})
  decays = product(
    arms(decay={"branch_from": "trunk", "optim.schedule": "wsd"}),
    zipped({"branch_step": [200, 400], "steps": [250, 500],
            "optim.decay_steps": [50, 100]}),
  )
  points = repeat(trunk + decays, seeds=3)
"""

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from aigc_jax.errors import BadConfig

CONFIG, SEED = "config", "seed"
BRANCH, STEP = "branch_from", "branch_step"
DIGITS = 4  # significant ones of a number that is drawn


@dataclasses.dataclass(frozen=True)
class Point:
  """Keys of a config with their values.

  arm: its name, where it has one. named: the keys which that name stands for.
  """

  values: Mapping[str, Any]
  arm: str = ""
  named: frozenset[str] = frozenset()


Space = tuple[Point, ...]
Draw = Callable[[float], Any]  # a number from [0, 1) to a value


@dataclasses.dataclass(frozen=True)
class Sweep:
  """What a sweep file returns.

  config: of every point that names none, as `train --config` takes it; looked
  for in the current folder, then beside the sweep file. baseline: the arm that
  reports hold the others against, the first where it is ""; of arms in a grid
  the name alone, and each other one is held against that of its own values.
  metric: what "best" is by.
  """

  config: str
  points: Space
  baseline: str = ""
  metric: str = "eval/heldout/loss"


def arms(**settings: Mapping[str, Any]) -> Space:
  """A named point for each keyword: arms(plain={}, wide={"model.dim": 256})."""
  for name, values in settings.items():
    _check_keys(f"arms({name}=...)", values)
  return tuple(Point(dict(v), n, frozenset(v)) for n, v in settings.items())


def arm(name: str, values: Mapping[str, Any]) -> Space:
  """One named point, for a name that is no keyword: arm("b1 = .8", {...})."""
  _check_keys(f"arm({name!r}, ...)", values)
  return (Point(dict(values), name, frozenset(values)),)


def grid(axes: Mapping[str, Iterable]) -> Space:
  """Each value of each key with each of the others, the last key fastest."""
  columns = _columns("grid", axes)
  rows = itertools.product(*columns.values())
  return tuple(Point(dict(zip(columns, row, strict=True))) for row in rows)


def zipped(axes: Mapping[str, Iterable]) -> Space:
  """The first values of all keys together, then the second ones, and so on."""
  columns = _columns("zipped", axes)
  lengths = {key: len(values) for key, values in columns.items()}
  if len(set(lengths.values())) > 1:
    raise BadConfig(
      "zipped: the keys have different numbers of values "
      f"({', '.join(f'{k}: {n}' for k, n in lengths.items())}); give each as "
      "many as the others, or take grid"
    )
  rows = zip(*columns.values(), strict=True)
  return tuple(Point(dict(zip(columns, row, strict=True))) for row in rows)


def chain(*spaces: Space) -> Space:
  """The points of one space after those of the other."""
  return tuple(point for space in spaces for point in _checked("chain", space))


def product(*spaces: Space) -> Space:
  """Each point of one space joined with each of the others.

  Names of arms are joined too. Raises BadConfig where both set a key.
  """
  checked = [_checked("product", space) for space in spaces]
  return tuple(_joined(points) for points in itertools.product(*checked))


def repeat(space: Space, seeds: int | Iterable[int]) -> Space:
  """Each point with each seed: 0 to `seeds` - 1, or those that are given.

  The seeds change slowest, so that all arms have one before any has two.
  """
  whole = isinstance(seeds, int)
  if whole and seeds < 1:
    raise BadConfig(f"repeat(..., seeds={seeds}): expected 1 or more seeds")
  numbers = range(seeds) if whole else seeds
  by_seed = grid({SEED: numbers})
  return tuple(
    _joined((point, seed))
    for seed in by_seed
    for point in _checked("repeat", space)
  )


def where(space: Space, wanted: Callable[[Mapping[str, Any]], bool]) -> Space:
  """The points whose values are wanted: where(x, lambda v: v["seed"] < 3)."""
  points = _checked("where", space)
  return tuple(point for point in points if wanted(point.values))


def uniform(low: float, high: float) -> Draw:
  """Numbers between two, all as likely; for `draw`."""
  _check_bounds("uniform", low, high)
  return lambda u: _rounded(low + u * (high - low), low, high)


def log_uniform(low: float, high: float) -> Draw:
  """Numbers between two, each factor between them as likely; for `draw`."""
  _check_bounds("log_uniform", low, high)
  if low <= 0:
    raise BadConfig(f"log_uniform({low}, {high}): expected bounds above 0")
  span = math.log(high / low)
  return lambda u: _rounded(low * math.exp(u * span), low, high)


def integers(low: int, high: int) -> Draw:
  """Whole numbers from low to high, both included; for `draw`."""
  _check_bounds("integers", low, high)
  return lambda u: low + int(u * (high - low + 1))


def choice(*values: Any) -> Draw:
  """One of these values; for `draw`."""
  if not values:
    raise BadConfig("choice(): expected values to choose from")
  return lambda u: values[int(u * len(values))]


def draw(axes: Mapping[str, Draw], n: int, seed: int = 0) -> Space:
  """n random points: draw({"optim.b2": uniform(0.9, 0.999)}, n=8).

  Every value is a function of the seed, its key and the number of its point
  alone: more points, another key or another order of keys change no other.
  """
  _check_keys("draw", axes)
  if n < 1:
    raise BadConfig(f"draw(..., n={n}): expected 1 or more points")
  for key, one in axes.items():
    if not callable(one):
      raise BadConfig(
        f"draw: {key}={one!r} is no distribution: uniform(0, 1), "
        "log_uniform(1e-4, 1e-1), integers(1, 8) or choice('a', 'b')"
      )
  return tuple(
    Point({key: one(_unit(seed, key, i)) for key, one in axes.items()})
    for i in range(n)
  )


def _unit(seed: int, key: str, i: int) -> float:
  """A number in [0, 1), the same on every machine and in every version."""
  digest = hashlib.sha256(f"{seed}/{key}/{i}".encode()).digest()
  return (int.from_bytes(digest[:8]) >> 11) / 2**53


def _rounded(value: float, low: float, high: float) -> float:
  """To a few digits, so that names of points can show all of it."""
  return min(max(float(f"{value:.{DIGITS}g}"), low), high)


def _check_bounds(name: str, low: float, high: float) -> None:
  if not (math.isfinite(low) and math.isfinite(high) and low < high):
    raise BadConfig(f"{name}({low}, {high}): expected finite low < high")


def _joined(points: Sequence[Point]) -> Point:
  """One point of several, which set different keys."""
  values: dict[str, Any] = {}
  for point in points:
    for key, value in point.values.items():
      if key in values:
        raise BadConfig(
          f"{key} is set twice in one point, to {values[key]!r} and to "
          f"{value!r}: set it in one of the spaces that are joined"
        )
      values[key] = value
  names = [point.arm for point in points if point.arm]
  return Point(
    values, ", ".join(names), frozenset().union(*(p.named for p in points))
  )


def _columns(name: str, axes: Mapping[str, Iterable]) -> dict[str, list]:
  """{key: its values}; BadConfig for what is none, or has none."""
  _check_keys(name, axes)
  columns = {}
  for key, values in axes.items():
    if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
      raise BadConfig(
        f"{name}: {key}={values!r} is no list of values; for one value: "
        f"[{values!r}]"
      )
    columns[key] = list(values)
    if not columns[key]:
      raise BadConfig(f"{name}: {key} has no values: give it one, or leave it")
  return columns


def _check_keys(name: str, values: Any) -> None:
  if not isinstance(values, Mapping):
    raise BadConfig(
      f"{name}: expected a dict of config keys, as "
      f"{{'optim.b1': ...}}, got {values!r}"
    )
  for key in values:
    if not isinstance(key, str):
      raise BadConfig(f"{name}: {key!r} is no config key such as 'optim.b1'")


def _checked(name: str, space: Any) -> Space:
  """The space, or a BadConfig for what is none."""
  if isinstance(space, Point):
    return (space,)
  whole = isinstance(space, tuple | list)
  if not whole or not all(isinstance(point, Point) for point in space):
    raise BadConfig(
      f"{name}: expected a space, made by arms, grid, zipped, draw, ... of "
      f"aigc_jax.scaling.space; got {space!r}"
    )
  return tuple(space)
