"""A coordinate check as a table of slopes, as JSON, and as a picture."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from aigc_jax.scaling import pictures
from aigc_jax.scaling.coordinates import FLAT, Line, Series, class_of

# Lines of one class look alike: colour by class, dashes and marks within it.
CLASSES = ("input", "hidden", "output", "vector", "")
NAMES = {"": "several"}
MARKS = "osD^vP*X"


def as_text(found: Series) -> str:
  """Slopes by activation with their standard errors, and the steepest."""
  last = found.steps
  rows = [
    (
      name, NAMES.get(class_of(name), class_of(name)),
      _slope(found.line("size", name, 0)),
      _slope(found.line("size", name, last)),
      _slope(found.line("moved", name, 1)),
      _slope(found.line("moved", name, last)),
      *(f"{found.moved[name][last][i]:.2e}" for i in (0, -1)),
      _mark(found.steep.get(name)),
    )
    for name in sorted(found.size, key=_order)
  ]  # fmt: skip
  first, end = found.places[0], found.places[-1]
  header = (
    "activation", "class", "size at start", f"size, step {last}",
    "moved, step 1", f"moved, step {last}", f"at {first}", f"at {end}", "",
  )  # fmt: skip
  name, steepest = found.worst
  sizes = ", ".join(map(str, found.places))
  lines = [
    f"{found.parametrization}: slopes against {found.axis} ({sizes})", "",
    *_table(header, rows), "",
    f"steepest of what {last} steps move: {steepest:+.2f} ({name})"
    + ("" if abs(steepest) > FLAT else f"; all within {FLAT} of flat"),
  ]  # fmt: skip
  return "\n".join(lines)


def as_json(found: Series) -> dict:
  """All that was measured, and the lines through it."""
  return {
    "parametrization": found.parametrization,
    "axis": found.axis,
    "places": list(found.places),
    "activations": {
      name: {
        "class": class_of(name),
        **{
          what: {
            "mean": [
              [float(x) if math.isfinite(x) else None for x in row]
              for row in getattr(found, what)[name]
            ],
            "lines": [
              None if line is None else line._asdict()
              for line in (
                found.line(what, name, step) for step in range(found.steps + 1)
              )
            ],
          }
          for what in ("size", "moved")
        },
      }
      for name in sorted(found.size, key=_order)
    },
  }


def _order(name: str) -> tuple[int, str]:
  return CLASSES.index(class_of(name)), name


def _slope(line: Line | None) -> str:
  if line is None:
    return "-"
  return f"{line.slope:+.2f}" + (
    "" if line.stderr is None else f" ± {line.stderr:.2f}"
  )


def _mark(value: float | None) -> str:
  if value is None:
    return ""
  return "more" if value > 0 else "less"


def _table(header: tuple, rows: list[tuple]) -> list[str]:
  last = len(header) - 1
  widths = [max(len(row[i]) for row in (header, *rows)) for i in range(last)]
  return [
    "  ".join(
      cell.ljust(w) if i < 2 else cell.rjust(w)
      for i, (cell, w) in enumerate(zip(row, [*widths, 0], strict=True))
    ).rstrip()
    for row in (header, *rows)
  ]


def draw(found: Sequence[Series], out: str | Path) -> Path:
  """A row for each series: sizes before and after, and what steps moved.

  Points are what was measured, lines the powers that are nearest to them.
  """
  pyplot = pictures.plots()
  figure, grid = pyplot.subplots(
    len(found), 3, figsize=(10.5, 3.0 * len(found)), squeeze=False,
    layout="constrained",
  )  # fmt: skip
  names = sorted({name for one in found for name in one.size}, key=_order)
  handles = {}
  for one, row in zip(found, grid, strict=True):
    views = (
      ("size", 0, "mean |x| at the start"),
      ("size", one.steps, f"mean |x|, step {one.steps}"),
      ("moved", one.steps, f"mean |x - start|, step {one.steps}"),
    )
    for (what, step, title), axes in zip(views, row, strict=True):
      for name in names:
        _one(axes, one, what, name, step, _style(name, names), handles)
      _dress(axes, one, title)
  # What is 0 at the start was drawn last.
  order = [label for name in names if (label := _label(name)) in handles]
  pictures.legend_beside(figure, [handles[label] for label in order], order)
  return pictures.save(figure, out)


def _style(name: str, names: Sequence[str]) -> dict:
  own = class_of(name)
  i = [n for n in names if class_of(n) == own].index(name)
  return dict(
    color=pictures.PALETTE[CLASSES.index(own)],
    linestyle=pictures.DASHES[i % len(pictures.DASHES)],
    marker=MARKS[i % len(MARKS)],
  )


def _one(axes, one: Series, what, name, step, style, handles) -> None:
  """One activation: its points, and the line through them."""
  values = getattr(one, what).get(name)
  line = None if values is None else one.line(what, name, step)
  if line is None:
    return
  axes.plot(
    one.places, values[step], linestyle="none", markersize=3.5,
    marker=style["marker"], color=style["color"], alpha=0.8,
  )  # fmt: skip
  ends = np.asarray([one.places[0], one.places[-1]], float)
  axes.plot(
    ends, np.exp(line.offset) * ends**line.slope, linewidth=1.2,
    linestyle=style["linestyle"], color=style["color"],
  )  # fmt: skip
  (handles[_label(name)],) = axes.plot(
    [], [], linewidth=1.2, markersize=4, **style
  )


def _label(name: str) -> str:
  own = class_of(name)
  return f"{name} ({NAMES.get(own, own)})"


def _dress(axes, one: Series, title: str) -> None:
  from matplotlib import ticker

  axes.set_xscale("log", base=2)
  axes.set_yscale("log")
  axes.set_xticks(one.places, [str(n) for n in one.places])
  axes.xaxis.set_minor_locator(ticker.NullLocator())
  axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda v, _: f"{v:g}"))
  axes.yaxis.set_minor_formatter(ticker.NullFormatter())
  axes.set_xlabel(one.axis)
  axes.set_title(f"{one.parametrization}: {title}", loc="left", fontsize=9.5)
