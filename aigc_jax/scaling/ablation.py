"""An ablation: arms, their values at one place, each against a baseline."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from aigc_jax.errors import BadConfig
from aigc_jax.scaling import comparable, statistics
from aigc_jax.scaling.arms import Arm, baselines_of
from aigc_jax.scaling.runs import AXES, DIVERGED, FINISHED, Record
from aigc_jax.terminal import counted

# By which a place common to all runs is looked for, in this order.
PLACES = ("step", "tokens", "examples", "flops")
MOST = 1e70  # of a value: no loss is so large but of a run that diverged
NO_NUMBER = f"not a finite number there, below {MOST:g}"
FAR = 10.0  # deviations, by the median's, from which a seed is pointed at


@dataclasses.dataclass(frozen=True)
class Place:
  """Where runs are compared: the axis and a value on it."""

  axis: str
  value: float


@dataclasses.dataclass(frozen=True)
class Value:
  """The metric of one run. value: None where it does not count; why says so."""

  run: Record
  value: float | None
  interpolated: bool
  why: str


@dataclasses.dataclass(frozen=True)
class Equivalent:
  """Where on the axis the baseline's mean curve reaches an arm's mean.

  at: None where it does not, within what was run. difference: at - place.
  """

  at: float | None
  difference: float | None
  words: str


UNKNOWN = Equivalent(None, None, "unknown")


@dataclasses.dataclass(frozen=True)
class Versus:
  """An arm against the baseline.

  method: "paired", "Welch", or "none" where nothing can be said; why says why.
  p, holm, bh: of that method; the other's numbers stand beside.
  """

  method: str
  why: str
  difference: float | None
  interval: tuple[float, float] | None
  p: float | None
  effect: float | None
  detectable: float | None
  paired: statistics.Paired | None
  welch: statistics.Welch | None
  equivalence: statistics.Equivalence | None
  equivalent: Equivalent
  holm: float | None = None
  bh: float | None = None
  verdict: str = ""


@dataclasses.dataclass(frozen=True)
class Result:
  """One arm: its runs, what they amount to, how it compares.

  versus: None of an arm that others are held against.
  """

  arm: Arm
  values: tuple[Value, ...]
  summary: statistics.Summary | None
  versus: Versus | None


@dataclasses.dataclass(frozen=True)
class Ablation:
  """All arms at one place. notes: what a reader has to know of it.

  baseline: the arm that others are held against, or what several are called.
  """

  metric: str
  place: Place
  baseline: str
  results: tuple[Result, ...]
  notes: tuple[str, ...]

  @property
  def higher_is_better(self) -> bool | None:
    return comparable.higher_is_better(self.metric)


def ablation(
  arms: Sequence[Arm],
  *,
  metric: str,
  baseline: str = "",
  at: str = "",
  margin: float | None = None,
) -> Ablation:
  """The arms against `baseline`, which is the first where it is "".

  It may stand for several arms of a grid, see `arms.baselines_of`.
  at: "" for the end of the runs, an axis ("tokens") for the last place on it
  that all finished runs reach, or a place ("tokens:1e6"). margin: differences
  below it are as good as none (a test of equivalence). Raises BadConfig for
  runs that cannot be compared, an arm that is not there, two runs of one seed.
  """
  if margin is not None and not 0 < margin < math.inf:
    raise BadConfig(
      f"--margin={margin}: expected a difference above 0, such as 0.003"
    )
  bases = baselines_of(arms, baseline)
  runs = [r for arm in arms for r in arm.runs]
  _check_seeds(arms)
  measured = [r for r in runs if r.rows]
  if not measured:
    raise BadConfig("none of these runs has a row yet: nothing to compare")
  metric, notes = comparable.fair_metric(measured, metric)
  place, more = find_place(measured, metric, at)
  notes += more
  values = {
    arm.name: tuple(value_at(r, metric, place) for r in arm.runs)
    for arm in arms
  }
  results = []
  for arm in arms:
    base, versus = bases[arm.name], None
    if base is None:
      versus = _said(f"no arm of {baseline!r} has these values", UNKNOWN)
    elif arm is not base:
      versus = _versus(
        values[arm.name], values[base.name], metric, place, margin
      )
    found = [v.value for v in values[arm.name] if v.value is not None]
    summed = statistics.summary(found) if found else None
    results.append(Result(arm, values[arm.name], summed, versus))
  notes += _budgets(measured, place) + _notes(results, place, metric)
  results = _adjusted(results, metric, margin)
  name = baseline or arms[0].name
  return Ablation(metric, place, name, tuple(results), tuple(notes))


def _check_seeds(arms: Sequence[Arm]) -> None:
  for arm in arms:
    seen: dict[int, Record] = {}
    for r in arm.runs:
      if r.seed is None:
        continue
      if r.seed in seen:
        raise BadConfig(
          f"arm {arm.name!r} has seed {r.seed} twice, in {seen[r.seed].path} "
          f"and {r.path}: a run counts once. Leave one of them out, or name "
          "the keys that tell them apart with --by"
        )
      seen[r.seed] = r


def find_place(
  runs: Sequence[Record], metric: str, at: str
) -> tuple[Place, list[str]]:
  """Where these runs are compared, and what is to be said of it."""
  axis, _, value = at.replace("=", ":").partition(":")
  if axis and axis not in AXES:
    raise BadConfig(
      f"--at={at}: expected one of {', '.join(AXES)}, with a value or "
      "without, such as tokens:1e6"
    )
  if value:
    try:
      number = float(value)
    except ValueError:
      number = math.nan
    if not (math.isfinite(number) and number > 0):
      raise BadConfig(f"--at={at}: {value!r} is no number above 0")
    return Place(axis, number), []
  done = [r for r in runs if r.status == FINISHED]
  if not done:
    raise BadConfig(
      "no run is finished: name a place that they reached, such as "
      f"--at=step:{min(r.last_step for r in runs)}"
    )
  if axis:
    ends = _ends(done, metric, axis)
    place = Place(axis, min(ends))
    if max(ends) == min(ends):
      return place, []
    return place, [
      f"the runs end at different {axis} ({_plain(min(ends))} to "
      f"{_plain(max(ends))}): compared at {_plain(min(ends))}, which for the "
      "longer ones is in the middle of their schedule"
    ]
  for axis in PLACES:
    ends = _ends(done, metric, axis, strict=False)
    if ends and min(ends) == max(ends):
      return Place(axis, ends[0]), []
  ends = _ends(done, metric, "step")
  raise BadConfig(
    f"the runs end at different steps ({_plain(min(ends))} to "
    f"{_plain(max(ends))}), tokens and FLOPs: say where to compare them, such "
    f"as --at=tokens or --at=step:{_plain(min(ends))}"
  )


def _ends(runs, metric: str, axis: str, strict: bool = True) -> list[float]:
  """The last place at which each run measured the metric."""
  ends = []
  for r in runs:
    known = any(row.get(axis) is not None for row in r.rows)
    if not known and not strict:
      return []
    ends.append(float(r.series(metric, axis)[0].max()))
  return ends


def value_at(r: Record, metric: str, place: Place) -> Value:
  """The metric of a run at a place: a row's, else between two rows."""

  def no(why: str) -> Value:
    return Value(r, None, False, why)

  if not r.rows:
    return no(r.waits or "never came to a step")
  if r.status == DIVERGED:
    return no(f"diverged: its loss is no number, or grew (step {r.last_step})")
  if metric not in r.metrics:
    return no(f"{r.status}, without a {metric} (it is at step {r.last_step})")
  x, y = r.series(metric, place.axis)
  exact = np.flatnonzero(x == place.value)
  if len(exact):
    value = float(y[exact[-1]])
    return Value(r, value, False, "") if _counts(value) else no(NO_NUMBER)
  if not x.min() < place.value < x.max():
    first = place.value < x.min()
    what = "begins" if first else "ends"
    end = x.min() if first else x.max()
    return no(f"{r.status}: {metric} {what} at {place.axis} {_plain(end)}")
  order = np.argsort(x, kind="stable")
  value = float(np.interp(place.value, x[order], y[order]))
  return Value(r, value, True, "") if _counts(value) else no(NO_NUMBER)


