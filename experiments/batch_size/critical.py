"""The critical batch: steps and tokens to a loss, by the size of the batch.

  python -m experiments.batch_size.critical RESULTS [--losses=2.6,2.45,2.3]
    [--out=critical.png]

RESULTS: the folder of the sweep, or the results.jsonl of it. A batch takes as
many steps as the learning rate that comes first to the loss, and what it takes
is fitted by S = S_min (1 + B_crit / B) of arXiv:1812.06162, seed by seed: at
B_crit a run takes twice the fewest steps and twice the fewest examples.
"""

import math
import sys
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import optimize

from aigc_jax.errors import BadConfig
from aigc_jax.planning.summary import table
from aigc_jax.scaling import pictures, statistics
from aigc_jax.scaling.runs import Record
from experiments import told

METRIC = "eval/heldout/loss"
HEADER = (
  "loss", "batches", "fewest steps", "critical batch", "95 % interval",
  "each seed",
)  # fmt: skip
Steps = Mapping[int, float]  # by batch


def steps_to(r: Record, loss: float) -> float:
  """The step at which a run comes to a loss, between its rows; or infinity."""
  steps, losses = r.series(METRIC, "step")
  below = np.flatnonzero(losses <= loss)
  if not len(below):
    return math.inf
  i = below[0]
  if i == 0:
    return float(steps[0])
  share = (losses[i - 1] - loss) / (losses[i - 1] - losses[i])
  return float(steps[i - 1] + share * (steps[i] - steps[i - 1]))


def fewest(runs: Sequence[Record], loss: float) -> dict[int, dict[int, float]]:
  """{seed: {batch: steps}} at the rate that is first, where one comes there."""
  found: dict[int, dict[int, float]] = {}
  for r in runs:
    steps = steps_to(r, loss)
    if math.isfinite(steps):
      mine = found.setdefault(r.seed, {})
      batch = r.values["data.batch"]
      mine[batch] = min(mine.get(batch, math.inf), steps)
  return found


def fitted(steps: Steps) -> tuple[float, float]:
  """(S_min, B_crit) of least squares on logarithms."""
  if len(steps) < 3:
    raise BadConfig(f"{len(steps)} batches come to this loss: expected 3")
  batch = np.array(list(steps), float)
  y = np.log(list(steps.values()))

  def residual(z):
    return z[0] + np.log1p(np.exp(z[1]) / batch) - y

  z = optimize.least_squares(residual, (y.min(), math.log(16))).x
  return math.exp(z[0]), math.exp(z[1])


def row(runs: Sequence[Record], loss: float) -> tuple:
  """A line of the table under HEADER."""
  found = fewest(runs, loss)
  pairs = [fitted(steps) for _, steps in sorted(found.items())]
  critical = statistics.summary([math.log(b) for _, b in pairs])
  low, high = critical.ci95_t or (math.nan, math.nan)
  batches = sorted(set().union(*found.values()))
  return (
    f"{loss:g}",
    f"{batches[0]} to {batches[-1]}",
    f"{np.mean([s for s, _ in pairs]):.0f}",
    f"{math.exp(critical.mean):.1f}",
    f"{math.exp(low):.1f} to {math.exp(high):.1f}",
    ", ".join(f"{b:.1f}" for _, b in pairs),
  )


def growth(runs: Sequence[Record], losses: Sequence[float]) -> str:
  """How the critical batch differs between two losses, by seed, in a line."""
  octaves = [
    {seed: math.log2(fitted(steps)[1]) for seed, steps in found.items()}
    for found in (fewest(runs, loss) for loss in losses)
  ]
  seeds = sorted(set(octaves[0]) & set(octaves[1]))
  pair = statistics.paired(*([o[s] for s in seeds] for o in octaves[::-1]))
  low, high = pair.ci95
  return (
    f"from loss {losses[0]:g} to {losses[1]:g} the critical batch grows by "
    f"{pair.mean_diff:+.2f} octaves ({low:+.2f} to {high:+.2f}, p = "
    f"{pair.p_two_sided:.3f})"
  )


def picture(runs: Sequence[Record], losses: Sequence[float]):
  """Steps, and tokens, against the batch; a figure."""
  pyplot = pictures.plots()
  figure, both = pyplot.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
  tokens = {r.values["data.length"] for r in runs}.pop()
  handles = []
  for i, loss in enumerate(losses):
    colour = pictures.PALETTE[i]
    found = fewest(runs, loss)
    batches = np.array(sorted(set().union(*found.values())), float)
    line = np.geomspace(batches[0], batches[-1], 60)
    pairs = [fitted(steps) for steps in found.values()]
    least, critical = np.exp(np.mean(np.log(pairs), axis=0))
    curve = least * (1 + critical / line)
    for axes, factor in zip(both, (0, 1), strict=True):
      drawn = axes.plot(
        line, curve * (tokens * line) ** factor, color=colour,
        linestyle=pictures.DASHES[i % 4],
      )  # fmt: skip
      for steps in found.values():
        x = np.array(list(steps), float)
        y = np.array(list(steps.values())) * (tokens * x) ** factor
        axes.plot(x, y, "os^D"[i % 4], color=colour, ms=4, alpha=0.7)
      axes.axvline(critical, color=colour, lw=0.8, alpha=0.6, linestyle=":")
    handles += drawn
  for axes, name in zip(both, ("steps", "tokens"), strict=True):
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sorted({r.values["data.batch"] for r in runs}))
    axes.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
    axes.minorticks_off()
    pictures.format_axis(axes.yaxis, "tokens", log=True)
    axes.set_title(f"{name} to a held-out loss", loc="left")
    axes.set_xlabel(f"batch, rows of {tokens} tokens")
    axes.set_ylabel(name)
  labels = [f"loss {loss:g}" for loss in losses]
  pictures.legend_beside(figure, handles, labels)
  return figure


def tell(runs, given):
  """Prints the tables; what draws the picture."""
  losses = [float(word) for word in given.losses.split(",")]
  print(table(HEADER, [row(runs, loss) for loss in losses]))
  if len(losses) > 1:
    print(f"\n{growth(runs, [losses[0], losses[-1]])}")
  return lambda: picture(runs, losses)


if __name__ == "__main__":
  sys.exit(told.main(__doc__, tell, losses="2.6,2.45,2.3"))
