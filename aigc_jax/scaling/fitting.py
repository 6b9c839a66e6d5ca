"""Fits of laws: Huber's loss of ln L, every start followed to its end.

All starts move together, as one array, by damped Gauss-Newton steps on
reweighted residuals; the best is finished by BFGS. Everything is float64, and
sums are never means: a mean makes optimizers stop where they began.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from scipy import optimize, special

from aigc_jax.scaling.laws import Columns, Free

DELTA = 1e-3  # of ln L: where Huber's loss turns from a square to a line
CHUNK = 300  # starts in one array, small enough for a cache
SCALE = 1e3  # of the objective in BFGS, whose tolerances are absolute
AGREE = 1e-4  # relative: starts that end so near the best objective agree
CLOSE = 0.02  # and whose exponents are so near


@dataclasses.dataclass(frozen=True)
class Objective:
  """What is minimised over z. kind: "huber" of ln L, or "squares" of L."""

  free: Free
  x: Columns
  loss: np.ndarray
  kind: str = "huber"
  delta: float = DELTA

  def residuals(self, z: np.ndarray) -> tuple:
    """((S, n), (S, n, P))."""
    value, jacobian = self.free(z, self.x)
    if self.kind == "squares":
      with np.errstate(over="ignore", invalid="ignore"):
        loss = np.exp(value)
        return loss - self.loss, loss[..., None] * jacobian
    return value - np.log(self.loss), jacobian

  def cost(self, r: np.ndarray) -> np.ndarray:
    """Of each residual."""
    if self.kind == "squares":
      return r * r / 2
    return special.huber(self.delta, r)

  def weight(self, r: np.ndarray) -> np.ndarray:
    """cost' / r: what makes a square of each residual."""
    if self.kind == "squares":
      return np.ones_like(r)
    size = np.abs(r)
    return np.where(
      size <= self.delta, 1.0, self.delta / np.maximum(size, 1e-300)
    )

  def total(self, z: np.ndarray) -> float:
    """The sum over all points, at one z (P,)."""
    return float(self.cost(self.residuals(z[None])[0]).sum())


def descend(
  objective: Objective,
  z: np.ndarray,
  *,
  counts: np.ndarray | None = None,
  rounds: int = 300,
  tolerance: float = 1e-10,
) -> tuple[np.ndarray, np.ndarray]:
  """(z, objective) that each start comes down to; z (S, P).

  counts (S, n): how often each point counts, as a bootstrap draws them. A
  start that leaves what float64 holds ends with an objective of infinity.
  """
  parts = [
    _descend(
      objective,
      z[i : i + CHUNK],
      None if counts is None else counts[i : i + CHUNK],
      rounds,
      tolerance,
    )
    for i in range(0, len(z), CHUNK)
  ]
  return tuple(np.concatenate(p) for p in zip(*parts, strict=True))


def _descend(objective, z, counts, rounds, tolerance):
  z = z.copy()
  many, size = z.shape
  best = np.full(many, np.inf)
  damping = np.full(many, 1e-2)
  idle = np.zeros(many, int)
  with np.errstate(all="ignore"):
    r, jacobian = objective.residuals(z)
    best = _sum(objective, r, counts)
    live = np.flatnonzero(np.isfinite(best))
    r, jacobian = r[live], jacobian[live]
    for _ in range(rounds):
      if not len(live):
        break
      c = None if counts is None else counts[live]
      step = _step(objective, r, jacobian, c, damping[live])
      # No further in one go than a few units of a logarithm.
      step *= np.minimum(1, 5 / np.abs(step).max(1, keepdims=True))
      step[~np.isfinite(step).all(1)] = 0
      new_r, new_jacobian = objective.residuals(z[live] + step)
      found = _sum(objective, new_r, c)
      better = found < best[live]
      gain = np.where(better, (best[live] - found) / best[live], 0.0)
      rows = live[better]
      z[rows] += step[better]
      best[rows] = found[better]
      r[better], jacobian[better] = new_r[better], new_jacobian[better]
      damping[live] = np.where(
        better, np.maximum(damping[live] / 3, 1e-14), damping[live] * 4
      )
      idle[live] = np.where(better & (gain > tolerance), 0, idle[live] + 1)
      going = (idle[live] < 8) & (damping[live] < 1e12) & (best[live] > 0)
      live, r, jacobian = live[going], r[going], jacobian[going]
  return z, np.where(np.isfinite(best), best, np.inf)


def _sum(objective, r, counts):
  cost = objective.cost(r)
  total = (cost if counts is None else cost * counts).sum(-1)
  return np.where(np.isfinite(total), total, np.inf)


def _step(objective, r, jacobian, counts, damping):
  w = objective.weight(r)
  if counts is not None:
    w = w * counts
  weighted = jacobian * w[..., None]
  curve = np.swapaxes(weighted, -1, -2) @ jacobian
  slope = (weighted * r[..., None]).sum(-2)
  diagonal = np.einsum("spp->sp", curve)
  size = curve.shape[-1]
  lift = damping[:, None] * diagonal + 1e-14 * diagonal.max(1, keepdims=True)
  curve = curve + (lift + 1e-300)[..., None] * np.eye(size)
  bad = ~np.isfinite(curve).all((1, 2)) | ~np.isfinite(slope).all(1)
  curve[bad] = np.eye(size)
  slope = np.where(bad[:, None], 0.0, slope)
  return -np.linalg.solve(curve, slope[..., None])[..., 0]