def _counts(value: float) -> bool:
  """Whether a value can be averaged: the squares of larger ones overflow."""
  return abs(value) < MOST


def _versus(values, base_values, metric, place, margin) -> Versus:
  ours = [v for v in values if v.value is not None]
  theirs = [v for v in base_values if v.value is not None]
  equivalent = _equivalent(ours, theirs, metric, place)
  x, y = ([v.value for v in side] for side in (ours, theirs))
  if min(len(x), len(y)) < 2:
    counts = f"{len(x)} against {counted(len(y), 'run')}"
    why = f"{counts}: of one seed nothing can be said"
    if not (x and y):
      why = f"{counts} with a value: nothing can be said"
    return _said(why, equivalent)
  welch = statistics.welch(x, y)
  pairs, why = _pairs(ours, theirs)
  paired = None
  if len(pairs) >= 2:
    paired = statistics.paired(*zip(*pairs, strict=True))
  one = paired or welch
  used = paired is not None
  difference = paired.mean_diff if used else welch.diff
  se = paired.se_diff if used else welch.se
  same = None
  if margin is not None and one.df:
    same = statistics.equivalence(difference, se, one.df, -margin, margin)
  return Versus(
    method="paired" if used else "Welch",
    why=why,
    difference=difference,
    interval=one.ci95,
    p=one.p_two_sided,
    effect=paired.cohen_dz if used else welch.cohen_d_pooled,
    detectable=one.mde_abs_power80,
    paired=paired,
    welch=welch,
    equivalence=same,
    equivalent=equivalent,
  )


