"""A curve held against a committed reference: the mean and spread of seeds.

The reference is JSON: {"metrics": {name: {"n", "step", "mean", "sigma"}},
"about": {...}}, with n the seeds and sigma their standard deviation by step.
"""

import dataclasses
import math
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from aigc_jax import files, records
from aigc_jax.errors import BadConfig, BadData
from aigc_jax.records import COUNT
from aigc_jax.scaling.curves import Line, Style, averaged
from aigc_jax.scaling.runs import FINISHED, Record

BAND = 0.99  # the chance that another seed lies within, at any one step
MOST_OUTSIDE = 0.05  # of the steps: beyond that a curve has left the band
ROUNDING = 2e-5  # relative: what two meshes may differ by
MOST_BYTES = 64 << 20
CURVE = {
  "n": range(2, 1 << 31), "step": [COUNT], "mean": [float], "sigma": [float],
}  # fmt: skip
FORM = {
  "metrics": {str: CURVE},
  "about?": ({"heldout_fingerprints?": ({str: str}, None)}, None),
}


@dataclasses.dataclass(frozen=True)
class Against:
  """A run's metric against the reference. steps: those that both have.

  outside: [first, last] of each stretch beyond the band. worst: the step
  furthest out, in deviations. left: whether it left the band altogether.
  """

  metric: str
  seeds: int
  steps: int
  outside: tuple[tuple[int, int], ...]
  share_outside: float
  worst_step: int
  worst_deviations: float
  left: bool


def reference_of(runs: Sequence[Record], metrics: Sequence[str]) -> dict:
  """The reference that these runs, of one setting and several seeds, make."""
  if not any(metrics):
    raise BadConfig("--metrics names nothing: expected such as train/loss")
  seeds = [r.seed for r in runs]
  if len(runs) < 2 or len(set(seeds)) < len(runs):
    raise BadConfig(
      f"a reference takes two or more runs of different seeds, got seeds "
      f"{seeds}: one curve has no spread"
    )
  for r in runs:
    if r.status != FINISHED:
      raise BadConfig(f"{r.path} is {r.status}: a reference takes whole runs")
  line = Line("the reference", tuple(runs))
  found = {}
  for metric in metrics:
    curve = averaged(line, metric, Style(against="step"))
    if not np.isfinite(curve.mean).all():
      raise BadConfig(f"{metric} is not finite everywhere in these runs")
    found[metric] = {
      "n": len(runs),
      "step": [int(x) for x in curve.x],
      "mean": curve.mean.tolist(),
      "sigma": curve.sd.tolist(),
    }
  about = {
    key: runs[0].about.get(key)
    for key in (
      "code", "data_fingerprint", "heldout_fingerprints",
      "tokenizer_fingerprint", "packages",
    )
  }  # fmt: skip
  if isinstance(about["code"], dict):
    about["code"] = {k: v for k, v in about["code"].items() if k != "diff"}
  return {
    "metrics": found,
    "about": about | {"seeds": seeds, "config": runs[0].config},
  }


def read_reference(path: str | Path) -> dict:
  """A reference from its file; raises BadData for anything else."""
  path = files.expanded(path)
  if not path.is_file():
    raise BadConfig(
      f"{path}: there is no such file; python -m aigc_jax.report reference DIR "
      f"... --out={shlex.quote(str(path))} makes one of several seeds"
    )
  try:
    found = records.check(files.read_json(path, MOST_BYTES), FORM, str(path))
    metrics = found["metrics"]
    for name, curve in metrics.items():
      step, mean, sigma = (curve[k] for k in ("step", "mean", "sigma"))
      if not (len(step) == len(mean) == len(sigma) > 0 <= min(sigma)):
        raise BadData(f"{path}: {name}: no steps, means and sigmas of 2 seeds")
  except BadData as error:
    raise BadData(
      f"{error}: it holds no reference; python -m aigc_jax.report "
      "reference DIR [DIR ...] --out=reference.json makes one"
    ) from None
  if not metrics:
    raise BadData(f"{path} has no metrics in it")
  return found