@dataclasses.dataclass(frozen=True)
class Minimum:
  """The best z and its objective, and how the starts fared.

  agreed: how many came to this minimum by themselves. rivals: other minima
  that are as good but for `slack`, as z.
  """

  z: np.ndarray
  objective: float
  starts: int
  agreed: int
  rivals: np.ndarray


def minimise(objective: Objective, slack: float) -> Minimum:
  """From every start of the law. slack: see Minimum."""
  starts = objective.free.starts()
  ends, costs = descend(objective, starts)
  best = polish(objective, ends[np.argsort(costs)[:5]])
  cost = objective.total(best)
  # A fit without any error ends at rounding, where ratios mean nothing.
  floor = 1e-18 * len(objective.loss)
  watched = exponent_columns(objective.free)
  near = np.abs(ends - best)[:, watched].max(1, initial=0.0) <= CLOSE
  agreed = near & (costs <= cost * (1 + AGREE) + floor)
  as_good = ~near & (costs <= cost * (1 + slack) + floor)
  return Minimum(best, cost, len(starts), int(agreed.sum()), ends[as_good])


def exponent_columns(free: Free) -> list[int]:
  """Where in z the exponents are; all of it where none is free."""
  found = [i for i, n in enumerate(free.names) if n in free.law.exponents]
  return found or list(range(len(free.names)))


def polish(objective: Objective, starts: np.ndarray) -> np.ndarray:
  """The best end of BFGS from a few starts."""

  def value(z):
    r, jacobian = objective.residuals(z[None])
    slope = (objective.weight(r)[0] * r[0]) @ jacobian[0]
    return SCALE * objective.cost(r).sum(), SCALE * slope

  found = []
  with np.errstate(all="ignore"):
    for z in starts:
      if not math.isfinite(value(z)[0]):
        continue
      for _ in range(3):  # anew: its idea of the curvature may be stale
        done = optimize.minimize(
          value, z, jac=True, method="BFGS",
          options={"gtol": 1e-10, "maxiter": 2000},
        )  # fmt: skip
        if done.fun < value(z)[0]:
          z = done.x
      found.append((value(z)[0], tuple(z)))
  return np.array(min(found)[1])


def bootstrap(
  objective: Objective, z: np.ndarray, resamples: int, seed: int = 0
) -> np.ndarray:
  """(resamples, P): the fit of points drawn with replacement, from z on."""
  if not resamples:
    return np.empty((0, len(z)))
  n = len(objective.loss)
  draw = np.random.default_rng(seed)
  counts = draw.multinomial(n, np.full(n, 1 / n), size=resamples).astype(float)
  ends, costs = descend(
    objective, np.tile(z, (resamples, 1)), counts=counts, tolerance=1e-9
  )
  return ends[np.isfinite(costs)]


def standard_errors(objective: Objective, z: np.ndarray) -> tuple:
  """(errors of z (P,), condition of the curvature, its weakest direction).

  The sandwich of the curvature and the scatter of the slopes. Huber's loss
  curves only where residuals are within delta; where too few are, the weights
  stand in, and the errors are too small. The condition is of the curvature with
  a diagonal of ones: where it is beyond what float64 resolves, the data say
  nothing of the direction.
  """
  r, jacobian = (part[0] for part in objective.residuals(z[None]))
  w = objective.weight(r)
  inside = (w == 1).astype(float)
  bends = inside if inside.sum() >= 3 * len(z) else w
  curve = (jacobian * bends[:, None]).T @ jacobian
  size = np.sqrt(np.diag(curve))
  if not (size > 0).all():
    return np.full(len(z), np.nan), np.inf, (size == 0).astype(float)
  scaled = curve / np.outer(size, size)
  values, vectors = np.linalg.eigh(scaled)
  condition = values[-1] / max(values[0], 1e-300)
  inverse = np.linalg.pinv(scaled) / np.outer(size, size)
  slopes = jacobian * (w * r)[:, None]
  n, p = jacobian.shape
  cover = inverse @ (slopes.T @ slopes) @ inverse * n / max(n - p, 1)
  return np.sqrt(np.diag(cover)), condition, np.abs(vectors[:, 0])


def profile(
  objective: Objective, z: np.ndarray, name: str, values: np.ndarray
) -> np.ndarray:
  """The least objective with one constant of theta held at each value."""
  column = objective.free.names.index(name)
  rest = [k for k in range(len(z)) if k != column]

  def held(part: np.ndarray) -> np.ndarray:
    whole = np.empty((len(part), len(z)))
    whole[:, rest] = part
    whole[:, column] = values[: len(part)]
    return whole

  inner = _Held(objective, held, rest)
  ends, costs = _descend(
    inner, np.tile(z[rest], (len(values), 1)), None, 300, 1e-8
  )
  return costs


@dataclasses.dataclass(frozen=True)
class _Held:
  """An objective of which one entry of z does not move."""

  objective: Objective
  held: Callable
  rest: list

  def residuals(self, part):
    r, jacobian = self.objective.residuals(self.held(part))
    return r, jacobian[..., self.rest]

  def cost(self, r):
    return self.objective.cost(r)

  def weight(self, r):
    return self.objective.weight(r)