def _said(why: str, equivalent: Equivalent) -> Versus:
  """What is said where nothing can be."""
  return Versus(
    "none", why, *[None] * 5, None, None, None, equivalent, verdict=why
  )


def _pairs(ours, theirs) -> tuple[list[tuple[float, float]], str]:
  """(values of runs that share seed and data order, why these)."""
  by_seed = {v.run.seed: v for v in theirs if v.run.seed is not None}
  matched = [(v, by_seed[v.run.seed]) for v in ours if v.run.seed in by_seed]
  shared = [(v, w) for v, w in matched if comparable.shared_order(v.run, w.run)]
  if len(matched) < 2:
    return [], "their seeds are not the same"
  if len(shared) < len(matched):
    return [], "runs of one seed saw other batches"
  alone = len(ours) + len(theirs) - 2 * len(shared)
  why = f"{counted(len(shared), 'pair')} of one seed and data order"
  if alone:
    why += f"; left out, without a partner: {counted(alone, 'run')}"
  return [(v.value, w.value) for v, w in shared], why


def _equivalent(ours, theirs, metric: str, place: Place) -> Equivalent:
  """Where the baseline's mean curve first is as good as the arm's mean."""
  up = comparable.higher_is_better(metric)
  if not ours or not theirs or up is None:
    return UNKNOWN
  goal = float(np.mean([v.value for v in ours]))
  curves = [v.run.series(metric, place.axis) for v in theirs]
  grid = np.unique(np.concatenate([x for x, _ in curves]))
  grid = grid[
    (grid >= max(x.min() for x, _ in curves))
    & (grid <= min(x.max() for x, _ in curves))
  ]
  if len(grid) < 2:
    return Equivalent(None, None, "unknown: the baseline has no curve of it")
  y = np.mean([np.interp(grid, *_sorted(x, y)) for x, y in curves], axis=0)
  if up:
    y, goal = -y, -goal
  reached = np.flatnonzero(y <= goal)
  unit = "steps" if place.axis == "step" else place.axis
  if not len(reached):
    return Equivalent(
      None, None, f"not reached by {place.axis} {_plain(grid[-1])}"
    )
  i = int(reached[0])
  if i == 0:
    return Equivalent(
      None, None, f"reached before {place.axis} {_plain(grid[0])}"
    )
  at = float(np.interp(-goal, [-y[i - 1], -y[i]], [grid[i - 1], grid[i]]))
  difference = at - place.value
  word = "earlier" if difference < 0 else "later"
  return Equivalent(at, difference, f"{_plain(abs(difference))} {unit} {word}")


def _sorted(x, y):
  order = np.argsort(x, kind="stable")
  return x[order], y[order]


