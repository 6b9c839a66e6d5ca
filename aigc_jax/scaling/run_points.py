"""Points of a law from work directories: a run each, or its whole curve."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from aigc_jax import run, tree
from aigc_jax.errors import BadConfig
from aigc_jax.run.load import everywhere
from aigc_jax.scaling import comparable
from aigc_jax.scaling.points import Points
from aigc_jax.scaling.runs import FINISHED, Record, open_runs

EMBEDDINGS = ("embed/*", "position/*")
# Schedules without an end to miss, or whose decay is at the end by itself.
NO_END = ("constant", "rsqrt", "wsd", "wsd_cosine", "wsd_sqrt")


def from_runs(
  words: Sequence[str],
  *,
  metric: str = "eval/heldout/loss",
  embeddings: bool = True,
  curves: bool = False,
  unfinished: bool = False,
) -> Points:
  """The points of these work directories.

  embeddings: whether they count as parameters. curves: every row rather than
  the last. unfinished: also runs that are not at the end of their schedule,
  which a law of final losses misreads (Chinchilla's pitfall). Raises BadConfig
  where runs cannot be compared, or one is not whole.
  """
  runs = open_runs(words)
  fair, notes = comparable.fair_metric([r for r in runs if r.rows], metric)
  if fair != metric:
    raise BadConfig(
      f"the runs have different tokenizers: a law of {metric} would mix losses "
      f"of other tokens (--metric={fair} where that is what you want)"
    )
  if not unfinished:
    _check_ends(runs)
  rows: list[tuple] = []
  for r in runs:
    params = parameters(r, embeddings)
    x, y = r.series(metric, "step")
    tokens, flops = (r.series(metric, a)[0] for a in ("tokens", "flops"))
    for i in range(len(x)) if curves else [len(x) - 1]:
      if not np.isfinite(y[i]):
        raise BadConfig(f"{r.path}: {metric} is not finite at step {x[i]:.0f}")
      rows.append(
        (f"{r.name} step {x[i]:.0f}", r.name, params, tokens[i], flops[i], y[i])
      )
  names, run_names, *numbers = zip(*rows, strict=True)
  columns = dict(
    zip(
      ("params", "tokens", "flops", "loss"),
      (np.array(n, np.float64) for n in numbers),
      strict=True,
    )
  )
  for name, values in columns.items():
    if not (values > 0).all():
      where = names[int(np.argmin(values))]
      raise BadConfig(f"{where}: {name} is {values.min():g}, not above 0")
  said = json.dumps([list(row) for row in rows])
  with_ = "with" if embeddings else "without"
  return Points(
    columns=columns | {"run": np.array(run_names)},
    names=tuple(names),
    source=", ".join(map(str, words)),
    sha256=hashlib.sha256(said.encode()).hexdigest(),
    notes=(
      *notes,
      f"params are counted {with_} embeddings; FLOPs as the runs counted them",
    ),
  )


def _check_ends(runs: Sequence[Record]) -> None:
  for r in runs:
    if r.status != FINISHED:
      raise BadConfig(
        f"{r.path} is {r.status} at step {r.last_step}: its loss is not that "
        "of a whole run. Leave it out, finish it, or --allow_unfinished"
      )
    optim = r.config["optim"] if "optim" in r.config else {}
    decay = optim.get("decay_steps")
    kind = optim.get("schedule")
    if kind in (None, *NO_END) or decay is None or not r.planned:
      continue
    end = (optim.get("warmup_steps") or 0) + decay
    if end != r.planned:
      raise BadConfig(
        f"{r.path}: its {kind} schedule ends at step {end}, the run at "
        f"{r.planned}: such losses bend a law (Chinchilla's pitfall). Leave it "
        "out, or --allow_unfinished"
      )


def parameters(r: Record, embeddings: bool) -> int:
  """How many a run has, counted from its config or as it recorded them."""
  if embeddings and isinstance(r.about.get("parameters"), int):
    return r.about["parameters"]
  try:
    mesh = run.make_mesh(everywhere(r.config))
    abstract = run.abstract_params(run.model_of(r.config), mesh)
  except (BadConfig, KeyError, TypeError, ValueError) as error:
    raise BadConfig(
      f"{r.path}: its parameters cannot be counted from its config ({error})"
    ) from None
  total = tree.count(abstract)
  if embeddings:
    return total
  table = [
    x for n, x in tree.flat(abstract).items() if tree.match(EMBEDDINGS, n)
  ]
  return total - tree.count(table)
