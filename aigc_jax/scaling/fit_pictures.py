"""A fit drawn from its JSON alone."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from aigc_jax.scaling import pictures
from aigc_jax.scaling.fits import FAR


def draw(result: Mapping, out: str | Path) -> Path:
  """The picture of a fit."""
  return pictures.save(picture(result), out)


def picture(result: Mapping):
  """Four panels of a law with a formula, two of optima by budget."""
  pyplot = pictures.plots()
  optima = "optima" in result
  shape = (1, 2) if optima else (2, 2)
  figure, panels = pyplot.subplots(
    *shape, figsize=(9.4, 4.2 * shape[0]), layout="constrained", squeeze=False
  )
  for axes in panels.flat:
    axes.spines.right.set_visible(False)
  flat = iter(panels.flat)
  if optima:
    _budgets(next(flat), result)
    _frontier(next(flat), result)
  else:
    _losses(next(flat), result)
    _residuals(next(flat), result)
    _frontier(next(flat), result)
    _profiles(next(flat), result)
  figure.suptitle(f"{result['law']}: {result['form']}", fontsize=10.5)
  return figure


def _columns(result: Mapping) -> dict:
  return {
    k: np.array(v) for k, v in result["points"]["columns"].items() if k != "run"
  }


def _losses(axes, result: Mapping) -> None:
  """Loss as measured against loss as fitted; what was far off is ringed."""
  loss = _columns(result)["loss"]
  predicted = np.array(result["predicted"])
  axes.plot(predicted, loss, "o", markersize=3.5, alpha=0.7, mew=0)
  names = result["points"]["names"]
  far = [names.index(o["point"]) for o in result["outliers"]]
  if far:
    axes.plot(
      predicted[far], loss[far], "o", markersize=10, mfc="none",
      mec=pictures.PALETTE[1], label="far from the fit",
    )  # fmt: skip
  both = np.concatenate([loss, predicted])
  ends = [both.min(), both.max()]
  axes.plot(ends, ends, color="0.4", linewidth=0.9)
  held = result.get("holdout") or {}
  if held.get("predicted") and "loss" in held:
    axes.plot(
      held["predicted"], held["loss"], "s", markersize=5, mfc="none",
      mec=pictures.PALETTE[2], label="held out, predicted without them",
    )  # fmt: skip
  if axes.get_legend_handles_labels()[0]:
    axes.legend(frameon=False, fontsize=8, loc="upper left")
  axes.set_xlabel("loss by the fit")
  axes.set_ylabel("loss measured")
  axes.set_title("Fit", loc="left")


def _residuals(axes, result: Mapping) -> None:
  c = _columns(result)
  x = next(k for k in ("flops", "params", "tokens") if k in c)
  r = np.array(result["residuals"])
  # What is far off lies at the edge, so that the others can be seen.
  reach = 2 * FAR * 1.4826 * np.median(np.abs(r - np.median(r))) or np.inf
  within = np.abs(r) <= reach
  axes.plot(
    c[x][within], 100 * r[within], "o", markersize=3.5, alpha=0.7, mew=0
  )
  for sign, marker in ((1, "^"), (-1, "v")):
    far = ~within & (np.sign(r) == sign)
    edge = np.full(far.sum(), 100 * sign * reach)
    axes.plot(c[x][far], edge, marker, color=pictures.PALETTE[1])
  axes.axhline(0, color="0.4", linewidth=0.9)
  axes.set_xscale("log")
  pictures.format_axis(axes.xaxis, x, log=True)
  axes.set_xlabel(pictures.AXIS_LABELS.get(x, x))
  axes.set_ylabel("measured above fitted, %")
  axes.set_title("Residuals (triangles: further off)", loc="left")


def _frontier(axes, result: Mapping) -> None:
  """Best params by budget: what is predicted, and where points are."""
  c = _columns(result)
  found = [p for p in result["predictions"] if "params" in p]
  if not found or "flops" not in c:
    _law_of_one(axes, result)
    return
  if "params" in c:
    axes.plot(
      c["flops"], c["params"], "o", color="0.75", markersize=2.5, mew=0,
      label="points", zorder=1,
    )  # fmt: skip
  for o in result.get("optima", []):
    axes.plot(
      o["flops"], o["params"], "o", color=pictures.PALETTE[1], markersize=5,
      mfc=pictures.PALETTE[1] if o["good"] else "white", zorder=3,
    )  # fmt: skip
  derived = result.get("derived") or result["constants"]
  if "a" in derived:
    # The power through the first prediction, over data and predictions.
    first, slope = found[0], derived["a"]["value"]
    ends = np.array([c["flops"].min(), max(p["flops"] for p in found)])
    at = first["params"]["value"] * (ends / first["flops"]) ** slope
    axes.plot(ends, at, color=pictures.PALETTE[0], linewidth=1.2)
  for p in found:
    v = p["params"]
    outside = bool(p["outside"])
    if v["low"] is not None and np.isfinite([v["low"], v["high"]]).all():
      axes.plot(
        [p["flops"]] * 2, [v["low"], v["high"]], color=pictures.PALETTE[0],
        linewidth=2, zorder=2,
      )  # fmt: skip
    axes.plot(
      p["flops"], v["value"], "D", color=pictures.PALETTE[0], markersize=5,
      mfc="white" if outside else pictures.PALETTE[0], zorder=3,
    )  # fmt: skip
  axes.axvspan(c["flops"].min(), c["flops"].max(), color="0.95", zorder=0)
  axes.set_xscale("log")
  axes.set_yscale("log")
  pictures.format_axis(axes.xaxis, "flops", log=True)
  pictures.format_axis(axes.yaxis, "params", log=True)
  axes.set_xlabel("FLOPs (grey: where points are)")
  axes.set_ylabel("params")
  axes.set_title("Best params (hollow: beyond the points)", loc="left")


def _law_of_one(axes, result: Mapping) -> None:
  """Loss against the one size of a power law."""
  c = _columns(result)
  x = next(k for k in ("flops", "params", "tokens") if k in c)
  if result["law"].endswith(("params", "tokens", "flops")):
    x = result["law"].rpartition(" ")[2]
  order = np.argsort(c[x])
  axes.plot(c[x], c["loss"], "o", markersize=3.5, alpha=0.7, mew=0)
  axes.plot(c[x][order], np.array(result["predicted"])[order], color="0.3")
  axes.set_xscale("log")
  axes.set_yscale("log")
  pictures.format_axis(axes.xaxis, x, log=True)
  pictures.plain_numbers(axes.yaxis)
  axes.set_xlabel(pictures.AXIS_LABELS.get(x, x))
  axes.set_ylabel("loss")
  axes.set_title("The law", loc="left")


def _profiles(axes, result: Mapping) -> None:
  """The least objective with an exponent held: narrow where it is known."""
  least = result["objective"]["value"]
  shown = []
  for (name, p), colour in zip(
    result.get("profiles", {}).items(), pictures.PALETTE, strict=False
  ):
    ratio = np.array(p["objective"], float) / max(least, 1e-300)
    axes.plot(p["values"], ratio, ".-", color=colour, label=name, markersize=4)
    shown += [v for v, y in zip(p["values"], ratio, strict=True) if y < 1.8]
  axes.set_ylim(0.98, 1.6)
  if shown:
    room = 0.1 * (max(shown) - min(shown)) or 0.1 * max(shown)
    axes.set_xlim(min(shown) - room, max(shown) + room)
  axes.axhline(1, color="0.4", linewidth=0.9)
  axes.set_xlabel("exponent, held")
  axes.set_ylabel("least objective / best")
  axes.set_title("Profile", loc="left")
  if axes.get_legend_handles_labels()[0]:
    axes.legend(frameon=False, fontsize=8.5)


def _budgets(axes, result: Mapping) -> None:
  """Loss against size by budget, parabolas and their vertices."""
  c = _columns(result)
  optima = result["optima"]
  if "loss" not in c or len(optima) > 60 or "params" not in c:
    x = [o["flops"] for o in optima]
    axes.plot(x, [o["params"] for o in optima], ".", color="0.4", markersize=3)
    axes.set_xscale("log")
    axes.set_yscale("log")
    pictures.format_axis(axes.xaxis, "flops", log=True)
    pictures.format_axis(axes.yaxis, "params", log=True)
    axes.set_xlabel("FLOPs")
    axes.set_ylabel("best params")
    axes.set_title("Optima", loc="left")
    return
  for o, colour in zip(optima, _shades(len(optima)), strict=True):
    own = np.abs(np.log(c["flops"] / o["flops"])) < 0.1
    size, loss = c["params"][own], c["loss"][own]
    rounded = float(f"{o['flops']:.3g}")
    label = f"{pictures.power(rounded)} FLOPs"
    axes.plot(size, loss, "o", color=colour, markersize=3.5, label=label)
    if o.get("parabola") is None:
      continue
    grid = np.linspace(np.log(size.min()), np.log(size.max()), 60)
    axes.plot(np.exp(grid), np.polyval(o["parabola"], grid), color=colour)
    if size.min() <= o["params"] <= size.max():
      axes.plot(
        o["params"], o["loss"], "D", color=colour, markersize=6,
        mfc=colour if o["good"] else "white", mec="black", zorder=4,
      )  # fmt: skip
  axes.set_xscale("log")
  pictures.format_axis(axes.xaxis, "params", log=True)
  axes.set_xlabel("params")
  axes.set_ylabel("loss")
  axes.set_title("Budgets (diamonds: optima; hollow: not counted)", loc="left")
  if len(optima) <= 12:
    axes.legend(frameon=False, fontsize=7.5)


def _shades(count: int) -> list:
  from matplotlib import colormaps

  steps = max(count - 1, 1)
  return [colormaps["viridis"](0.9 * i / steps) for i in range(count)]
