"""Curves of runs, drawn from their rows: one colour for each run or arm."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from aigc_jax.errors import BadConfig
from aigc_jax.scaling import pictures
from aigc_jax.scaling.arms import Arm
from aigc_jax.scaling.comparable import unlike_losses
from aigc_jax.scaling.runs import Record

# What is measured in the same unit shares an axis.
QUANTITIES = {
  "nll": "loss",
  "gzip_bits_per_byte": "bits per byte",
  "xz_bits_per_byte": "bits per byte",
}
MOST_QUANTITIES = 2  # one axis on the left, one on the right
INSETS = {  # left, bottom, width, height, in parts of the axes
  "upper right": (0.46, 0.52, 0.52, 0.44),
  "lower right": (0.46, 0.08, 0.52, 0.44),
  "upper left": (0.08, 0.52, 0.44, 0.44),
}


@dataclasses.dataclass(frozen=True)
class Line:
  """What is drawn in one colour: a run, or the runs of an arm.

  label: in the legend. runs: one, or one for each seed. arm: the number of the
  arm of which the one run is a seed, whose colour it shares with the others,
  and which of them it is; None has a colour of its own.
  """

  label: str
  runs: tuple[Record, ...]
  arm: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Style:
  """How a picture is drawn.

  against: the x axis. log: of "x", "y". smooth: rows of a running mean, of an
  even number one more, as many to both sides; 1 is none. zoom: the part
  of the x axis at its end that an inset shows, 0 is none.
  """

  against: str = "tokens"
  title: str = ""
  log: tuple[str, ...] = ()
  smooth: int = 1
  zoom: float = 0.0

  def __post_init__(self):
    if self.smooth < 1:
      raise BadConfig(f"--smooth={self.smooth}: expected 1 row or more")
    if not 0 <= self.zoom < 1:
      raise BadConfig(
        f"--zoom={self.zoom}: expected a part of the axis, such as 0.2"
      )
    for axis in self.log:
      if axis not in ("x", "y"):
        raise BadConfig(f"--log={axis}: expected x, y or x,y")


def single(runs: Sequence[Record]) -> list[Line]:
  """Each run as a line of its own."""
  return [Line(r.name, (r,)) for r in runs]


def seeds(arms: Sequence[Arm]) -> list[Line]:
  """Each run as a line of its own, in the colour of its arm."""
  found = []
  for i, arm in enumerate(arms):
    for k, r in enumerate(arm.runs):
      said = r.name.startswith(arm.name)
      label = r.name if said else f"{arm.name}, {r.name}"
      found.append(Line(label, (r,), (i, k)))
  return found


def draw(
  lines: Sequence[Line],
  out: str | Path,
  *,
  metrics: Sequence[str],
  style: Style = Style(),  # noqa: B008 (frozen)
) -> Path:
  """Writes the picture of `picture` to `out`; returns its path."""
  return pictures.save(picture(lines, metrics=metrics, style=style), out)


def picture(lines: Sequence[Line], *, metrics: Sequence[str], style: Style):
  """One colour for each line, one kind of line for each metric; a figure.

  Metrics of another quantity than the first have the axis on the right. An
  arm of several seeds is its mean, in a band of one standard deviation. Where
  a value is not finite the line has a gap. Raises BadConfig where a run lacks
  a metric, for more than two quantities, or for nothing that a logarithm
  could show.
  """
  if not all(metrics) or not metrics:
    raise BadConfig(
      f"--metrics={','.join(metrics)}: expected names of metrics, such as "
      "train/loss"
    )
  quantities = list(dict.fromkeys(map(quantity, metrics)))
  if len(quantities) > MOST_QUANTITIES:
    raise BadConfig(
      f"--metrics has {len(quantities)} quantities "
      f"({', '.join(quantities)}): at most {MOST_QUANTITIES} fit one picture, "
      "one on each side"
    )
  read = [
    (i, metric, line, averaged(line, metric, style))
    for metric in metrics
    for i, line in enumerate(lines)
  ]
  pyplot = pictures.plots()
  figure, left = pyplot.subplots(figsize=(7, 4.3), layout="constrained")
  sides = {quantities[0]: left}
  if len(quantities) == MOST_QUANTITIES:
    sides[quantities[1]] = left.twinx()
    sides[quantities[1]].grid(False)
  else:
    left.spines.right.set_visible(False)
  _set_axes(sides, read, style)
  handles, labels = [], []
  for i, metric, line, curve in read:
    axes, look = sides[quantity(metric)], _look(i, lines, metric, metrics)
    handle = _plot(axes, curve, look, raw=style.smooth > 1)
    handles.append(handle)
    labels.append(_label(line, metric, lines, metrics))
  for axes in sides.values():
    if "y" in style.log:
      pictures.plain_numbers(axes.yaxis)
  if style.zoom:
    _inset(left, sides, read, lines, metrics, style)
  title = style.title or _title(lines, metrics)
  left.set_title(title, loc="left")
  if len(labels) > 1:
    pictures.legend_beside(figure, handles, labels)
  return figure


def quantity(metric: str) -> str:
  """What is measured: the last part of the metric's name."""
  last = metric.rpartition("/")[2]
  return QUANTITIES.get(last, last.replace("_", " "))


