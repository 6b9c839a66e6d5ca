"""Cosines and WSD branches by the length of the run.

  python -m experiments.schedules.lengths RESULTS [--out=lengths.png]

RESULTS: the folder of the sweep, or the results.jsonl of it. At each length a
schedule has the rate that is best with the first seed; the other seeds, by
which nothing was chosen, compare them, in pairs that saw the same batches.
"""

import sys
from collections.abc import Mapping, Sequence

import numpy as np

from aigc_jax.errors import BadConfig
from aigc_jax.planning.summary import table
from aigc_jax.scaling import pictures, statistics
from aigc_jax.scaling.runs import Record
from experiments import told

METRIC = "eval/heldout/loss"
COSINE, WSD, TRUNK = "cosine", "wsd", "constant"
HEADER = (
  "steps", "cosine's rate", "wsd's rate", "pairs", "cosine", "wsd",
  "difference", "95 % interval", "p",
)  # fmt: skip
# {(schedule, steps): {rate: {seed: run}}}
Cells = Mapping[tuple[str, int], Mapping[float, Mapping[int, Record]]]


def cells_of(runs: Sequence[Record]) -> Cells:
  """The runs by schedule and length, rate and seed."""
  found: dict = {}
  for r in runs:
    key = r.values["optim.schedule"], r.values["steps"]
    rates = found.setdefault(key, {})
    rates.setdefault(r.values["optim.learning_rate"], {})[r.seed] = r
  return found


def end(r: Record) -> float:
  """The metric where a run ends."""
  if r.status != "finished":
    raise BadConfig(f"{r.name} is {r.status}: finish the sweep")
  return float(r.series(METRIC, "step")[1][-1])


def lengths_of(cells: Cells) -> list[int]:
  return sorted(steps for schedule, steps in cells if schedule == COSINE)


def chosen(rates: Mapping[float, Mapping[int, Record]]) -> tuple:
  """(the rate that is best with the first seed, {other seed: loss} there)."""
  first, *others = sorted(set.intersection(*map(set, rates.values())))
  if not others:
    raise BadConfig("one seed: nothing is left to compare")
  rate = min(rates, key=lambda rate: end(rates[rate][first]))
  return rate, {seed: end(rates[rate][seed]) for seed in others}


def row(cells: Cells, steps: int) -> tuple:
  """A line of the table under HEADER."""
  (rate, cosine), (other, wsd) = (
    chosen(cells[schedule, steps]) for schedule in (COSINE, WSD)
  )
  seeds = sorted(set(cosine) & set(wsd))
  pair = statistics.paired([wsd[s] for s in seeds], [cosine[s] for s in seeds])
  p = pair.p_two_sided
  return (
    f"{steps}",
    f"{rate:.3g}",
    f"{other:.3g}",
    f"{len(seeds)}",
    f"{np.mean(list(cosine.values())):.3f}",
    f"{np.mean(list(wsd.values())):.3f}",
    f"{pair.mean_diff:+.3f}",
    "{:+.3f} to {:+.3f}".format(*pair.ci95),
    "-" if p is None else f"{p:.3f}",
  )


def spent(cells: Cells) -> str:
  """How many steps of one rate and seed either way takes, in a line."""
  lengths = lengths_of(cells)
  trunk = max(steps for schedule, steps in cells if schedule == TRUNK)
  decays = sum(steps - _stable(cells, steps) for steps in lengths)
  return (
    f"steps for all lengths: {sum(lengths)} with cosines, {trunk + decays} "
    f"with a trunk of {trunk} and its branches"
  )


def _stable(cells: Cells, steps: int) -> int:
  rates = cells[WSD, steps]
  r = next(iter(next(iter(rates.values())).values()))
  return r.values["branch_step"]


def picture(cells: Cells):
  """Curves at one rate, and what each length comes to; a figure."""
  pyplot = pictures.plots()
  figure, (left, right) = pyplot.subplots(
    1, 2, figsize=(9.4, 4), layout="constrained"
  )
  lengths = lengths_of(cells)
  rate = chosen(cells[WSD, lengths[-1]])[0]
  looks = {
    COSINE: (pictures.PALETTE[0], "o"),
    WSD: (pictures.PALETTE[1], "s"),
    TRUNK: ("0.45", ""),
  }
  handles = {}
  for (schedule, steps), rates in cells.items():
    colour, marker = looks[schedule]
    x, y = _mean_curve(rates[rate].values())
    begun = _stable(cells, steps) if schedule == WSD else 0
    keep = x >= max(begun, lengths[0] // 2)
    (line,) = left.plot(
      x[keep], y[keep], color=colour, lw=1.4, marker=marker, markevery=[-1],
      markersize=5, linestyle="--" if schedule == WSD else "-",
    )  # fmt: skip
    handles[schedule] = line
  for k, schedule in enumerate((COSINE, WSD)):
    colour, marker = looks[schedule]
    for steps in lengths:
      losses = list(chosen(cells[schedule, steps])[1].values())
      x = steps * 1.06 ** (2 * k - 1)
      right.plot(
        [x] * len(losses), losses, marker, color=colour, ms=4, alpha=0.6
      )
      of = statistics.summary(losses)
      if of.ci95_t:
        right.plot([x, x], of.ci95_t, color=colour, lw=1.6)
      right.plot([x], [of.mean], "_", color=colour, ms=14, mew=2)
  right.set_xscale("log", base=2)
  right.set_xticks(lengths, [str(n) for n in lengths])
  right.minorticks_off()
  left.set_title(
    f"held-out loss at a peak of {rate:.3g}, mean over seeds", loc="left"
  )
  right.set_title("at the end: seeds, mean, 95 % interval", loc="left")
  for axes, name in ((left, "step"), (right, "steps of the run")):
    axes.set_xlabel(name)
    axes.set_ylabel("loss")
  names = {COSINE: "cosine", TRUNK: "constant: the trunk", WSD: "wsd branches"}
  pictures.legend_beside(
    figure, [handles[n] for n in names], list(names.values())
  )
  return figure


def _mean_curve(runs) -> tuple[np.ndarray, np.ndarray]:
  curves = [r.series(METRIC, "step") for r in runs]
  return curves[0][0], np.mean([y for _, y in curves], axis=0)


def tell(runs, given):
  """Prints the tables; what draws the picture."""
  cells = cells_of(runs)
  print(table(HEADER, [row(cells, steps) for steps in lengths_of(cells)]))
  print(f"\n{spent(cells)}")
  return lambda: picture(cells)


if __name__ == "__main__":
  sys.exit(told.main(__doc__, tell))
