"""The best value of a number in each arm: of a learning rate, a batch size.

  python -m experiments.optimum RESULTS [--along=optim.learning_rate]
    [--metric=eval/heldout/loss] [--baseline=ARM] [--out=optimum.png]

RESULTS: the folder of a sweep, or the results.jsonl that `report rows` made of
it. In each arm, which is named without the number, every seed has a curve of
the metric, the less the better, over the values that were tried. Its optimum is
the lowest point of the parabola through the best value and its two neighbours,
in octaves; arms are told apart by the optima of their seeds. Seeds that were
run at some of the values only have none. A run that diverged counts as one that
stayed where it began. Sensitivity is that of
arXiv:2309.14322: how much worse than its best a curve is on average.
"""

import dataclasses
import math
import re
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from aigc_jax.errors import BadConfig
from aigc_jax.planning.summary import table
from aigc_jax.scaling import pictures, statistics
from aigc_jax.scaling.arms import find_arm
from aigc_jax.scaling.runs import DIVERGED, FINISHED, Record
from experiments import told

HEADER = (
  "arm", "best", "95 % interval", "shift in octaves", "95 % interval", "there",
  "at the baseline's best",
)  # fmt: skip
WIDTHS = ("arm", "sensitivity", "difference", "95 % interval", "p")
TUNED = (
  "arm", "chosen", "n", "others' mean", "95 % interval", "difference",
  "95 % interval", "p",
)  # fmt: skip
Curve = Mapping[float, float]  # metric by the number that varies


@dataclasses.dataclass(frozen=True)
class Optimum:
  """Where a curve is lowest: the value, the metric there.

  edge: whether it is at the end of what was tried, and may lie beyond.
  """

  value: float
  metric: float
  edge: bool


@dataclasses.dataclass(frozen=True)
class Arm:
  """A curve for each seed, and the optimum of each. name: in reports."""

  name: str
  curves: Mapping[int, Curve]

  @property
  def whole(self) -> dict[int, Curve]:
    """The curves of the seeds that were run at all values, if any was."""
    values = set().union(*self.curves.values())
    found = {s: c for s, c in self.curves.items() if set(c) == values}
    return found or dict(self.curves)

  @property
  def optima(self) -> dict[int, Optimum]:
    return {seed: optimum(curve) for seed, curve in self.whole.items()}

  @property
  def octaves(self) -> dict[int, float]:
    """Base-2 logarithms of the best values."""
    return {seed: math.log2(o.value) for seed, o in self.optima.items()}

  def mean(self) -> dict[float, tuple[float, float]]:
    """Mean and standard deviation over the seeds at each value."""
    curves = self.whole.values()
    values = sorted(set().union(*curves))
    found = {}
    for value in values:
      y = [c[value] for c in curves if value in c]
      found[value] = float(np.mean(y)), float(np.std(y, ddof=len(y) > 1))
    return found


def optimum(curve: Curve) -> Optimum:
  """The lowest point, between the values that were tried where it can be."""
  values = sorted(curve)
  i = min(range(len(values)), key=lambda i: curve[values[i]])
  best = values[i]
  if i in (0, len(values) - 1):
    return Optimum(best, curve[best], edge=True)
  x = [math.log2(v) for v in values[i - 1 : i + 2]]
  y = [curve[v] for v in values[i - 1 : i + 2]]
  a, b, c = np.polyfit(np.subtract(x, x[1]), y, 2)
  if a <= 0:  # three equal ones
    return Optimum(best, curve[best], edge=False)
  return Optimum(2 ** (x[1] - b / (2 * a)), float(c - b * b / (4 * a)), False)


def sensitivity(curve: Curve) -> float:
  """How much worse than at its best a curve is, over all values."""
  return float(np.mean(list(curve.values())) - min(curve.values()))