@dataclasses.dataclass(frozen=True)
class Curve:
  """x, and over the runs of a line the mean and standard deviation of y.

  raw: (x, y) of each run before smoothing.
  """

  x: np.ndarray
  mean: np.ndarray
  sd: np.ndarray | None
  raw: tuple
  smoothed: bool


def averaged(line: Line, metric: str, style: Style) -> Curve:
  """The curve of a line; seeds are averaged at the x that all of them have."""
  raw = tuple(r.series(metric, style.against) for r in line.runs)
  smooth = style.smooth if metric.startswith("train/") else 1
  found = [(x, running_mean(y, smooth)) for x, y in raw]
  if len(found) == 1:
    return Curve(*found[0], None, raw, smooth > 1)
  if style.against == "seconds":
    # No two runs log at the same second.
    last = min(x[-1] for x, _ in found)
    first = max(x[0] for x, _ in found)
    grid = np.linspace(first, last, max(len(x) for x, _ in found))
    if last <= first:
      raise BadConfig(
        f"the runs of {line.label} share no time at which {metric} is known: "
        "--by=run draws each by itself"
      )
    y = np.stack([np.interp(grid, x, y) for x, y in found])
  else:
    shared = set(found[0][0]).intersection(*(set(x) for x, _ in found[1:]))
    if not shared:
      raise BadConfig(
        f"the runs of {line.label} share no {style.against} at which {metric} "
        "is known: --by=run draws each by itself"
      )
    grid = np.array(sorted(shared))
    y = np.stack([_at(grid, x, y) for x, y in found])
  return Curve(grid, y.mean(0), y.std(0, ddof=1), raw, smooth > 1)


