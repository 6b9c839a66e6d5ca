"""Loss curves of runs, drawn from their metrics.jsonl."""

from collections.abc import Sequence
from pathlib import Path

from aigc_jax.errors import BadConfig
from aigc_jax.trainer.journal import rows


def draw(
  workdirs: Sequence[str],
  out: str | Path,
  *,
  metrics: Sequence[str],
  against: str = "tokens",
) -> Path:
  """One line for each run and metric, against tokens, step, flops or seconds.

  Raises BadConfig where a run lacks a metric, or without matplotlib.
  """
  try:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
  except ImportError:
    raise BadConfig(
      "drawing needs matplotlib: pip install 'aigc_jax[plots]'"
    ) from None
  figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
  for workdir in workdirs:
    found = rows(Path(workdir) / "metrics.jsonl")
    for metric in metrics:
      points = [(r[against], r[metric]) for r in found if r.get(metric)]
      if not points:
        known = sorted({k for r in found for k in r})
        raise BadConfig(
          f"{workdir} has no {metric!r} in its metrics (there are: "
          f"{', '.join(known) or 'none'})"
        )
      label = f"{Path(workdir).name} {metric}" if len(workdirs) > 1 else metric
      held_out = metric.startswith("eval/")
      axes.plot(
        *zip(*points, strict=True),
        marker="o" if held_out else None,
        linewidth=2.0 if held_out else 1.0,
        label=label,
      )
  axes.set_xlabel(against)
  axes.set_ylabel(metrics[0].rpartition("/")[2])
  axes.grid(alpha=0.3)
  axes.legend()
  out = Path(out)
  figure.savefig(out, dpi=150)
  pyplot.close(figure)
  return out