def arms_in(runs: Sequence[Record], along: str, metric: str) -> list[Arm]:
  """The arms of these runs. Raises BadConfig for a number no run sets."""
  last = along.rpartition(".")[2]
  found: dict[str, dict[int, dict[float, float]]] = {}
  for r in runs:
    if along not in r.values:
      raise BadConfig(f"{r.name} does not set {along}: name another --along")
    name = re.sub(rf"(^|, )({along}|{last})=[^,]*", "", r.arm) or "all"
    curve = found.setdefault(name, {}).setdefault(r.seed, {})
    value = float(r.values[along])
    if value in curve:
      raise BadConfig(f"{name} has {along}={value:g} twice with one seed")
    curve[value] = _outcome(r, metric)
  return [Arm(name, curves) for name, curves in found.items()]


def _outcome(r: Record, metric: str) -> float:
  """The metric at the end, no more than the loss of its first row."""
  if r.status not in (FINISHED, DIVERGED):
    raise BadConfig(
      f"{r.name} is {r.status}: finish the sweep, or leave it out"
    )
  start = float(r.series("train/loss", "step")[1][0])
  if r.status == DIVERGED and metric not in r.metrics:
    return start
  end = float(r.series(metric, "step")[1][-1])
  bounded = "loss" not in metric or end < start
  return end if math.isfinite(end) and bounded else start


def rows(arms: Sequence[Arm], baseline: Arm) -> list[tuple]:
  """The arms as rows of a table under HEADER."""
  mean = baseline.mean()
  theirs = min(mean, key=lambda value: mean[value][0])
  made = []
  for arm in arms:
    x = arm.octaves
    middle = statistics.summary(list(x.values()))
    shift, interval = "", ""
    if arm is not baseline:
      both = sorted(set(x) & set(baseline.octaves))
      of = statistics.paired(
        [x[s] for s in both], [baseline.octaves[s] for s in both]
      )
      shift, interval = f"{of.mean_diff:+.2f}", _interval(of.ci95, "{:+.2f}")
    low, high = middle.ci95_t or (math.nan, math.nan)
    curves = arm.whole.values()
    cost = [c[theirs] - min(c.values()) for c in curves if theirs in c]
    made.append(
      (
        arm.name,
        _best(arm, 2**middle.mean),
        _interval((2**low, 2**high), "{:.3g}"),
        shift,
        interval,
        f"{np.mean([o.metric for o in arm.optima.values()]):.3f}",
        f"+{np.mean(cost):.3f}" if cost else "-",
      )
    )
  return made


def widths(arms: Sequence[Arm], baseline: Arm) -> list[tuple]:
  """How wide the range of good values is, under WIDTHS."""
  found = {
    arm.name: {seed: sensitivity(c) for seed, c in arm.whole.items()}
    for arm in arms
  }
  return [
    (
      arm.name,
      f"{np.mean(list(found[arm.name].values())):.3f}",
      *_difference(found[arm.name], found[baseline.name]),
    )
    for arm in arms
  ]


def _difference(ours: Mapping[int, float], theirs: Mapping[int, float]):
  """(difference by seed, its interval, p) as text; of itself nothing."""
  both = sorted(set(ours) & set(theirs))
  if ours is theirs or len(both) < 2:
    return "", "", ""
  pair = statistics.paired([ours[s] for s in both], [theirs[s] for s in both])
  p = pair.p_two_sided
  return (
    f"{pair.mean_diff:+.3f}",
    _interval(pair.ci95, "{:+.3f}"),
    "-" if p is None else f"{p:.3f}",
  )


def tuned(arms: Sequence[Arm], baseline: Arm) -> list[tuple]:
  """Each arm at the value that is best with its first seed, with the others.

  So no run counts that the value was chosen by. Rows under TUNED.
  """
  found = {arm.name: _others(arm) for arm in arms}
  made = []
  for arm in arms:
    value, losses = found[arm.name]
    of = statistics.summary(list(losses.values()))
    cells = _difference(losses, found[baseline.name][1])
    ends = _interval(of.ci95_t, "{:.3f}") if of.ci95_t else "-"
    made.append(
      (arm.name, f"{value:.3g}", str(of.n), f"{of.mean:.3f}", ends, *cells)
    )
  return made


def _others(arm: Arm) -> tuple[float, dict[int, float]]:
  """(the best value with the first seed, what the others have there)."""
  first, *others = sorted(arm.curves)
  if not others:
    raise BadConfig(f"{arm.name} has one seed: nothing is left to compare")
  value = min(arm.curves[first], key=lambda v: arm.curves[first][v])
  losses = {s: arm.curves[s][value] for s in others if value in arm.curves[s]}
  return value, losses


