"""What all pictures share: colours, numbers on an axis, saving.

Colours are those of Okabe and Ito, which the colour-blind tell apart; beyond
eight, steps of viridis, which are also steps of grey in print, with dashes.
"""

import functools
import io
import math
from collections.abc import Callable
from pathlib import Path

from aigc_jax import files
from aigc_jax.errors import BadConfig

PALETTE = (
  "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000",
)  # fmt: skip
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)))
KINDS = (".png", ".pdf", ".svg")
DPI = 160
MOST_PIXELS = 2**16  # of a side, of what draws them
LOG_STYLE = dict(which="both", alpha=0.3, linewidth=0.5)

AXIS_LABELS = {
  "step": "steps",
  "tokens": "tokens",
  "examples": "examples",
  "flops": "FLOPs",
  "seconds": "time",
}


def plots():
  """matplotlib's pyplot, drawing to files; BadConfig where it is missing."""
  try:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
  except ImportError:
    raise BadConfig(
      "drawing needs matplotlib: pip install matplotlib"
    ) from None
  pyplot.rcParams.update(
    {
      "axes.spines.top": False,
      "axes.grid": True,
      "grid.alpha": 0.3,
      "grid.linewidth": 0.6,
      "axes.axisbelow": True,
      "font.size": 9.5,
      "axes.titlesize": 10.5,
      "svg.fonttype": "none",
      # Names of runs and arms are text: "$" begins no formula.
      "text.parse_math": False,
    }
  )
  return pyplot


def colours(count: int) -> list:
  """`count` colours, all different."""
  if count <= len(PALETTE):
    return list(PALETTE[:count])
  from matplotlib import colormaps

  return [colormaps["viridis"](0.92 * i / (count - 1)) for i in range(count)]


def dash(i: int, count: int):
  """The dashes of line `i` of `count`: plain where colours do it alone."""
  return DASHES[i % len(DASHES)] if count > len(PALETTE) else "-"


def short(value: float, _=None) -> str:
  """400000 as 400k; M, B and T beyond."""
  for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
    if abs(value) >= size:
      return f"{value / size:.4g}{letter}"
  return f"{value:.4g}"


def power(value: float, _=None) -> str:
  """2e15 as FLOPs are written; small ones as they are."""
  if value == 0 or abs(value) < 1e4:
    return f"{value:.4g}"
  exponent = math.floor(math.log10(abs(value)) + 1e-9)
  return f"{value / 10**exponent:.4g}e{exponent}"


def duration(value: float, _=None) -> str:
  """Seconds as s, min, h or d."""
  for size, unit in ((172_800, "d"), (7_200, "h"), (120, "min")):
    if abs(value) >= size:
      scale = {"d": 86_400, "h": 3_600, "min": 60}[unit]
      return f"{value / scale:.3g} {unit}"
  return f"{value:.3g} s" if value else "0"


FORMATS: dict[str, Callable] = {"flops": power, "seconds": duration}


def format_axis(axis, kind: str, *, log: bool = False) -> None:
  """Numbers as people say them on an axis of steps, tokens, FLOPs or time."""
  from matplotlib import ticker

  if log:
    axis.set_major_locator(_LogLocator())
    axis.set_minor_formatter(ticker.NullFormatter())
  elif kind == "seconds":
    # Steps of 60 rather than of 100: 5 min, 10 min.
    axis.set_major_locator(_TimeLocator())
  write = FORMATS.get(kind, short)
  axis.set_major_formatter(ticker.FuncFormatter(write))


def _LogLocator():
  from matplotlib import ticker

  class Decades(ticker.LogLocator):
    """1 and 3 of each decade, or of many decades as many as fit."""

    def tick_values(self, low, high):
      decades = math.log10(high / low) if 0 < low < high else 1.0
      few = (1.0, 3.0) if decades < 3 else (1.0,)
      locator = ticker.LogLocator(base=10, subs=few, numticks=9)
      return locator.tick_values(low, high)

  return Decades(base=10)


def _TimeLocator():
  from matplotlib import ticker

  class Times(ticker.MaxNLocator):
    """Whole minutes or hours where the axis is that long."""

    def tick_values(self, low, high):
      for unit, enough in ((86_400, 172_800), (3_600, 7_200), (60, 120)):
        if high - low >= enough:
          return unit * super().tick_values(low / unit, high / unit)
      return super().tick_values(low, high)

  return Times(nbins=8, steps=[1, 2, 3, 5, 6, 10])


def plain_numbers(axis) -> None:
  """3, 3.5, 4 on an axis of logarithms that spans less than a few decades."""
  from matplotlib import ticker

  axis.set_major_formatter(ticker.FuncFormatter(lambda v, _: f"{v:.4g}"))
  low, high = axis.get_view_interval()
  if not 0 < low < high:
    return
  decades = math.log10(high / low)
  if decades < 1.2:
    axis.set_major_locator(ticker.MaxNLocator(6))
    axis.set_minor_locator(ticker.NullLocator())
  else:
    axis.set_major_locator(ticker.LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axis.set_minor_formatter(ticker.NullFormatter())


def legend_beside(figure, handles: list, labels: list[str]) -> None:
  """A legend outside the axes: to the right, or below where it is long."""
  rows_beside = int(figure.get_figheight() / 0.21)
  # Long enough that a dashed line is seen to be one.
  look = dict(frameon=False, fontsize=8.5, handlelength=3.2)
  if len(labels) <= rows_beside and max(map(len, labels)) <= 44:
    legend = figure.legend(handles, labels, loc="outside right upper", **look)
    figure.set_figwidth(figure.get_figwidth() + _inches(legend))
    return
  columns = max(1, min(4, int(120 / (8 + max(map(len, labels))))))
  lines = math.ceil(len(labels) / columns)
  figure.set_figheight(figure.get_figheight() + 0.19 * lines)
  legend = figure.legend(
    handles, labels, loc="outside lower center", ncols=columns, **look
  )
  figure.set_figwidth(max(figure.get_figwidth(), _inches(legend) + 0.2))


def _inches(legend) -> float:
  """How wide a legend is."""
  return legend.get_window_extent().width / legend.get_figure().dpi


def check_kind(out: str | Path) -> None:
  """Raises BadConfig for the name of a file that is no picture."""
  path = Path(out)
  if path.suffix.lower() not in KINDS:
    named = path.name not in ("", "..") and not path.is_dir()
    such = path.with_suffix(".png") if named else path / "x.png"
    raise BadConfig(
      f"--out={out}: a picture ends in {', '.join(KINDS)}, such as {such}"
    )


def save(figure, out: str | Path) -> Path:
  """Writes the picture, as `files.write_out` does; closes it."""
  out = files.expanded(out)
  check_kind(out)
  check_size(figure)
  drawn, kind = io.BytesIO(), out.suffix.lower()[1:]
  try:
    figure.savefig(drawn, format=kind, dpi=DPI, metadata=_undated(out))
  finally:
    plots().close(figure)
  files.write_out(out, drawn.getvalue())
  return out


def check_size(figure) -> None:
  """Raises BadConfig for a picture that is larger than any can be."""
  width, height = figure.get_size_inches() * DPI
  if max(width, height) >= MOST_PIXELS:
    raise BadConfig(
      f"a picture of all this would be {width:,.0f} x {height:,.0f} pixels: "
      "name fewer runs or arms, or leave the picture out"
    )


@functools.cache
def _undated(out: Path) -> dict | None:
  """Metadata without a date: the same picture is the same file."""
  dates = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
  return dates.get(out.suffix.lower())
