"""Approaches 1 and 2 as the same kind of result as a parametric fit."""

import math
from collections.abc import Sequence

import numpy as np

from aigc_jax.errors import BadConfig
from aigc_jax.scaling import isoflop
from aigc_jax.scaling.fits import (
  INTERVAL,
  NARROW,
  points_json,
  round_budgets,
)
from aigc_jax.scaling.points import Points
from aigc_jax.terminal import counted

FORM = "N_opt = N_coefficient C^a, D_opt = D_coefficient C^b"


def by_parabolas(
  points: Points,
  *,
  resamples: int = 400,
  holdout: str = "",
  budgets: Sequence[float] = (),
  near: float | None = None,
) -> dict:
  """Approach 2: a parabola for each budget, then powers of the budget.

  near: sizes further than this factor from the best of their budget are not
  in its parabola.

  Where the points have optimal_params, those are the optima. Budgets whose
  parabola is not convex, or whose vertex no points bracket, are shown and do
  not count. Raises BadConfig where fewer than two budgets do.
  """
  if "optimal_params" in points.columns:
    if near is not None:
      raise BadConfig(
        f"--near={near:g} is of sizes around an optimum, and the optima are "
        "given (optimal_params): leave it out"
      )
    return _given(points, holdout, budgets)
  if near is not None:
    points = isoflop.near_best(points, near)
  found = isoflop.optima(points)
  good = [o for o in found if o.good]
  if len(good) < 2:
    why = "; ".join(f"{o.flops:.3g}: {o.why}" for o in found if not o.good)
    raise BadConfig(
      f"{points.source}: {counted(len(good), 'budget')} with an optimum, and a "
      f"power of the budget takes two{f' ({why})' * bool(why)}"
    )
  draws = []
  for one in isoflop.resampled(points, resamples):
    kept = [o for o in one if o.good]
    if len({o.flops for o in kept}) >= 2:
      draws.append(_lines(kept))
  warnings = list(points.notes)
  warnings += [
    f"budget {o.flops:.3g} does not count: {o.why}" for o in found if not o.good
  ]
  warnings += [
    f"budget {o.flops:.3g} has 3 points: its parabola meets them all, and its "
    "optimum has no error of its own"
    for o in good
    if o.points == 3
  ]
  wide = isoflop.widest(points, found)
  if wide > NARROW:
    warnings.append(
      f"sizes reach {wide:.0f} times the optimum: parabolas over so wide a "
      "grid are biased even without noise, at far budgets by some per cent of "
      "D (4 times: -1.3 %, 8: -2.9 %, 16: -5.1 %); --near=4 leaves the far "
      "sizes out, --law=chinchilla has no such bias"
    )
  result = _result(
    "isoflop", "arXiv:2203.15556, approach 2", points, good, draws, warnings,
    budgets, holdout,
  )  # fmt: skip
  result["optima"] = [_optimum_json(o) for o in found]
  return result


def by_envelope(
  points: Points,
  *,
  resamples: int = 400,
  holdout: str = "",
  budgets: Sequence[float] = (),
) -> dict:
  """Approach 1: the least loss of all training curves, then powers.

  Raises BadConfig where the envelope has no stretch that curves bracket.
  """
  flops, params, loss, notes = isoflop.envelope(points)
  if len(flops) < 2 or len(np.unique(params)) < 2:
    raise BadConfig(
      f"{points.source}: the envelope is of "
      f"{counted(len(np.unique(params)), 'size')} that others bracket, and a "
      "power takes two: more sizes, or --law=chinchilla"
    )
  runs = points.columns.get("run")
  keys = points.columns["params"].astype(str) if runs is None else runs
  names = np.array(list(dict.fromkeys(keys)))
  draw = np.random.default_rng(0)
  draws = []
  for _ in range(min(resamples, 100)):  # each is an envelope of 1,500 budgets
    chosen = set(draw.choice(names, len(names)))
    some = points.some(np.array([k in chosen for k in keys]))
    try:
      f, n, _, _ = isoflop.envelope(some)
      draws.append(_of(f, n, f / (6 * n)))
    except BadConfig:
      continue
  warnings = [
    *points.notes,
    *notes,
    "a point in the middle of a schedule has a higher loss than a run that "
    "ends there (--law=isoflop or chinchilla of whole runs has no such bias)",
  ]
  stand_ins = [
    isoflop.Optimum(f, n, f / (6 * n), y, 0, True, "", None, n, n)
    for f, n, y in zip(flops, params, loss, strict=True)
  ]
  result = _result(
    "envelope", "arXiv:2203.15556, approach 1", points, stand_ins, draws,
    warnings, budgets, "0",
  )  # fmt: skip
  result["optima"] = [
    {"flops": float(f), "params": float(n), "tokens": float(f / (6 * n)),
     "loss": float(y), "good": True, "why": ""}
    for f, n, y in zip(flops, params, loss, strict=True)
  ]  # fmt: skip
  # Neighbours on an envelope are one curve, not so many measurements.
  if not draws:
    for c in result["constants"].values():
      c.update(stderr=math.nan, low=math.nan, high=math.nan, identified=False)
  return result


def _given(points: Points, holdout, budgets) -> dict:
  """The second stage alone, weighted where deviations are known."""
  c = points.need(("flops", "optimal_params"), "isoflop")
  stderr = points.columns.get("stderr")
  weights = "weighted by 1/stderr^2" if stderr is not None else "unweighted"
  optima = [
    isoflop.Optimum(f, n, f / (6 * n), math.nan, 0, True, "", None, n, n)
    for f, n in zip(*c.values(), strict=True)
  ]
  warnings = [*points.notes, f"the optima are given; least squares {weights}"]
  result = _result(
    "isoflop", "arXiv:2203.15556, approach 2", points, optima, [], warnings,
    budgets, holdout, stderr,
  )  # fmt: skip
  result["optima"] = [_optimum_json(o) for o in optima]
  return result