def _adjusted(results, metric: str, margin: float | None) -> list[Result]:
  """With the p of all arms together, and a verdict in words."""
  tested = [r for r in results if r.versus and r.versus.p is not None]
  p = [r.versus.p for r in tested]
  holm, bh = statistics.bonferroni_holm(p), statistics.benjamini_hochberg(p)
  by_arm = {
    r.arm.name: (a, b) for r, a, b in zip(tested, holm, bh, strict=True)
  }
  out = []
  for r in results:
    if r.versus is None or r.versus.method == "none":
      out.append(r)
      continue
    a, b = by_arm.get(r.arm.name, (None, None))
    versus = dataclasses.replace(r.versus, holm=a, bh=b)
    verdict = _verdict(versus, metric, margin)
    versus = dataclasses.replace(versus, verdict=verdict)
    out.append(dataclasses.replace(r, versus=versus))
  return out


def _verdict(v: Versus, metric: str, margin: float | None) -> str:
  if v.p is None:
    if v.difference == 0:
      return "equal in every run"
    return "the same difference in every pair: no spread, so no p"
  if v.equivalence and v.equivalence.p < statistics.ALPHA:
    return f"equivalent within {margin:g}"
  if v.holm < statistics.ALPHA:
    up = comparable.higher_is_better(metric)
    if up is None:
      return "more" if v.difference > 0 else "less"
    return "better" if (v.difference > 0) == up else "worse"
  return f"no difference found (one of {v.detectable:.2g} would be, 4 in 5)"


def _budgets(runs: Sequence[Record], place: Place) -> list[str]:
  """Where equal steps are not equal tokens."""
  if place.axis != "step":
    return []
  seen = {
    row["tokens"]
    for r in runs
    for row in r.rows
    if row.get("step") == place.value and row.get("tokens")
  }
  if len(seen) < 2:
    return []
  return [
    f"at step {_plain(place.value)} the runs have seen {_plain(min(seen))} to "
    f"{_plain(max(seen))} tokens (--at=tokens compares at equal ones)"
  ]


def _notes(results, place: Place, metric: str) -> list[str]:
  """What was left out, and what the numbers do not say by themselves."""
  notes = []
  for r in results:
    out = [v for v in r.values if v.value is None]
    for v in r.values:
      notes += [f"{v.run.name} ({r.arm.name}): {x}" for x in v.run.changed]
    for v in out:
      notes.append(f"{v.run.name} ({r.arm.name}) does not count: {v.why}")
    if out and r.summary:
      notes.append(
        f"{r.arm.name}: {len(out)} of {len(r.values)} runs do not count; "
        "where they failed because of the arm, its mean flatters it"
      )
    if any(v.interpolated for v in r.values):
      notes.append(
        f"{r.arm.name}: between two rows, as none is at {place.axis} "
        f"{_plain(place.value)}"
      )
    notes += _far(r) + _copies(r, metric)
    late = {v.run.planned for v in r.values if v.value is not None} - {None}
    if place.axis == "step" and any(n > place.value for n in late):
      notes.append(
        f"{r.arm.name}: measured at step {_plain(place.value)} of "
        f"{max(late):,}, before the end of its schedule"
      )
  return notes


def _far(r: Result) -> list[str]:
  """Seeds far from the others of their arm; they count all the same."""
  known = [v for v in r.values if v.value is not None]
  if len(known) < 4:
    return []
  x = np.array([v.value for v in known])
  away = np.abs(x - np.median(x))
  spread = 1.4826 * np.median(away)
  if not spread:
    return []
  return [
    f"{v.run.name} ({r.arm.name}) is {a / spread:.0f} deviations from the "
    "median of its arm; it counts: look at its curve"
    for v, a in zip(known, away, strict=True)
    if a > FAR * spread
  ]


def _copies(r: Result, metric: str) -> list[str]:
  seen: dict[bytes, str] = {}
  notes = []
  for v in r.values:
    if v.value is None or "train/loss" not in v.run.metrics:
      continue
    curve = v.run.series("train/loss", "step")[1].tobytes()
    if curve in seen:
      notes.append(
        f"{v.run.name} and {seen[curve]} ({r.arm.name}) have the same training "
        "curve to the last bit: is one a copy of the other?"
      )
    seen.setdefault(curve, v.run.name)
  return notes


def _plain(value: float) -> str:
  return f"{value:,.0f}" if value < 1e9 and value >= 10 else f"{value:.4g}"
