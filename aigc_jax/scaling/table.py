"""An ablation as text, as JSON, and as a picture."""

import dataclasses
import html
import math
from collections.abc import Sequence
from pathlib import Path

from aigc_jax.scaling import pictures
from aigc_jax.scaling.ablation import Ablation, Result
from aigc_jax.terminal import counted

NONE = "-"
Rows = list[list[str]]


def arms_table(found: Ablation) -> tuple[list[str], Rows]:
  """(header, rows): each arm by itself."""
  places = _places(found)
  header = [
    "arm", "n", "mean", "sd", "95 % interval", "median", "range", "runs",
  ]  # fmt: skip
  rows = []
  for r in found.results:
    s = r.summary
    cells = [NONE] * 5
    if s:
      cells = [
        _number(s.mean, places),
        _number(s.sd, places + 1),
        _interval(s.ci95_t, places),
        _number(s.median, places),
        _interval((s.min, s.max), places),
      ]
    name = r.arm.name + (" (baseline)" * (r.versus is None))
    rows.append([name, str(s.n if s else 0), *cells, _states(r)])
  return header, rows


def versus_table(found: Ablation) -> tuple[list[str], Rows]:
  """(header, rows): each arm against the baseline."""
  places = _places(found) + 1
  header = [
    "arm", "difference", "95 % interval", "by", "p", "Holm", "BH", "effect",
    "detectable", "baseline is there", "verdict",
  ]  # fmt: skip
  rows = []
  for r in found.results:
    v = r.versus
    if v is None:
      continue
    if v.method == "none":
      rows.append([r.arm.name, *[NONE] * 9, v.verdict])
      continue
    rows.append(
      [
        r.arm.name,
        _signed(v.difference, places),
        _interval(v.interval, places),
        f"{v.method}, n={r.summary.n}"
        if not v.paired
        else f"{counted(v.paired.n_pairs, 'pair')}",
        *(_p(p) for p in (v.p, v.holm, v.bh)),
        NONE if v.effect is None else f"{v.effect:.2f} sd",
        _number(v.detectable, places),
        v.equivalent.words,
        v.verdict,
      ]
    )
  return header, rows


def evidence_table(found: Ablation) -> tuple[list[str], Rows]:
  """(header, rows): what the other ways to test say, side by side."""
  header = [
    "arm", "paired p", "correlation of seeds", "sign-flip p",
    "bootstrap (BCa)", "Welch p", "df", "permutation p", "equivalence p",
    "why this test",
  ]  # fmt: skip
  places = _places(found) + 1
  rows = []
  for r in found.results:
    v = r.versus
    if v is None or v.method == "none":
      continue
    p, w = v.paired, v.welch
    rows.append(
      [
        r.arm.name,
        _p(p.p_two_sided) if p else NONE,
        NONE if p is None or p.corr is None else f"{p.corr:.2f}",
        _p(p.signflip_p) if p else NONE,
        _interval(p.bootstrap.bca95, places) if p else NONE,
        _p(w.p_two_sided),
        NONE if w.df is None else f"{w.df:.1f}",
        _p(w.permutation_p),
        _p(v.equivalence.p) if v.equivalence else NONE,
        v.why,
      ]
    )
  return header, rows


def sections(found: Ablation) -> list[tuple[str, tuple[list[str], Rows]]]:
  """(heading, table) of all there is to show."""
  place = f"{found.place.axis} {found.place.value:,.6g}"
  better = {True: " (more is better)", False: " (less is better)", None: ""}
  heading = f"{found.metric} at {place}{better[found.higher_is_better]}"
  parts = [(heading, arms_table(found))]
  if len(found.results) > 1:
    parts.append((f"Against {found.baseline}", versus_table(found)))
    if evidence_table(found)[1]:
      parts.append(("By other tests", evidence_table(found)))
  return parts


LEGEND = (
  "Intervals are t intervals of 95 %; p is two-sided, by pairs of a seed where "
  "these saw the same batches, else by Welch; Holm and BH are p adjusted for "
  "all arms. effect: in deviations of the differences where by pairs, else of "
  "the two arms pooled. detectable: the difference that this n would find 4 "
  "times in 5. baseline is there: how much earlier or later its mean curve "
  "reaches the arm's mean."
)


