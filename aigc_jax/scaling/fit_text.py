"""What a fit says to a person, from its JSON alone."""

import math
from collections.abc import Mapping

from aigc_jax.scaling.pictures import power, short
from aigc_jax.scaling.table import grid


def as_text(result: Mapping) -> str:
  """Constants, how sure they are, errors, predictions, warnings."""
  count = len(result["points"]["names"])
  parts = [
    f"{result['law']}: {result['form']}",
    f"of {count} points in {result['points']['source']} "
    f"(sha256 {result['points']['sha256'][:12]})",
    "",
    _constants(result),
    "",
    _objective(result),
  ]
  parts += _optima(result) + _holdout(result)
  if result["predictions"]:
    parts += ["", _predictions(result)]
  if result["not_identified"]:
    parts.append("")
    parts += [
      f"NOT IDENTIFIED: {name} ({why})"
      for name, why in result["not_identified"].items()
    ]
  if result["warnings"]:
    parts += ["", *(f"* {w}" for w in result["warnings"])]
  return "\n".join(parts)


def _constants(result: Mapping) -> str:
  rows = []
  everything = dict(result["constants"]) | dict(result.get("derived", {}))
  for name, c in everything.items():
    if c.get("fixed"):
      rows.append([name, _number(c["value"]), "fixed", "", ""])
      continue
    profile = result.get("profiles", {}).get(name)
    more = ""
    if profile:
      ends = (_number(profile["low"]), _number(profile["high"]))
      more = f"{ends[0]} to {ends[1]}" + " (open)" * profile["open"]
    interval = f"{_number(c['low'])} to {_number(c['high'])}"
    if not c.get("identified", True):
      interval += " (not identified)"
    rows.append(
      [name, _number(c["value"]), _number(c["stderr"]), interval, more]
    )
  how = (
    f"{result['resamples']} bootstraps"
    if result["resamples"] > 1
    else "standard errors"
  )
  header = ["constant", "value", "standard error", f"95 % ({how})", "profile"]
  return grid(header, rows)


def _objective(result: Mapping) -> str:
  o, starts = result["objective"], result["starts"]
  delta = f", delta {o['delta']:g} of ln L" if o.get("delta") else ""
  text = f"objective {o['value']:.10g} ({o['kind']}{delta})"
  if starts["tried"] > 1:
    text += f"; {starts['agreed']} of {starts['tried']} starts came to it"
  if "residuals" in result and result["residuals"]:
    r = result["residuals"]
    rms = math.sqrt(sum(x * x for x in r) / len(r))
    text += f"; residuals of ln L: rms {rms:.3g}, worst {max(map(abs, r)):.3g}"
  if "r2" in result:
    text += f"; R2 of ln N {result['r2']['params']:.6f}"
  return text


def _optima(result: Mapping) -> list[str]:
  optima = result.get("optima", [])
  if not optima or len(optima) > 60:
    return []
  rows = [
    [
      power(o["flops"]), short(o["params"]), short(o["tokens"]),
      _number(o["loss"]), "" if o["good"] else f"not counted: {o['why']}",
    ]
    for o in optima
  ]  # fmt: skip
  return ["", grid(["FLOPs", "best params", "tokens", "loss", ""], rows)]


def _holdout(result: Mapping) -> list[str]:
  held = result.get("holdout")
  if not held:
    return []
  if held.get("skipped"):
    return [f"held out: nothing ({held['skipped']})"]
  worst = max(held["relative_errors"], key=abs)
  return [
    f"held out: {len(held['points'])} of the largest by {held['largest_by']}, "
    "predicted by a fit without them: mean error "
    f"{100 * held['mean_absolute_relative_error']:.3f} %, worst "
    f"{100 * worst:+.3f} %"
  ]


def _predictions(result: Mapping) -> str:
  rows = []
  for p in result["predictions"]:
    cells = [power(p["flops"])]
    for name in ("params", "tokens", "loss"):
      if name not in p:
        cells.append("-")
        continue
      v, write = p[name], (_number if name == "loss" else short)
      cells.append(write(v["value"]) + _ends(v, write))
    outside = f"no points there: {', '.join(p['outside'])}" * bool(p["outside"])
    rows.append([*cells, outside])
  return grid(["FLOPs", "best params", "best tokens", "loss", ""], rows)


def _ends(v: Mapping, write) -> str:
  low, high = v["low"], v["high"]
  if any(x is None or not math.isfinite(x) for x in (low, high)):
    return ""
  return f" ({write(low)} to {write(high)})"


def _number(value) -> str:
  if value is None or not math.isfinite(value):
    return "-"
  return f"{value:.6g}"