def _at(grid: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """y at the points of the grid, all of which are in x."""
  where = {value: i for i, value in enumerate(x)}
  return y[[where[value] for value in grid]]


def _odd(rows: int) -> int:
  """How many rows a running mean of `rows` is of: one, and those beside it."""
  return rows // 2 * 2 + 1


def running_mean(y: np.ndarray, rows: int) -> np.ndarray:
  """The mean of `rows` values around each, of fewer towards both ends.

  Of an even number it is of one more: as many before as after.

  What is not finite stays so and is left out of its neighbours' means.
  """
  if rows <= 1:
    return y
  known = np.isfinite(y)
  total = np.concatenate([[0.0], np.cumsum(np.where(known, y, 0.0))])
  count = np.concatenate([[0], np.cumsum(known)])
  at = np.arange(len(y))
  # As far to both sides as the nearer end allows: no lag, and the ends move
  # nothing.
  reach = np.minimum(rows // 2, np.minimum(at, len(y) - 1 - at))
  low, high = at - reach, at + reach + 1
  mean = (total[high] - total[low]) / np.maximum(count[high] - count[low], 1)
  return np.where(known, mean, np.nan)


def _set_axes(sides: dict, read: Sequence, style: Style) -> None:
  left = next(iter(sides.values()))
  left.set_xlabel(pictures.AXIS_LABELS[style.against])
  smoothed = {quantity(m) for _, m, _, curve in read if curve.smoothed}
  plain = {quantity(m) for _, m, _, curve in read if not curve.smoothed}
  runs = [r for _, _, line, _ in read for r in line.runs]
  for name, axes in sides.items():
    which = "of training a " * (name in plain)  # what is held out is as it is
    more = f" ({which}running mean of {_odd(style.smooth)} rows)"
    own = {metric for _, metric, *_ in read if quantity(metric) == name}
    unlike = unlike_losses(runs, sorted(own))
    # A title of one's own stands where the metric's name would.
    label = own.pop() if style.title and len(own) == 1 else name
    apart = " (of each run's own objective)" * bool(unlike)
    axes.set_ylabel(label + apart + more * (name in smoothed))
  for i, scale in (("x", "set_xscale"), ("y", "set_yscale")):
    if i not in style.log:
      continue
    for _, metric, line, curve in read:
      values = curve.x if i == "x" else curve.mean
      if not (values > 0).any():
        what = style.against if i == "x" else metric
        raise BadConfig(
          f"--log={i}: {what} of {line.label} is nowhere above 0, and a "
          "logarithm shows nothing else"
        )
    for axes in sides.values():
      getattr(axes, scale)("log")
  pictures.format_axis(left.xaxis, style.against, log="x" in style.log)


def _look(i: int, lines: Sequence, metric: str, metrics: Sequence) -> dict:
  """Colour by line; dashes by metric, or by line where colours are many."""
  held_out = metric.startswith("eval/")
  if len(metrics) > 1:
    linestyle = pictures.DASHES[metrics.index(metric) % len(pictures.DASHES)]
  else:
    linestyle = pictures.dash(i, len(lines))
  places = [line.arm for line in lines]
  color = pictures.colours(len(lines))[i]
  # Dashes tell seeds apart, where they do not tell metrics.
  if None not in places and len(metrics) == 1:
    arm, seed = places[i]
    color = pictures.colours(1 + max(a for a, _ in places))[arm]
    linestyle = pictures.DASHES[seed % len(pictures.DASHES)]
  return dict(
    color=color,
    linestyle=linestyle,
    marker="o" if held_out else None,
    markersize=3.5,
    linewidth=1.6 if held_out else 1.2,
  )


def _plot(axes, curve: Curve, look: dict, raw: bool = False, band: bool = True):
  """The line, its band, what was smoothed; a cross where a run broke off.

  A curve of one row is a dot: a line of one point would not be seen.
  """
  if raw and curve.smoothed:
    for x, y in curve.raw:
      axes.plot(x, y, color=look["color"], alpha=0.18, linewidth=0.7)
  if curve.sd is not None and band:
    axes.fill_between(
      curve.x, curve.mean - curve.sd, curve.mean + curve.sd,
      color=look["color"], alpha=0.2, linewidth=0,
    )  # fmt: skip
  known = np.flatnonzero(np.isfinite(curve.mean))
  if len(known) == 1:
    look = look | dict(marker="o", markersize=4)
  (handle,) = axes.plot(curve.x, curve.mean, **look)
  if len(known) and known[-1] < len(curve.mean) - 1:
    at = known[-1]
    axes.plot(
      curve.x[at], curve.mean[at], marker="x", color=look["color"],
      markersize=8, markeredgewidth=2,
    )  # fmt: skip
  return handle


def _label(line: Line, metric: str, lines: Sequence, metrics: Sequence) -> str:
  if len(metrics) == 1:
    label = line.label
  elif len(lines) == 1:
    label = metric
  else:
    label = f"{line.label}, {metric}"
  seeds = len(line.runs)
  return label if seeds == 1 else f"{label} (mean and sd of {seeds} seeds)"


def _title(lines: Sequence[Line], metrics: Sequence[str]) -> str:
  what = (
    " and ".join(metrics) if len(metrics) < 4 else f"{len(metrics)} metrics"
  )
  return f"{what} of {lines[0].label}" if len(lines) == 1 else what


def _inset(left, sides, read, lines, metrics, style: Style) -> None:
  """The end of the curves, larger, in a corner where none of them is."""
  shown = [r for r in read if sides[quantity(r[1])] is left]
  low, high = left.get_xlim()
  if "x" in style.log:
    start = high * (low / high) ** style.zoom
  else:
    start = high - style.zoom * (high - low)
  tails, ends = [], []
  for *_, curve in shown:
    known = curve.x[np.isfinite(curve.mean)]
    ends += [known[-2]] if len(known) > 1 else []
    at = (curve.x >= start) & np.isfinite(curve.mean)
    if at.sum() < 2:
      continue
    sd = 0.0 if curve.sd is None else np.nan_to_num(curve.sd[at])
    tails += [curve.mean[at] - sd, curve.mean[at] + sd]
  if not tails:
    raise BadConfig(
      f"--zoom={style.zoom}: no curve has two points in that part of the axis"
      + _wider(ends, low, high, "x" in style.log)
    )
  bounds = _free_corner(left, shown)
  inset = left.inset_axes(bounds)
  for i, metric, _, curve in shown:
    _plot(inset, curve, _look(i, lines, metric, metrics))
  inset.set_xlim(start, max(c.x[-1] for *_, c in shown))
  bottom, top = min(t.min() for t in tails), max(t.max() for t in tails)
  room = 0.08 * (top - bottom) or 0.01 * abs(top) or 1.0
  inset.set_ylim(bottom - room, top + room)
  if "x" in style.log:
    inset.set_xscale("log")
  pictures.format_axis(inset.xaxis, style.against, log="x" in style.log)
  inset.xaxis.set_major_locator(_few())
  inset.tick_params(labelsize=7.5)
  inset.spines.right.set_visible(False)
  inset.patch.set_alpha(0.9)


def _wider(ends: Sequence, low: float, high: float, log: bool) -> str:
  """How large a part of an axis has two points; ends: the last but one."""
  if not ends:
    return ": leave it out"
  start = max(ends)
  part = (high - start) / (high - low)
  if log:
    part = math.log(high / start) / math.log(high / low)
  part = math.ceil(100 * part) / 100
  return f": --zoom={part:g} has" if part < 1 else ": leave it out"


def _few():
  from matplotlib import ticker

  return ticker.MaxNLocator(4)


def _free_corner(axes, shown: Sequence) -> tuple:
  """The bounds of an inset; the axes are made higher where no corner is free.

  A curve is taken through all points between its rows, so that a long straight
  piece does not run through the inset unseen.
  """
  points = []
  for *_, curve in shown:
    known = np.isfinite(curve.mean)
    if not known.any():
      continue
    xy = np.column_stack([curve.x[known], curve.mean[known]])
    inside = axes.transAxes.inverted().transform(axes.transData.transform(xy))
    order = np.argsort(inside[:, 0], kind="stable")
    x, y = inside[order].T
    steps = np.linspace(x[0], x[-1], 400)
    points.append(np.column_stack([steps, np.interp(steps, x, y)]))
  cloud = np.concatenate(points)

  def covers(bounds) -> bool:
    x, y, w, h = bounds
    margin = 0.07  # the numbers on the inset's own axes
    inside = (
      (cloud[:, 0] >= x - margin)
      & (cloud[:, 0] <= x + w)
      & (cloud[:, 1] >= y - margin)
      & (cloud[:, 1] <= y + h)
    )
    return bool(inside.any())

  for bounds in INSETS.values():
    if not covers(bounds):
      return bounds
  bottom, top = axes.get_ylim()
  if axes.get_yscale() == "log":
    axes.set_ylim(bottom, top * (top / bottom))
  else:
    axes.set_ylim(bottom, top + 1.1 * (top - bottom))
  return INSETS["upper right"]