def markdown(found: Ablation) -> str:
  """The whole report as Markdown that reads well as plain text."""
  parts = []
  for heading, (header, rows) in sections(found):
    parts += [f"### {heading}", "", grid(header, rows), ""]
  if found.notes:
    parts += ["### Notes", "", *(f"* {note}" for note in found.notes), ""]
  return "\n".join([*parts, LEGEND])


def grid(header: Sequence[str], rows: Rows) -> str:
  """A table of Markdown, its columns aligned."""
  cells = [[c.replace("|", r"\|") for c in row] for row in [header, *rows]]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = [
    "| "
    + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True))
    + " |"
    for row in cells
  ]
  lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
  return "\n".join(lines)


def as_html(found: Ablation) -> str:
  """The tables and notes as a piece of a page."""
  parts = []
  for heading, (header, rows) in sections(found):
    parts.append(f"<h3>{html.escape(heading)}</h3>{html_table(header, rows)}")
  if found.notes:
    items = "".join(f"<li>{html.escape(n)}</li>" for n in found.notes)
    parts.append(f"<h3>Notes</h3><ul>{items}</ul>")
  parts.append(f"<p class='small'>{html.escape(LEGEND)}</p>")
  return "\n".join(parts)


def html_table(header: Sequence[str], rows: Rows) -> str:
  """A table that scrolls where the window is narrow."""
  head = "".join(f"<th>{html.escape(c)}</th>" for c in header)
  body = "".join(
    "<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>"
    for row in rows
  )
  return (
    f"<div class='wide'><table><thead><tr>{head}</tr></thead>"
    f"<tbody>{body}</tbody></table></div>"
  )


def as_json(found: Ablation) -> dict:
  """Every number, unrounded; what is not known is null."""
  return plain(
    {
      "metric": found.metric,
      "higher_is_better": found.higher_is_better,
      "at": dataclasses.asdict(found.place),
      "baseline": found.baseline,
      "arms": [_arm_json(r) for r in found.results],
      "notes": list(found.notes),
    }
  )


def _arm_json(r: Result) -> dict:
  return {
    "name": r.arm.name,
    "keys": r.arm.values,
    "runs": [
      {
        "workdir": str(v.run.path),
        "name": v.run.name,
        "seed": v.run.seed,
        "status": v.run.status,
        "value": v.value,
        "interpolated": v.interpolated,
        "left_out": v.why or None,
      }
      for v in r.values
    ],
    "summary": dataclasses.asdict(r.summary) if r.summary else None,
    "versus_baseline": dataclasses.asdict(r.versus) if r.versus else None,
  }