def against(run: Record, reference: dict) -> list[Against]:
  """The run's curves against those of the reference.

  The band at a step is that in which another seed lies with 99 %: the mean
  and BAND's t times sigma * sqrt(1 + 1/n). Raises BadConfig where a curve or
  all its steps are missing, or the run's held-out data is other.
  """
  _check_data(run, reference)
  return [
    _one(run, metric, curve) for metric, curve in reference["metrics"].items()
  ]


def _check_data(run: Record, reference: dict) -> None:
  known = reference.get("about") or {}
  theirs = known.get("heldout_fingerprints") or {}
  ours = run.about.get("heldout_fingerprints") or {}
  for metric in reference["metrics"]:
    if not metric.startswith("eval/"):
      continue
    name = f"evaluate.{metric.split('/')[1]}"
    a, b = theirs.get(name), ours.get(name)
    if a is not None and b is not None and a != b:
      raise BadConfig(
        f"{run.path} was evaluated on other held-out data than the reference "
        f"({name}: {b[:12]}, there {a[:12]}): {metric} cannot be compared"
      )


def _one(run: Record, metric: str, curve: dict) -> Against:
  x, y = run.series(metric, "step")
  value = dict(zip(x.tolist(), y.tolist(), strict=True))
  n = int(curve["n"])
  reach = stats.t.ppf(0.5 + BAND / 2, n - 1) * math.sqrt(1 + 1 / n)
  steps, away = [], []
  for step, mean, sigma in zip(
    curve["step"], curve["mean"], curve["sigma"], strict=True
  ):
    if step not in value:
      continue
    room = max(reach * sigma, ROUNDING * abs(mean)) or math.ulp(0.0)
    found = value[step]
    steps.append(int(step))
    away.append((found - mean) / room if math.isfinite(found) else math.inf)
  if not steps:
    raise BadConfig(
      f"{run.path} has {metric} at none of the reference's steps "
      f"({int(curve['step'][0])} to {int(curve['step'][-1])})"
    )
  sizes = np.abs(away)
  beyond = sizes > 1
  worst = int(np.argmax(sizes))
  share = float(beyond.mean())
  return Against(
    metric=metric,
    seeds=n,
    steps=len(steps),
    outside=tuple(_stretches(steps, beyond)),
    share_outside=share,
    worst_step=steps[worst],
    worst_deviations=float(away[worst] * reach),
    left=bool(share > MOST_OUTSIDE or beyond[-1]),
  )


def _stretches(steps: Sequence[int], beyond) -> list[tuple[int, int]]:
  found: list[list[int]] = []
  before = False
  for step, out in zip(steps, beyond, strict=True):
    if out and before:
      found[-1][1] = step
    elif out:
      found.append([step, step])
    before = bool(out)
  return [(a, b) for a, b in found]


def as_text(found: Sequence[Against], most: int = 12) -> str:
  """What a person reads of it."""
  lines = []
  for a in found:
    head = f"{a.metric}: {a.steps} steps against {a.seeds} seeds, "
    if not a.outside:
      lines.append(head + "within their band everywhere")
    else:
      word = "LEAVES the band" if a.left else "within the band but for"
      lines.append(
        f"{head}{word} ({100 * a.share_outside:.1f} % of the steps outside)"
      )
      for first, last in a.outside[:most]:
        where = f"step {first}" if first == last else f"steps {first} to {last}"
        lines.append(f"  outside at {where}")
      if len(a.outside) > most:
        lines.append(f"  ... and {len(a.outside) - most} more stretches")
    lines.append(
      f"  furthest at step {a.worst_step}: {a.worst_deviations:+.2f} "
      "deviations of the seeds"
    )
  return "\n".join(lines)
