"""What differs between two runs, and where their curves part.

Config, code, data, environment are compared as recorded when they started;
the rows of metrics.jsonl step by step.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from aigc_jax import files, run
from aigc_jax.errors import BadConfig
from aigc_jax.scaling.comparable import FORM
from aigc_jax.terminal import counted
from aigc_jax.trainer.changes import Change, changes
from aigc_jax.trainer.journal import rows

# Of run.json, what belongs under which heading.
CODE = ("code",)
DATA = ("data_fingerprint", "heldout_fingerprints", "tokenizer_fingerprint")
ENVIRONMENT = (
  "python",
  "system",
  "processor",
  "packages",
  "environment",
  "jax",
)
# Fields that no two runs share.
TIMING = ("seconds",)
SPEED = "speed/"


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Differences by heading, and how far the curves agree."""

  config: list[Change]
  code: list[Change]
  data: list[Change]
  environment: list[Change]
  steps: int  # rows that both runs have
  bitwise_until: int | None  # last step up to which all is equal; None: none
  parts_at: int | None  # first step with a difference; None: nowhere
  parts_in: tuple[str, ...]  # the metrics that differ there
  worst: float  # largest relative difference of train/loss


def compare(one: str | Path, other: str | Path) -> Comparison:
  """The comparison of two work directories; raises BadConfig for no run."""
  one, other = files.expanded(one), files.expanded(other)
  a, b = run.filled([run.config_in(one), run.config_in(other)])
  about_a, about_b = run.provenance_in(one), run.provenance_in(other)

  def part(keys: tuple[str, ...]) -> list[Change]:
    return changes(
      {k: about_a[k] for k in keys if k in about_a},
      {k: about_b[k] for k in keys if k in about_b},
    )

  curve_a, curve_b = curve(one), curve(other)
  common = sorted(curve_a.keys() & curve_b.keys())
  same_until, parts_at, parts_in, worst = None, None, (), 0.0
  for step in common:
    x, y = curve_a[step], curve_b[step]
    differing = tuple(
      k for k in sorted(x.keys() | y.keys()) if _differ(x, y, k)
    )
    if differing and parts_at is None:
      parts_at, parts_in = step, differing
    if parts_at is None:
      same_until = step
    worst = max(worst, _relative(x, y, "train/loss"))
  return Comparison(
    config=changes(a, b),
    code=part(CODE),
    data=part(DATA),
    environment=part(ENVIRONMENT),
    steps=len(common),
    bitwise_until=same_until,
    parts_at=parts_at,
    parts_in=parts_in,
    worst=worst,
  )


def curve(workdir: Path) -> dict[int, dict]:
  """{step: all metrics of that step}, without what depends on time."""
  path = workdir / "metrics.jsonl"
  if not path.is_file():
    raise BadConfig(f"{workdir} has no metrics.jsonl: it never trained a step")
  found: dict[int, dict] = {}
  for row in rows(path):
    kept = {
      k: v
      for k, v in row.items()
      if k not in TIMING and not k.startswith(SPEED)
    }
    found.setdefault(row["step"], {}).update(kept)
  return found


def _differ(x: Mapping, y: Mapping, key: str) -> bool:
  return key not in x or key not in y or x[key] != y[key]


def _relative(x: Mapping, y: Mapping, key: str) -> float:
  if not x.get(key) or not y.get(key):
    return 0.0
  return abs(x[key] - y[key]) / abs(x[key])


def as_text(found: Comparison, limit: int = 40) -> str:
  """The comparison as a person reads it."""
  lines = []
  for heading in ("config", "code", "data", "environment"):
    differing = getattr(found, heading)
    lines.append(f"{heading}: {'the same' if not differing else ''}".rstrip())
    for change in differing[:limit]:
      lines.append(f"  {_short(change)}")
    if len(differing) > limit:
      lines.append(f"  ... and {len(differing) - limit} more")
  lines.append("curves:")
  if not found.steps:
    lines.append("  no step in common")
  elif found.parts_at is None:
    lines.append(
      f"  equal bit for bit in all {counted(found.steps, 'common row')}, "
      f"to step {found.bitwise_until}"
    )
  else:
    until = found.bitwise_until
    lines.append(
      f"  equal bit for bit to step {until}"
      if until is not None
      else "  not equal at any step"
    )
    metrics = ", ".join(found.parts_in[:6])
    lines.append(f"  they part at step {found.parts_at}, in {metrics}")
    lines.append(
      f"  train/loss differs by at most {found.worst:.3g} relative over "
      f"{counted(found.steps, 'common row')}"
    )
    keys = [c.key.partition(".") for c in found.config]
    if any(part == "objective" and key not in FORM for part, _, key in keys):
      lines.append(
        "  (train/loss is not one quantity in the two: their objectives differ)"
      )
  return "\n".join(lines)


def _short(change: Change, most: int = 60) -> str:
  old, new = (
    text if len(text) <= most else f"{text[:most]}..."
    for text in (repr(change.old), repr(change.new))
  )
  return f"{change.key}: {old} -> {new}"
