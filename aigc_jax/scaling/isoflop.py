"""Approaches 1 and 2: the best size by budget, then a power of the budget."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from aigc_jax.errors import BadConfig
from aigc_jax.scaling.points import Points
from aigc_jax.terminal import counted

SAME_BUDGET = 0.10  # relative: budgets within it are one
LEAST = 3  # points of a parabola; with 3 there is no residual
BUDGETS = 1500  # of the envelope, as in arXiv:2203.15556


@dataclasses.dataclass(frozen=True)
class Optimum:
  """Of one budget: the size at the vertex of its parabola in ln N.

  good: convex, and the vertex between its points; why says what is not.
  parabola: coefficients of loss in ln N, highest first.
  """

  flops: float
  params: float
  tokens: float
  loss: float
  points: int
  good: bool
  why: str
  parabola: tuple[float, float, float] | None
  low: float
  high: float


@dataclasses.dataclass(frozen=True)
class Line:
  """ln y = coefficient + exponent ln x, by least squares."""

  exponent: float
  log_coefficient: float
  stderr: float
  log_stderr: float
  r2: float
  points: int

  def at(self, x):
    return np.exp(self.log_coefficient + self.exponent * np.log(x))


def budgets_of(flops: np.ndarray) -> np.ndarray:
  """For each point the geometric mean of the budget it belongs to."""
  order = np.argsort(flops)
  group, start = np.zeros(len(flops), int), 0
  for i in range(1, len(order)):
    if flops[order[i]] > flops[order[start]] * (1 + SAME_BUDGET):
      start = i
      group[order[i]] = group[order[i - 1]] + 1
    else:
      group[order[i]] = group[order[i - 1]]
  logs = np.log(flops)
  means = np.bincount(group, logs) / np.bincount(group)
  return np.exp(means[group])


def near_best(points: Points, factor: float) -> Points:
  """Without the sizes further than `factor` from the best of their budget."""
  if not factor > 1:
    raise BadConfig(f"--near={factor:g}: expected a factor above 1, such as 4")
  c = points.need(("params", "flops", "loss"), "isoflop")
  budget = budgets_of(c["flops"])
  keep = np.zeros(len(points), bool)
  for flops in np.unique(budget):
    own = np.flatnonzero(budget == flops)
    best = c["params"][own[np.argmin(c["loss"][own])]]
    away = np.abs(np.log(c["params"][own] / best))
    keep[own] = away <= math.log(factor) * (1 + 1e-9)
  note = (
    f"{len(points) - keep.sum()} of {len(points)} points are further than "
    f"{factor:g} times from the best size of their budget and left out (--near)"
  )
  some = points.some(keep)
  return dataclasses.replace(some, notes=(*some.notes, note))


def optima(points: Points) -> list[Optimum]:
  """The optimum of each budget that has at least three sizes."""
  c = points.need(("params", "tokens", "flops", "loss"), "isoflop")
  budget = budgets_of(c["flops"])
  found = []
  for flops in np.unique(budget):
    own = budget == flops
    found.append(
      _optimum(flops, *(c[k][own] for k in ("params", "tokens", "loss")))
    )
  return found


def _optimum(flops, params, tokens, loss) -> Optimum:
  n = np.log(params)
  best = int(np.argmin(loss))

  def bad(why, parabola=None):
    return Optimum(
      flops, params[best], tokens[best], loss[best], len(n), False, why,
      parabola, params.min(), params.max(),
    )  # fmt: skip

  if len(np.unique(n)) < LEAST:
    return bad(f"{len(np.unique(n))} sizes: a parabola takes {LEAST}")
  middle = n.mean()
  a, b, c = np.polyfit(n - middle, loss, 2)
  parabola = (a, b - 2 * a * middle, c - b * middle + a * middle**2)
  if not a > 1e-9 * np.abs(loss).max():
    return bad("the parabola is not convex: no minimum", parabola)
  vertex = middle - b / (2 * a)
  least = c - b * b / (4 * a)
  # Tokens by a parabola of their own: they need not be C / 6N.
  d = np.log(tokens)
  p, q, _ = np.polyfit(d - d.mean(), loss, 2)
  optimal_tokens = math.exp(d.mean() - q / (2 * p)) if p > 0 else math.nan
  good = bool(n.min() < vertex < n.max())
  return Optimum(
    flops=flops,
    params=math.exp(min(vertex, 700.0)),
    tokens=optimal_tokens,
    loss=least,
    points=len(n),
    good=good and math.isfinite(optimal_tokens),
    why="" if good else "no points on both sides of the vertex",
    parabola=parabola,
    low=params.min(),
    high=params.max(),
  )


def line(
  x: np.ndarray, y: np.ndarray, stderr: np.ndarray | None = None
) -> Line:
  """The power law y = coefficient x^exponent; stderr: of ln y, where known."""
  if len(x) < 2 or np.ptp(np.log(x)) == 0:
    raise BadConfig(
      f"{len(x)} optimum (or all of one budget): a power of the budget takes "
      "two or more"
    )
  u, v = np.log(x), np.log(y)
  w = np.ones_like(u) if stderr is None else 1 / stderr**2
  mu, mv = (w * u).sum() / w.sum(), (w * v).sum() / w.sum()
  sxx = (w * (u - mu) ** 2).sum()
  slope = (w * (u - mu) * (v - mv)).sum() / sxx
  start = mv - slope * mu
  residual = v - start - slope * u
  total = (w * (v - mv) ** 2).sum()
  left = (w * residual**2).sum()
  df = len(x) - 2
  scale = left / df if df > 0 else math.nan
  return Line(
    exponent=float(slope),
    log_coefficient=float(start),
    stderr=float(math.sqrt(scale / sxx)) if df > 0 else math.nan,
    log_stderr=float(math.sqrt(scale * (1 / w.sum() + mu * mu / sxx)))
    if df > 0
    else math.nan,
    r2=float(1 - left / total) if total > 0 else 1.0,
    points=len(x),
  )


def t_reach(df: int, alpha: float = 0.05) -> float:
  return float(stats.t.isf(alpha / 2, df)) if df > 0 else math.nan


def resampled(points: Points, count: int, seed: int = 0) -> list[list[Optimum]]:
  """Optima of points drawn with replacement within their budget."""
  c = points.need(("params", "tokens", "flops", "loss"), "isoflop")
  budget = budgets_of(c["flops"])
  groups = [(f, np.flatnonzero(budget == f)) for f in np.unique(budget)]
  draw = np.random.default_rng(seed)
  found = []
  for _ in range(count):
    one = []
    for flops, own in groups:
      some = draw.choice(own, len(own))
      one.append(
        _optimum(flops, *(c[k][some] for k in ("params", "tokens", "loss")))
      )
    found.append(one)
  return found


def envelope(points: Points) -> tuple[np.ndarray, np.ndarray, np.ndarray, list]:
  """(flops, best params, best loss, notes) of the least loss of all curves.

  A curve is the points of one run (the column run, else of one size), taken
  between its points in ln C. A budget counts where the best size is neither
  the smallest nor the largest of the curves that reach it.
  """
  c = points.need(("params", "flops", "loss"), "envelope")
  run = points.columns.get("run")
  keys = c["params"].astype(str) if run is None else run
  curves = []
  for key in dict.fromkeys(keys):
    own = np.flatnonzero(keys == key)
    order = own[np.argsort(c["flops"][own], kind="stable")]
    if len(np.unique(c["params"][own])) > 1:
      raise BadConfig(f"run {key!r} has points of several sizes")
    curves.append(
      (c["params"][own[0]], np.log(c["flops"][order]), c["loss"][order])
    )
  notes = []
  single = sum(len(x) < 2 for _, x, _ in curves)
  if single:
    notes.append(f"of one point, so of one budget: {counted(single, 'curve')}")
  if len({n for n, *_ in curves}) < 3:
    raise BadConfig(
      "the envelope takes curves of three or more sizes (rows of several "
      "FLOPs for each)"
    )
  low = min(x[0] for _, x, _ in curves)
  high = max(x[-1] for _, x, _ in curves)
  flops, params, loss = [], [], []
  edge = 0
  for at in np.linspace(low, high, BUDGETS):
    there = [
      (float(np.interp(at, x, y)), n)
      for n, x, y in curves
      if x[0] <= at <= x[-1]
    ]
    if len({n for _, n in there}) < 3:
      continue
    best, size = min(there)
    sizes = [n for _, n in there]
    if size in (min(sizes), max(sizes)):
      edge += 1
      continue
    flops.append(math.exp(at))
    params.append(size)
    loss.append(best)
  if edge:
    notes.append(
      f"at {edge} of {BUDGETS} budgets the best size is the smallest or the "
      "largest of those that reach it: no curve brackets it, not counted"
    )
  return np.array(flops), np.array(params), np.array(loss), notes


def widest(points: Points, found: Sequence[Optimum]) -> float:
  """The widest factor between a size and the optimum of its budget."""
  return max(
    (max(o.high / o.params, o.params / o.low) for o in found if o.good),
    default=1.0,
  )