def _of(flops, params, tokens, stderr=None) -> tuple:
  return (
    isoflop.line(flops, params, stderr),
    isoflop.line(flops, tokens, stderr),
  )


def _lines(optima: Sequence[isoflop.Optimum], stderr=None) -> tuple:
  columns = [np.array([getattr(o, k) for o in optima])
             for k in ("flops", "params", "tokens")]  # fmt: skip
  return _of(*columns, stderr)


def _result(
  law, source, points, good, draws, warnings, budgets, holdout, stderr=None
) -> dict:
  n, d = _lines(good, stderr)
  constants = {}
  for line, exponent, coefficient, drawn in (
    (n, "a", "N_coefficient", [x for x, _ in draws]),
    (d, "b", "D_coefficient", [x for _, x in draws]),
  ):
    constants[exponent] = _constant(
      line.exponent, line.stderr, [x.exponent for x in drawn], line.points
    )
    constants[coefficient] = _constant(
      math.exp(line.log_coefficient), line.log_stderr,
      [math.exp(x.log_coefficient) for x in drawn], line.points, log=True,
    )  # fmt: skip
  if not 0 < n.exponent < 1:
    warnings.append(f"a = {n.exponent:.3g} lies outside 0 to 1: no optimum")
  result = {
    "law": law,
    "form": FORM,
    "source": source,
    "constants": constants,
    "not_identified": {
      name: "its interval is open"
      for name, c in constants.items()
      if not c["identified"]
    },
    "objective": {"kind": "least squares of ln N", "value": 1 - n.r2},
    "r2": {"params": n.r2, "tokens": d.r2},
    "starts": {"tried": 1, "agreed": 1},
    "points": points_json(points),
    "replicates": [
      [x.exponent, x.log_coefficient, y.exponent, y.log_coefficient]
      for x, y in draws
    ],
    "resamples": len(draws),
    "outliers": [],
    "warnings": warnings,
  }
  result["holdout"] = _holdout(good, holdout, stderr)
  result["predictions"] = predictions(result, budgets)
  return result


def _constant(value, stderr, drawn, count, log=False) -> dict:
  if len(drawn) > 1:
    low, high = np.quantile(drawn, INTERVAL)
    stderr = float(np.std(drawn, ddof=1))
  else:
    reach = isoflop.t_reach(count - 2) * stderr
    low, high = value - reach, value + reach
    if log:
      with np.errstate(all="ignore"):
        low, high = value * np.exp(-reach), value * np.exp(reach)
      stderr *= value
  ends = [float(low), float(high)]
  known = all(map(math.isfinite, ends))
  bounded = known and (not log or 0 < ends[1] < 1e9 * max(ends[0], 1e-300))
  return {
    "value": float(value), "stderr": float(stderr), "low": ends[0],
    "high": ends[1], "fixed": False, "identified": bounded,
  }  # fmt: skip


def _holdout(good, holdout: str, stderr) -> dict | None:
  """The largest budget's optimum, predicted from the others."""
  if holdout and not (holdout.isascii() and holdout.isdecimal()):
    raise BadConfig(
      f"--holdout={holdout}: expected a number of budgets (the largest)"
    )
  count = int(holdout) if holdout else 1
  if not count:
    return None
  order = sorted(range(len(good)), key=lambda i: good[i].flops)
  if len(good) - count < 2:
    if holdout:
      raise BadConfig(
        f"--holdout={holdout} of {len(good)} budgets leaves fewer than two"
      )
    return {"points": [], "skipped": "two budgets are left by none"}
  rest, out = order[:-count], order[-count:]
  some = None if stderr is None else stderr[rest]
  n, _ = _lines([good[i] for i in rest], some)
  predicted = [float(n.at(good[i].flops)) for i in out]
  errors = [p / good[i].params - 1 for p, i in zip(predicted, out, strict=True)]
  return {
    "points": [f"budget {good[i].flops:.4g}" for i in out],
    "largest_by": "flops",
    "predicted": predicted,
    "params": [float(good[i].params) for i in out],
    "relative_errors": errors,
    "mean_absolute_relative_error": float(np.mean(np.abs(errors))),
  }


def predictions(result: dict, budgets: Sequence[float]) -> list[dict]:
  """The best params and tokens of each budget, from the result alone."""
  c = result["constants"]
  flops = result["points"]["columns"]["flops"]
  if not budgets:
    budgets = round_budgets(max(flops))
  drawn = np.array(result["replicates"]).reshape(-1, 4)
  found = []
  for budget in budgets:
    one: dict = {"flops": budget}
    for name, exponent, coefficient, k in (
      ("params", "a", "N_coefficient", 0),
      ("tokens", "b", "D_coefficient", 2),
    ):
      value = c[coefficient]["value"] * budget ** c[exponent]["value"]
      low = high = math.nan
      if len(drawn) > 1:
        many = np.exp(drawn[:, k + 1] + drawn[:, k] * math.log(budget))
        low, high = np.quantile(many, INTERVAL)
      one[name] = {"value": value, "low": float(low), "high": float(high)}
    inside = min(flops) * (1 - 1e-9) <= budget <= max(flops) * (1 + 1e-9)
    one["outside"] = [] if inside else ["flops"]
    found.append(one)
  return found


def _optimum_json(o: isoflop.Optimum) -> dict:
  return {
    "flops": float(o.flops), "params": float(o.params),
    "tokens": float(o.tokens), "loss": float(o.loss), "points": o.points,
    "good": bool(o.good), "why": o.why,
    "parabola": None if o.parabola is None else [float(x) for x in o.parabola],
  }  # fmt: skip
