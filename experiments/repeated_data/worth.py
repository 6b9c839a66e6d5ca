"""What repeated tokens are worth, beside the law of arXiv:2305.16264.

  python -m experiments.repeated_data.worth RESULTS [--out=worth.png]

RESULTS: the folder of the sweep, or the results.jsonl of it. Runs that saw no
token twice say which loss so many fresh tokens give, seed by seed; a run that
saw some again is worth the fresh tokens that would have given its loss. The law
says D' = U + U R* (1 - exp(-R / R*)) for U unique tokens repeated R times, with
R* = 15.4 in their fit of much larger models; here R* is fitted to the repeated
runs of a seed, all of them and those of few epochs: it knows of no epochs that
do harm, so that where they do its best is none at all.
"""

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import optimize

from aigc_jax.errors import BadConfig
from aigc_jax.planning.summary import table
from aigc_jax.scaling import pictures, statistics
from aigc_jax.scaling.runs import Record
from experiments import told

METRIC = "eval/heldout/loss"
PUBLISHED = 15.387756  # of R_D*
LEAST, MOST = 0.1, 1000.0  # of R* that is looked for
FEW = 4  # epochs
HEADER = (
  "tokens", "unique", "epochs", "loss", "more than fresh", "95 % interval",
  "worth, in fresh tokens", "by the law",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Cell:
  """A run: how many tokens it took, how many of them were different."""

  tokens: int
  unique: int
  seed: int
  loss: float

  @property
  def epochs(self) -> float:
    return self.tokens / self.unique


def cells_of(runs: Sequence[Record]) -> list[Cell]:
  """The runs of the sweep as cells."""
  found = []
  for r in runs:
    row = [row for row in r.rows if METRIC in row][-1]
    unique = int(Path(r.values["data.path"]).stem)
    found.append(Cell(row["tokens"], unique, r.seed, row[METRIC]))
  return found


def effective(unique, epochs, star: float):
  """D' of the law."""
  return unique * (1 + star * -np.expm1(-(np.asarray(epochs) - 1) / star))


def worth(loss: float, fresh: Mapping[int, float]) -> float:
  """Fresh tokens that give a loss, by lines in ln D between those known.

  fresh: {tokens: loss}. Beyond the ends the line there goes on.
  """
  x = np.log(sorted(fresh))
  y = np.array([fresh[d] for d in sorted(fresh)])
  if len(x) < 2 or not (np.diff(y) < 0).all():
    raise BadConfig("fresh tokens do not lower the loss at each length")
  i = int(np.clip(np.searchsorted(-y, -loss) - 1, 0, len(x) - 2))
  share = (y[i] - loss) / (y[i] - y[i + 1])
  return math.exp(x[i] + share * (x[i + 1] - x[i]))


def fresh_of(cells: Sequence[Cell], seed: int) -> dict[int, float]:
  mine = [c for c in cells if c.seed == seed and c.unique >= c.tokens]
  return {c.tokens: c.loss for c in mine}


def star_of(
  cells: Sequence[Cell], seed: int, epochs: float = math.inf
) -> float:
  """R* of a seed: least squares of ln D' over its runs of so many epochs."""
  fresh = fresh_of(cells, seed)
  again = [c for c in cells if c.seed == seed and 1 < c.epochs <= epochs]
  y = np.log([worth(c.loss, fresh) for c in again])
  unique = np.array([c.unique for c in again], float)
  seen = np.array([c.epochs for c in again])

  def cost(z):
    return float(
      np.square(np.log(effective(unique, seen, math.exp(z))) - y).sum()
    )

  found = optimize.minimize_scalar(
    cost, bounds=(math.log(LEAST), math.log(MOST)), method="bounded"
  )
  return math.exp(found.x)


def rows(cells: Sequence[Cell]) -> list[tuple]:
  """A line for each length and text, under HEADER."""
  seeds = sorted({c.seed for c in cells})
  fresh = {seed: fresh_of(cells, seed) for seed in seeds}
  made = []
  keys = sorted({(c.tokens, -c.unique) for c in cells})
  for tokens, unique in keys:
    mine = [c for c in cells if (c.tokens, -c.unique) == (tokens, unique)]
    mine.sort(key=lambda c: c.seed)
    same = [fresh[c.seed][tokens] for c in mine]
    losses = [c.loss for c in mine]
    of = statistics.paired(losses, same)
    again = mine[0].epochs > 1
    values = [worth(c.loss, fresh[c.seed]) for c in mine]
    made.append(
      (
        f"{tokens:,}",
        f"{-unique:,}",
        f"{mine[0].epochs:.0f}",
        f"{np.mean(losses):.3f}",
        f"{of.mean_diff:+.3f}" if again else "",
        "{:+.3f} to {:+.3f}".format(*of.ci95) if again else "",
        f"{math.exp(np.mean(np.log(values))):,.0f}",
        f"{effective(-unique, mine[0].epochs, PUBLISHED):,.0f}",
      )
    )
  return made


def stars(cells: Sequence[Cell], epochs: float = math.inf) -> str:
  """R* of the seeds in a line."""
  seeds = sorted({c.seed for c in cells})
  values = [star_of(cells, seed, epochs) for seed in seeds]
  of = statistics.summary(np.log(values))
  low, high = of.ci95_t or (math.nan, math.nan)
  each = ", ".join(f"{v:.3g}" for v in values)
  runs = "all runs" if math.isinf(epochs) else f"up to {epochs:g} epochs"
  if max(values) < LEAST * 1.01:
    return f"R* by {runs}: at the least that is looked for, {LEAST:g}"
  return (
    f"R* by {runs}: {math.exp(of.mean):.3g} (95 % {math.exp(low):.3g} to "
    f"{math.exp(high):.3g}; seeds: {each}); published: {PUBLISHED:.3g}"
  )


def picture(cells: Sequence[Cell]):
  """Losses against unique tokens; worth against epochs; a figure."""
  pyplot = pictures.plots()
  figure, (left, right) = pyplot.subplots(
    1, 2, figsize=(9.4, 4), layout="constrained"
  )
  lengths = sorted({c.tokens for c in cells})
  seeds = sorted({c.seed for c in cells})
  fresh = {seed: fresh_of(cells, seed) for seed in seeds}
  handles = []
  for i, tokens in enumerate(lengths):
    mine = [c for c in cells if c.tokens == tokens]
    look = dict(color=pictures.PALETTE[i], marker="osD^v"[i], markersize=4.5)
    uniques = sorted({c.unique for c in mine})
    losses = [[c.loss for c in mine if c.unique == u] for u in uniques]
    mean = np.mean(losses, axis=1)
    sd = np.std(losses, axis=1, ddof=1)
    dash = pictures.DASHES[i % 4]
    handles += left.plot(uniques, mean, linestyle=dash, **look)
    left.fill_between(
      uniques, mean - sd, mean + sd, color=look["color"], alpha=0.15, lw=0
    )
    for c in mine:
      if c.epochs > 1:
        x = c.epochs * 2 ** ((i - 1.5) * 0.06)
        right.plot(
          x, worth(c.loss, fresh[c.seed]) / c.unique, alpha=0.8, **look
        )
  line = np.geomspace(1, max(c.epochs for c in cells), 100)
  right.plot(line, line, color="0.6", lw=1)
  right.annotate(
    "as good as fresh", (8, 8), textcoords="offset points", xytext=(-8, 4),
    ha="right", fontsize=8.5, color="0.35",
  )  # fmt: skip
  few = [math.log(star_of(cells, s, FEW)) for s in seeds]
  for value, dash, name in (
    (PUBLISHED, "--", "published"),
    (math.exp(np.mean(few)), "-", f"by up to {FEW} epochs here"),
  ):  # fmt: skip
    handles += right.plot(
      line, effective(1, line, value), "k", linestyle=dash, lw=1.2
    )
    lengths = [*lengths, f"{name}, R* = {value:.3g}"]
  for axes in (left, right):
    axes.set_xscale("log", base=2)
    axes.minorticks_off()
  right.set_yscale("log", base=2)
  right.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
  right.yaxis.set_major_formatter(
    lambda v, _: f"{v:g}" if v >= 1 else f"1/{1 / v:g}"
  )
  right.set_ylim(top=2 * line[-1])
  left.xaxis.set_major_formatter(lambda v, _: f"{v / 1024:g} Ki")
  left.set_xticks(sorted({c.unique for c in cells}))
  left.set_title("held-out loss: mean over seeds, one deviation", loc="left")
  left.set_xlabel("unique tokens")
  left.set_ylabel("loss")
  right.set_title("fresh tokens that give the same loss", loc="left")
  right.set_xlabel("epochs")
  right.set_ylabel("fresh tokens for each unique one")
  labels = [
    f"{n // 1024} Ki tokens" if isinstance(n, int) else n for n in lengths
  ]
  pictures.legend_beside(figure, handles, labels)
  return figure


def tell(runs, given):
  """Prints the tables; what draws the picture."""
  cells = cells_of(runs)
  print(table(HEADER, rows(cells)))
  print(f"\n{stars(cells)}\n{stars(cells, FEW)}")
  return lambda: picture(cells)


if __name__ == "__main__":
  sys.exit(told.main(__doc__, tell))