def _best(arm: Arm, value: float) -> str:
  edges = sum(o.edge for o in arm.optima.values())
  said = f" ({edges} of {len(arm.optima)} at an end)" * bool(edges)
  return f"{value:.3g}{said}"


def _interval(ends, form: str) -> str:
  return " to ".join(form.format(end) for end in ends)


def picture(arms: Sequence[Arm], along: str, metric: str):
  """The curves, and below them where the optima are; a figure."""
  pyplot = pictures.plots()
  figure, (above, below) = pyplot.subplots(
    2, 1, sharex=True, figsize=(7, 4.4 + 0.2 * len(arms)), layout="constrained",
    height_ratios=(3.2, 0.5 + 0.28 * len(arms)),
  )  # fmt: skip
  values = sorted(set().union(*(arm.mean() for arm in arms)))
  for axes in (above, below):
    axes.spines.right.set_visible(False)
  handles = []
  for i, (arm, colour) in enumerate(
    zip(arms, pictures.colours(len(arms)), strict=True)
  ):
    mean = arm.mean()
    x, y = list(mean), np.array([m for m, _ in mean.values()])
    sd = np.array([s for _, s in mean.values()])
    look = dict(color=colour, linestyle=pictures.DASHES[i % 4])
    above.fill_between(x, y - sd, y + sd, color=colour, alpha=0.15, lw=0)
    handles += above.plot(x, y, marker="osD^vPX"[i % 7], markersize=4.5, **look)
    _draw_optima(below, arm, -i, colour)
  above.set_title(f"{metric}: mean over seeds, one deviation", loc="left")
  above.set_ylabel(metric.rpartition("/")[2].replace("_", " "))
  lows = [min(m - s for m, s in arm.mean().values()) for arm in arms]
  highs = [max(m + s for m, s in arm.mean().values()) for arm in arms]
  span = min(max(highs) - min(lows), 6 * (max(lows) - min(lows) + 0.1))
  above.set_ylim(min(lows) - 0.06 * span, min(lows) + 1.06 * span)
  below.set_title("where each seed is best, mean and 95 % interval", loc="left")
  below.set_yticks([-i for i in range(len(arms))], [a.name for a in arms])
  below.set_ylim(-len(arms) + 0.4, 0.6)
  below.set_xscale("log", base=2)
  below.set_xlim(values[0] / 1.6, values[-1] * 1.6)
  below.set_xticks(values, [f"{v:.2g}" for v in values])
  below.minorticks_off()
  below.set_xlabel(along.rpartition(".")[2].replace("_", " "))
  pictures.legend_beside(figure, handles, [arm.name for arm in arms])
  return figure


def _draw_optima(axes, arm: Arm, y: float, colour) -> None:
  optima = list(arm.optima.values())
  for o in optima:
    axes.plot(
      o.value, y + 0.14, "o", color=colour, markersize=4.5, clip_on=False,
      markerfacecolor="white" if o.edge else colour,
    )  # fmt: skip
  of = statistics.summary([math.log2(o.value) for o in optima])
  if of.ci95_t:
    axes.plot([2**end for end in of.ci95_t], [y - 0.14] * 2, color=colour, lw=2)
  axes.plot(2**of.mean, y - 0.14, "|", color=colour, markersize=11, mew=2)


def tell(runs, given):
  """Prints the tables; what draws the picture."""
  arms = arms_in(runs, given.along, given.metric)
  baseline = find_arm(arms, given.baseline) if given.baseline else arms[0]
  print(table(HEADER, rows(arms, baseline)))
  print("\nat the value that is best with the first seed, with the others:")
  print(table(TUNED, tuned(arms, baseline)))
  print("\nhow much worse than its best a curve is on average:")
  print(table(WIDTHS, widths(arms, baseline)))
  return lambda: picture(arms, given.along, given.metric)


if __name__ == "__main__":
  flags = dict(
    along="optim.learning_rate", metric="eval/heldout/loss", baseline=""
  )
  sys.exit(told.main(__doc__, tell, **flags))
