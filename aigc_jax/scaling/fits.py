"""A law fitted to points: everything a reader needs, as one JSON object.

Text, pictures and predictions are made from that object alone.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import optimize

from aigc_jax.errors import BadConfig
from aigc_jax.scaling import fitting, isoflop, laws
from aigc_jax.scaling.points import COMPARE, Points
from aigc_jax.terminal import counted

INTERVAL = (0.025, 0.975)
OPEN = 1e6  # ends of an interval so far apart, as a ratio, bound nothing
FLAT = 1e12  # condition from which float64 resolves no direction
FAR = 6.0  # robust deviations from which a point is an outlier
KEPT = 400  # bootstrap fits that are stored, for predictions to come
NARROW = 4.0  # a grid of sizes this wide biases parabolas by about 1 %


@np.errstate(all="ignore")  # what overflows is told as not identified
def parametric(
  points: Points,
  free: laws.Free,
  *,
  kind: str = "huber",
  delta: float = fitting.DELTA,
  resamples: int = KEPT,
  holdout: str = "",
  budgets: Sequence[float] = (),
  unique: float | None = None,
) -> dict:
  """The fit of a law with a formula; see predictions for `budgets`.

  Raises BadConfig for too few points, or a size that is the same in all.
  """
  law = free.law
  x = _usable(points, free)
  out = _check_holdout(points, free, holdout)
  objective = fitting.Objective(free, x, points.columns["loss"], kind, delta)
  n, p = len(points), len(free.names)
  slack = 3.84 / max(n - p, 1)
  best = fitting.minimise(objective, slack)
  theta = free.full(best.z)
  samples = fitting.bootstrap(objective, best.z, resamples)
  errors, condition, weak = fitting.standard_errors(objective, best.z)
  profiles = _profiles(objective, best, slack)
  doubts = _doubts(free, best, samples, condition, weak, profiles)
  value, _ = law.value_and_jacobian(theta[None], x)
  residual = np.log(points.columns["loss"]) - value[0]
  result = {
    "law": law.name,
    "form": law.form,
    "source": law.source,
    "constants": _constants(free, best.z, samples, errors, doubts, n - p),
    "not_identified": doubts,
    "objective": {
      "kind": kind,
      "delta": delta if kind == "huber" else None,
      "value": best.objective,
    },
    "starts": {"tried": best.starts, "agreed": best.agreed},
    "condition": condition,
    "profiles": profiles,
    "points": points_json(points),
    "predicted": np.exp(value[0]).tolist(),
    "residuals": residual.tolist(),
    "outliers": _outliers(points, residual),
    "fixed": [
      n for n in law.names if not free.spread[law.names.index(n)].any()
    ],
    "replicates": free.full(samples[:KEPT]).tolist(),
    "resamples": len(samples),
    "warnings": [],
  }
  result["holdout"] = _holdout(points, free, kind, delta, best, holdout, out)
  result["warnings"] += _warnings(result, best, law, theta)
  result["predictions"] = predictions(result, law, budgets, unique)
  derived = _derived(law, theta, free.full(samples))
  if derived:
    result["derived"] = derived
  return result


def _usable(points: Points, free: laws.Free) -> dict:
  law = free.law
  columns = points.need(law.columns, law.name)
  x = {k: v for k, v in columns.items() if k != "loss"}
  distinct = len(set(zip(*x.values(), strict=True)))
  least = len(free.names) + 1
  if distinct < least:
    raise BadConfig(
      f"{points.source}: {distinct} different points are too few for the "
      f"{len(free.names)} free constants of {law.name} "
      f"({', '.join(free.names)}): it takes {least} or more, or "
      "--fix=NAME=VALUE"
    )
  for name in ("params", "tokens", "flops"):
    if name in x and len(np.unique(x[name])) < 2:
      way = {"params": "tokens", "tokens": "params"}.get(name, "params")
      raise BadConfig(
        f"{points.source}: {name} is {x[name][0]:g} in every point, so nothing "
        f"can be said of how loss depends on it (--law=power --of={way} fits "
        "the other alone)"
      )
  return x


def _constants(free, z, samples, errors, doubts: Mapping, df: int) -> dict:
  """Each with its interval: of the bootstrap, else by t of `df` of freedom."""
  law = free.law
  theta = free.full(z)
  values = law.constants(theta)
  drawn = law.constants(free.full(samples)) if len(samples) > 1 else None
  # The error of exp(t) is exp(t) times that of t.
  with np.errstate(invalid="ignore"):  # none of one's own, and unknown ones
    moved = np.abs(free.spread) @ np.nan_to_num(errors, nan=math.inf)
  found = {}
  for k, name in enumerate(law.names):
    value = float(values[name])
    fixed = not free.spread[k].any()
    if fixed:
      low = high = value
      stderr = 0.0
    elif drawn is not None:
      low, high = np.quantile(drawn[name], INTERVAL)
      stderr = float(np.std(drawn[name], ddof=1))
    else:
      stderr = float(moved[k] * (value if name in law.logs else 1.0))
      reach = isoflop.t_reach(df) * moved[k]
      low, high = (
        (value * math.exp(-min(reach, 700)), value * math.exp(min(reach, 700)))
        if name in law.logs
        else (value - reach, value + reach)
      )
    found[name] = {
      "value": value,
      "stderr": stderr,
      "low": float(low),
      "high": float(high),
      "fixed": fixed,
      "identified": name not in doubts,
    }
  return found


def _doubts(free, best, samples, condition, weak, profiles) -> dict[str, str]:
  """{constant: why the data do not say what it is}."""
  law, doubts = free.law, {}
  if condition > FLAT:
    for name, part in zip(free.names, weak, strict=True):
      if part > 0.1:
        doubts[name] = "the points do not tell it apart from others"
  if len(samples) > 1:
    drawn = law.constants(free.full(samples))
    for name in free.names:
      low, high = np.quantile(drawn[name], INTERVAL)
      if name in law.logs and not (0 < low and high / low < OPEN):
        doubts.setdefault(name, "its bootstrap interval is open")
      if name in law.exponents and (low <= 0 or high > 10 * max(low, 1e-9)):
        doubts.setdefault(name, "its bootstrap interval is open")
  for name, found in profiles.items():
    if found["open"]:
      doubts.setdefault(name, "its profile is open: other values fit as well")
  if len(best.rivals):
    theta = law.constants(free.full(best.rivals[0]))
    where = ", ".join(f"{n} {float(theta[n]):.3g}" for n in law.exponents)
    for name in law.exponents:
      if name in free.names:
        doubts.setdefault(name, f"a second minimum is as good ({where})")
  return doubts


def _profiles(objective, best, slack: float) -> dict:
  """Of each exponent: the least objective with it held at other values."""
  free, found = objective.free, {}
  if len(free.names) < 2:
    return found
  for name in free.law.exponents:
    if name not in free.names:
      continue
    at = float(best.z[free.names.index(name)])
    if not 0 < at < 4:
      continue
    # Dense around the best, and out to a quarter and four times of it.
    values = at * np.exp(1.4 * np.linspace(-1, 1, 41) ** 3)
    costs = fitting.profile(objective, best.z, name, values)
    good = costs <= best.objective * (1 + slack) + 1e-18 * len(objective.loss)
    middle = len(values) // 2
    good[middle] = True
    bad = np.flatnonzero(~good)
    first = bad[bad < middle].max(initial=-1) + 1
    last = bad[bad > middle].min(initial=len(values)) - 1
    found[name] = {
      "values": values.tolist(),
      "objective": costs.tolist(),
      "low": float(values[max(first - 1, 0)]),
      "high": float(values[min(last + 1, len(values) - 1)]),
      "open": bool(first == 0 or last == len(values) - 1),
    }
  return found


def _outliers(points: Points, residual: np.ndarray) -> list[dict]:
  away = residual - np.median(residual)
  spread = 1.4826 * float(np.median(np.abs(away)))
  if not spread > 1e-12:
    return []
  return [
    {"point": points.names[i], "deviations": float(away[i] / spread)}
    for i in np.argsort(-np.abs(away))
    if abs(away[i]) > FAR * spread
  ]


def held_out(points: Points, holdout: str, column: str) -> np.ndarray:
  """Which points are: "" the largest tenth, "5", "0.2", "flops>1e21"."""
  n = len(points)
  found = re.fullmatch(r"(\w+)(!=|<=|>=|=|<|>)(.+)", holdout)
  if found:
    name, sign, text = found.groups()
    try:
      value = float(text)
    except ValueError:
      value = math.nan
    if name not in points.columns or not math.isfinite(value):
      raise BadConfig(
        f"--holdout={holdout}: expected one of {', '.join(points.columns)} and "
        "a number"
      )
    return COMPARE[sign](points.columns[name], value)
  try:
    count = float(holdout) if holdout else 0.1
  except ValueError:
    count = -1.0
  if not 0 <= count < math.inf or (count >= 1 and count != int(count)):
    raise BadConfig(
      f"--holdout={holdout}: expected a number of points, a part such as 0.2, "
      "or a condition such as flops>1e21"
    )
  size = int(count) if count >= 1 else round(count * n)
  if not holdout:
    size = max(1, size)
  keep = np.zeros(n, bool)
  if size:
    keep[np.argsort(points.columns[column], kind="stable")[-size:]] = True
  return keep


def _holdout_column(points: Points, free: laws.Free) -> str:
  """The column by which the largest points are held out."""
  return "flops" if "flops" in points.columns else free.law.columns[0]


def _check_holdout(points: Points, free: laws.Free, holdout: str) -> np.ndarray:
  """Which points are held out. Raises BadConfig where too few are left."""
  out = held_out(points, holdout, _holdout_column(points, free))
  if holdout and out.any():
    try:
      _usable(points.some(~out), free)
    except BadConfig as refusal:
      raise BadConfig(
        f"--holdout={holdout} holds out {out.sum()} of {len(points)} points: "
        f"{refusal}"
      ) from None
  return out


def _holdout(
  points, free, kind, delta, best, holdout: str, out: np.ndarray
) -> dict | None:
  """The error of predicting points that a second fit did not see."""
  law, column = free.law, _holdout_column(points, free)
  if not out.any():
    return None
  rest = points.some(~out)
  try:
    x = _usable(rest, free)
  except BadConfig as refusal:
    return {"points": [], "skipped": str(refusal)}
  objective = fitting.Objective(free, x, rest.columns["loss"], kind, delta)
  starts = free.starts()
  some = np.concatenate([best.z[None], starts[:: max(1, len(starts) // 60)]])
  ends, costs = fitting.descend(objective, some)
  z = fitting.polish(objective, ends[np.argsort(costs)[:3]])
  theta = free.full(z)
  seen = {c: points.columns[c][out] for c in law.columns if c != "loss"}
  predicted = np.exp(law.value_and_jacobian(theta[None], seen)[0][0])
  actual = points.columns["loss"][out]
  relative = predicted / actual - 1
  names = [n for n, o in zip(points.names, out, strict=True) if o]
  return {
    "points": names,
    "largest_by": column if not re.search("[<>=]", holdout) else holdout,
    "predicted": predicted.tolist(),
    "loss": actual.tolist(),
    "relative_errors": relative.tolist(),
    "mean_absolute_relative_error": float(np.abs(relative).mean()),
    "constants_without_them": {
      k: float(v) for k, v in law.constants(theta).items()
    },
  }


def _warnings(result: dict, best, law, theta) -> list[str]:
  found = list(result["points"]["notes"])
  if best.agreed < 0.1 * best.starts:
    found.append(
      f"the starts disagree: {best.agreed} of {best.starts} came to the best "
      "minimum"
    )
  for k, name in enumerate(law.names):
    if name in law.exponents and not 0 < theta[k] < 2:
      found.append(f"{name} = {theta[k]:.3g} lies outside 0 to 2: no such law")
  if result["outliers"]:
    listed = ", ".join(
      f"{o['point']} ({o['deviations']:+.0f} deviations)"
      for o in result["outliers"][:6]
    )
    found.append(
      f"{counted(len(result['outliers']), 'point')} far from the fit, counted "
      f"all the same: {listed}"
    )
  return found


def _derived(law, theta, samples) -> dict:
  """a = beta / (alpha + beta), b = 1 - a: N_opt is as C^a, D_opt as C^b."""
  if law.exponents != ("alpha", "beta"):
    return {}
  k, j = law.names.index("alpha"), law.names.index("beta")

  def share(t, up):
    with np.errstate(all="ignore"):
      return t[..., up] / (t[..., k] + t[..., j])

  found = {}
  for name, up in (("a", j), ("b", k)):
    drawn = share(samples, up) if len(samples) > 1 else None
    low, high = (
      np.quantile(drawn, INTERVAL) if drawn is not None else (math.nan,) * 2
    )
    found[name] = {
      "value": float(share(theta, up)),
      "stderr": float(np.std(drawn, ddof=1)) if drawn is not None else math.nan,
      "low": float(low),
      "high": float(high),
    }
  return found


def predictions(
  result: Mapping, law: laws.Law, budgets: Sequence[float], unique: float | None
) -> list[dict]:
  """For each budget the best params and tokens, and the loss, with intervals.

  From the result alone. Where it has no params beside tokens: only the loss,
  of a power of FLOPs. `outside` says where no point is.
  """
  theta = law.theta({k: c["value"] for k, c in result["constants"].items()})
  samples = np.array(result["replicates"]).reshape(-1, len(law.names))
  columns = result["points"]["columns"]
  if "params" in law.columns and "tokens" in law.columns:
    best = optimum_of(law, unique)
  elif law.columns[0] == "flops":
    best = None
  else:
    return []
  if "unique_tokens" in law.columns and unique is None:
    return []
  if not budgets and "flops" in columns:
    budgets = round_budgets(max(columns["flops"]))
  found = []
  for budget in budgets:
    one: dict = {"flops": budget}
    many = np.concatenate([theta[None], samples])
    if best is None:
      x = {"flops": np.array([budget])}
      values = {"loss": np.exp(law.log_loss(many, x))[:, 0]}
    else:
      n, d, loss = best(many, budget)
      values = {"params": n, "tokens": d, "loss": loss}
    for name, drawn in values.items():
      with np.errstate(all="ignore"):
        ends = (
          np.nanquantile(drawn[1:], INTERVAL)
          if len(drawn) > 2
          else [math.nan] * 2
        )
      one[name] = {
        "value": float(drawn[0]),
        "low": float(ends[0]),
        "high": float(ends[1]),
      }
    one["outside"] = [
      name
      for name in ("params", "tokens", "flops")
      if name in columns
      and (name in values or name == "flops")
      and not _within(
        values[name][0] if name in values else budget, columns[name]
      )
    ]
    found.append(one)
  return found


def round_budgets(largest: float) -> list[float]:
  """The largest budget there is, and 10 and 100 times it, in three digits.

  The first is never above it: it would count as one that no point reaches.
  """
  one, *more = (float(f"{largest * k:.3g}") for k in (1, 10, 100))
  return [min(one, largest), *more]


def _within(value: float, column: Sequence[float]) -> bool:
  return min(column) * (1 - 1e-9) <= value <= max(column) * (1 + 1e-9)


def optimum_of(law: laws.Law, unique: float | None) -> Callable:
  """f(theta (S, P), C) -> best (params, tokens, loss), each (S,)."""

  def chinchilla(theta, budget):
    c = law.constants(theta)
    with np.errstate(all="ignore"):
      both = c["alpha"] + c["beta"]
      log_g = (
        np.log(c["alpha"] / c["beta"]) + theta[:, 0] - theta[:, 1]
      ) / both
      n = np.exp(log_g + c["beta"] / both * math.log(budget / 6))
      d = budget / 6 / n
      loss = np.array(
        [
          float(np.exp(law.log_loss(t[None], {"params": a, "tokens": b}))[0, 0])
          for t, a, b in zip(theta, n[:, None], d[:, None], strict=True)
        ]
      )
    return n, d, loss

  def searched(theta, budget):
    found = []
    for t in theta:

      def loss(log_n, t=t):
        n = np.atleast_1d(np.exp(log_n))
        x = {"params": n, "tokens": budget / 6 / n}
        if unique is not None:
          x["unique_tokens"] = np.full_like(n, unique)
        return law.log_loss(t[None], x)[0]

      middle = math.log(budget / 6) / 2
      grid = np.linspace(middle - 12, middle + 12, 481)
      i = int(np.argmin(loss(grid)))
      i = min(max(i, 1), len(grid) - 2)
      done = optimize.minimize_scalar(
        lambda v: float(loss(v)[0]), bounds=(grid[i - 1], grid[i + 1]),
        method="bounded", options={"xatol": 1e-9},
      )  # fmt: skip
      found.append((math.exp(done.x), math.exp(done.fun)))
    n, loss_ = np.array(found).T
    return n, budget / 6 / n, loss_

  return chinchilla if law.name == "chinchilla" else searched


def points_json(points: Points) -> dict:
  return {
    "source": points.source,
    "sha256": points.sha256,
    "names": list(points.names),
    "columns": {k: v.tolist() for k, v in points.columns.items()},
    "notes": list(points.notes),
  }