def plain(value):
  """JSON without NaN or infinities: null in their place."""
  if isinstance(value, dict):
    return {str(k): plain(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [plain(v) for v in value]
  if hasattr(value, "item"):
    value = value.item()
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def forest(found: Ablation, out: str | Path) -> Path:
  """Differences from the baseline with intervals and what n could detect."""
  return pictures.save(forest_picture(found), out)


def forest_picture(found: Ablation):
  """The figure: above, each run of each arm; below, the differences."""
  pyplot = pictures.plots()
  results = list(found.results)
  shown = [r for r in results if r.versus and r.versus.difference is not None]
  heights = [len(results) + 1.2, len(shown) + 1.4] if shown else [len(results)]
  figure, panels = pyplot.subplots(
    len(heights), 1, layout="constrained", squeeze=False,
    figsize=(7, 0.42 * sum(heights) + 1.1),
    gridspec_kw={"height_ratios": heights},
  )  # fmt: skip
  _runs_panel(panels[0, 0], found)
  if shown:
    _differences_panel(panels[1, 0], found, shown)
  return figure


def _runs_panel(axes, found: Ablation) -> None:
  """Every run a dot, runs of one seed joined, means and intervals."""
  results = list(found.results)
  colours = pictures.colours(len(results))
  seeds: dict = {}
  for i, r in enumerate(results):
    for v in r.values:
      if v.value is not None and v.run.seed is not None:
        seeds.setdefault(v.run.seed, []).append((v.value, i))
  for points in seeds.values():
    axes.plot(*zip(*points, strict=True), color="0.7", linewidth=0.7, zorder=1)
  for i, r in enumerate(results):
    values = [v.value for v in r.values if v.value is not None]
    axes.scatter(values, [i] * len(values), s=18, color=colours[i], zorder=3)
    if r.summary and r.summary.ci95_t:
      low, high = r.summary.ci95_t
      axes.plot(
        [low, high], [i + 0.22] * 2, color=colours[i], linewidth=2, zorder=2
      )
      axes.plot(r.summary.mean, i + 0.22, "|", color=colours[i], markersize=9)
  axes.set_yticks(range(len(results)), [_tick(r) for r in results])
  axes.set_ylim(len(results) - 0.4, -0.6)
  axes.set_xlabel(found.metric)
  place = f"{found.place.axis} {pictures.short(found.place.value)}"
  axes.set_title(
    f"{found.metric} at {place}: runs, mean and 95 % interval", loc="left"
  )
  axes.spines.right.set_visible(False)
  axes.grid(axis="y", visible=False)


def _differences_panel(axes, found: Ablation, shown: Sequence[Result]) -> None:
  shown = sorted(shown, key=lambda r: r.versus.difference)
  axes.axvline(0, color="0.3", linewidth=0.8)
  for i, r in enumerate(shown):
    v = r.versus
    if v.detectable:
      axes.barh(
        i, 2 * v.detectable, left=-v.detectable, height=0.6, color="0.88",
        zorder=0,
      )  # fmt: skip
    good = v.verdict in ("better", "worse", "more", "less")
    colour = pictures.PALETTE[0] if good else "0.35"
    if v.interval:
      axes.plot(v.interval, [i, i], color=colour, linewidth=2)
    axes.plot(
      v.difference, i, "o", color=colour, markersize=6,
      markerfacecolor=colour if good else "white",
    )  # fmt: skip
  axes.set_yticks(range(len(shown)), [_wrapped(r.arm.name) for r in shown])
  axes.set_ylim(len(shown) - 0.4, -0.6)
  sides = {True: "right", False: "left"}
  better = sides.get(found.higher_is_better)
  more = f" (better to the {better})" if better else ""
  axes.set_xlabel(f"difference from {found.baseline}{more}")
  axes.set_title(
    "Differences, 95 % interval (grey: not detectable; filled: Holm's p < .05)",
    loc="left",
  )
  axes.margins(x=0.06)
  axes.spines.right.set_visible(False)
  axes.grid(axis="y", visible=False)


def _tick(r: Result) -> str:
  out = sum(v.value is None for v in r.values)
  more = f"\n({out} not counted)" if out else ""
  more += "\n(baseline)" * (r.versus is None)
  return _wrapped(r.arm.name) + more


def _wrapped(name: str, width: int = 26) -> str:
  import textwrap

  return "\n".join(textwrap.wrap(name, width))


def _states(r: Result) -> str:
  """ "4 finished, 1 diverged": every run of the arm, counted or not."""
  states: dict[str, int] = {}
  for v in r.values:
    states[v.run.status] = states.get(v.run.status, 0) + 1
  return ", ".join(f"{n} {state}" for state, n in states.items())


def _places(found: Ablation) -> int:
  """Digits after the point that show the spread and no more."""
  spreads = [r.summary.sd for r in found.results if r.summary and r.summary.sd]
  spreads += [
    abs(r.versus.difference)
    for r in found.results
    if r.versus and r.versus.difference
  ]
  if not spreads:
    return 4
  return min(8, max(2, 1 - math.floor(math.log10(min(spreads)))))


def _number(value: float | None, places: int) -> str:
  return NONE if value is None else f"{value:.{places}f}"


def _signed(value: float | None, places: int) -> str:
  return NONE if value is None else f"{value:+.{places}f}"


def _interval(ends, places: int) -> str:
  if ends is None:
    return NONE
  return f"{ends[0]:.{places}f} to {ends[1]:.{places}f}"


def _p(p: float | None) -> str:
  if p is None:
    return NONE
  return f"{p:.4f}" if p >= 1e-3 else f"{p:.1e}"
