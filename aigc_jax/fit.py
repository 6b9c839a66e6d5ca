"""Laws of loss, fitted to runs or to a CSV.

  python -m aigc_jax.fit POINTS.csv --law=chinchilla [--columns=params=N,...]
    [--where=setting=a] [--holdout=5] [--bootstrap=400] [--budgets=1e21,1e22]
    [--out=fit.json,fit.png]
  python -m aigc_jax.fit DIR [DIR ...] --law=isoflop
  python -m aigc_jax.fit fit.json --budgets=1e24 --out=fit.png

Laws: chinchilla (approach 3), isoflop (2), envelope (1), kaplan (of params and
tokens, or --of one of them), power (--of params, tokens or flops),
data_constrained (repeated data; the CSV has unique_tokens). A CSV has the
columns params, tokens, flops, loss; --columns=params=N says what they are
called otherwise; tokens or FLOPs that are missing follow from C = 6 N D. DIR is
the work directory of a run, a folder of such, or the results.jsonl that
`report rows` made of them.

fit.json holds the constants with standard errors and intervals, the objective,
how many starts agreed, the points with their hash, what was predicted, and
where all of it comes from; predictions and pictures are made from it alone.
"""

import contextlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from aigc_jax import command, files, records
from aigc_jax.errors import BadConfig, BadData, StorageFailure, choose
from aigc_jax.records import COUNT, SHA256
from aigc_jax.scaling import (
  fit_pictures,
  fit_text,
  fits,
  frontier,
  laws,
  pictures,
  points,
  run_points,
  table,
)
from aigc_jax.trainer import provenance

LAWS = (
  "chinchilla", "data_constrained", "envelope", "isoflop", "kaplan", "power",
)  # fmt: skip
PARAMETRIC = {
  "chinchilla": lambda of: laws.CHINCHILLA,
  "data_constrained": lambda of: laws.DATA_CONSTRAINED,
  "kaplan": lambda of: laws.kaplan_of(of) if of else laws.KAPLAN,
  "power": lambda of: laws.power_of(of or "flops"),
}
FRONTIER = ("isoflop", "envelope")
# Flags that a fit from a file does not read, and those of one of its kinds.
OF_POINTS = (
  "law", "of", "columns", "where", "holdout", "bootstrap", "fix", "tie", "near",
  "objective", "delta", "metric", "embeddings", "allow_unfinished",
)  # fmt: skip
OF_RUNS = ("metric", "embeddings", "allow_unfinished")
OF_FORMULAS = ("fix", "tie", "objective", "delta")
MOST_BYTES = 256 << 20
KNOWN = (float, None)
CONSTANT = {"value": float, "stderr": KNOWN, "low": KNOWN, "high": KNOWN}
# What a fit.json must be for predictions and pictures to be made from it.
FORM = {
  "law": str,
  "form": str,
  "constants": {str: CONSTANT},
  "derived?": {str: CONSTANT},
  "objective": {"kind": str, "value": float},
  "starts": {"tried": COUNT, "agreed": COUNT},
  "points": {
    "source": str,
    "sha256": SHA256,
    "names": [str],
    "columns": {"run?": [str], str: [KNOWN]},
  },
  "not_identified": {str: str},
  "outliers": [{"point": str, "deviations": float}],
  "predictions": [{"flops": float, "outside": [str]}],
  "replicates": [[KNOWN]],
  "resamples": COUNT,
  "warnings": [str],
}


def main(words: list[str]) -> int:
  """The command; the exit status."""
  values = flags.FLAGS
  if not words:
    raise BadConfig(
      "name a CSV or work directories: python -m aigc_jax.fit POINTS.csv "
      "--law=chinchilla"
    )
  for out in values.out:
    if not out.endswith(".json"):
      pictures.check_kind(out)
    command.check_out(out)
  if words[0].endswith(".json"):
    result = _again(words)
  else:
    result = _fitted(words)
  stored = words[0].endswith(".json")
  with _only_a_fit(words[0]) if stored else contextlib.nullcontext():
    _show(table.plain(result))
  return 0


def _show(result: dict) -> None:
  """Prints a fit and writes what --out names."""
  print(fit_text.as_text(result))
  for out in flags.FLAGS.out:
    if out.endswith(".json"):
      text = json.dumps(result, indent=1, allow_nan=False)
      files.write_out(out, text + "\n")
    else:
      fit_pictures.draw(result, out)
    print(out)


@contextlib.contextmanager
def _only_a_fit(path: str) -> Iterator[None]:
  """Turns what a file that is no fit leads to into BadData, by its name."""
  try:
    yield
  except (BadConfig, StorageFailure, OSError):
    raise  # of something else
  except Exception as error:  # numbers of others may lead to anything
    raise BadData(
      f"{path} is no fit that this command wrote ({error}): fit again from "
      "the CSV or the work directories"
    ) from None


def _check_flags(law: str) -> None:
  """Raises BadConfig for a flag that a law does not read, or cannot."""
  values, formulas = flags.FLAGS, ", ".join(PARAMETRIC)
  unread: dict[str, str] = {}
  if law in FRONTIER:
    unread |= dict.fromkeys(OF_FORMULAS, f"laws with a formula ({formulas})")
  if law not in ("kaplan", "power"):
    unread["of"] = "--law=kaplan and --law=power"
  if law != "isoflop":
    unread["near"] = "--law=isoflop"
  if law == "envelope":
    unread["holdout"] = "other laws than envelope"
  if values.objective == "squares":
    unread["delta"] = "--objective=huber"
  command.check_read(unread)
  if not 0 < values.delta < math.inf:
    raise BadConfig(f"--delta={values.delta}: expected above 0, such as 1e-3")


def _check_budgets(law: str) -> list[float]:
  """FLOPs to predict for; BadConfig where this law predicts nothing of them."""
  values = flags.FLAGS
  budgets = [_number("budgets", b, above=True) for b in values.budgets]
  unique = values.unique_tokens
  name, _, of = law.partition(" of ")
  if name != "data_constrained":
    command.check_read({"unique_tokens": "--law=data_constrained"})
  elif unique is not None and not 0 < unique < math.inf:
    raise BadConfig(f"--unique_tokens={unique}: expected a number above 0")
  elif budgets and unique is None:
    raise BadConfig(
      "--budgets of --law=data_constrained: the best sizes depend on how much "
      "data there is: add --unique_tokens=1e9"
    )
  if budgets and of in ("params", "tokens"):
    raise BadConfig(f"--budgets are FLOPs, and this is a law of {of}")
  return budgets


def _fitted(words: list[str]) -> dict:
  values = flags.FLAGS
  choose(values.law, dict.fromkeys(LAWS), "--law")
  _check_flags(values.law)
  law_name = values.law + f" of {values.of}" * bool(values.of)
  budgets = _check_budgets(law_name)
  found = _points(words)
  shared = dict(
    resamples=values.bootstrap, holdout=values.holdout, budgets=budgets
  )
  if values.law == "isoflop":
    result = frontier.by_parabolas(found, near=values.near, **shared)
  elif values.law == "envelope":
    result = frontier.by_envelope(found, **shared)
  else:
    law = PARAMETRIC[values.law](values.of)
    fix = {k: _number(k, v) for k, v in _pairs("fix", values.fix).items()}
    result = fits.parametric(
      found,
      laws.free(law, fix, values.tie),
      kind=values.objective,
      delta=values.delta,
      unique=values.unique_tokens,
      **shared,
    )
  code = provenance.code(Path(__file__).parent)
  result["provenance"] = {
    "data_sha256": found.sha256,
    "source": found.source,
    "code": {k: v for k, v in code.items() if k != "diff"},
    "packages": {
      name: version
      for name, version in provenance.packages().items()
      if name in ("aigc_jax", "numpy", "scipy")
    },
    "command": provenance.redact_flags(sys.argv[1:]),
  }
  return result


def _points(words: list[str]) -> points.Points:
  values = flags.FLAGS
  runs = (".jsonl",)  # a file of results holds runs, as a folder does
  csvs = [
    w for w in words if not (w.endswith(runs) or files.expanded(w).is_dir())
  ]
  if csvs:
    if len(words) > 1:
      raise BadConfig("a fit takes one CSV, or work directories")
    command.check_read(dict.fromkeys(OF_RUNS, "work directories"))
    return points.from_csv(
      csvs[0], _pairs("columns", values.columns), values.where
    )
  if values.columns or values.where:
    raise BadConfig("--columns and --where are for a CSV")
  return run_points.from_runs(
    words,
    metric=values.metric,
    embeddings=values.embeddings,
    curves=values.law == "envelope",
    unfinished=values.allow_unfinished or values.law == "envelope",
  )


def _again(words: list[str]) -> dict:
  """A fit that was written before, with other budgets."""
  path = files.expanded(words[0])
  if len(words) > 1:
    raise BadConfig("one fit.json at a time")
  if not path.exists():
    raise BadConfig(f"{path}: there is no such file")
  command.check_read(dict.fromkeys(OF_POINTS, f"points, and {path} is a fit"))
  with _only_a_fit(str(path)):
    result = records.check(files.read_json(path, MOST_BYTES), FORM, str(path))
    name = result["law"]
    budgets = _check_budgets(name)
    if budgets and name in FRONTIER:
      result["predictions"] = frontier.predictions(result, budgets)
    elif budgets:
      kind, _, of = name.partition(" of ")
      law = PARAMETRIC[kind](of or None)
      unique = flags.FLAGS.unique_tokens
      result["predictions"] = fits.predictions(result, law, budgets, unique)
    fit_text.as_text(result)  # says now whether it can be shown
  return result


def _pairs(flag: str, words: list[str]) -> dict[str, str]:
  found: dict[str, str] = {}
  for word in words:
    name, equals, value = word.partition("=")
    if not (name and equals and value) or name in found:
      raise BadConfig(f"--{flag}={word}: expected NAME=VALUE, each name once")
    found[name] = value
  return found


def _number(flag: str, text: str, above: bool = False) -> float:
  """The number of a flag from 0 on, or `above` 0; BadConfig for others."""
  try:
    value = float(text)
  except ValueError:
    value = -1.0
  if not 0 <= value < math.inf or (above and not value):
    least = "above 0" if above else "0 or more"
    raise BadConfig(f"--{flag}: {text!r} is no number, {least}")
  return value


def define_flags() -> None:
  """The flags of this command."""
  flags.DEFINE_string("law", "chinchilla", ", ".join(LAWS))
  flags.DEFINE_enum(
    "of", None, ["params", "tokens", "flops"], "the one size of a power"
  )
  flags.DEFINE_list("columns", [], "OURS=THEIRS names of a CSV's columns")
  flags.DEFINE_list("where", [], "COLUMN=VALUE (or != < <= > >=): rows to keep")
  flags.DEFINE_list("out", [], "files to write: x.json, x.png")
  flags.DEFINE_string(
    "holdout", "", "points a second fit predicts: 5, 0.2, flops>1e21; 0 is none"
  )
  flags.DEFINE_integer(
    "bootstrap", 400, "resamples", lower_bound=0, upper_bound=100_000
  )
  flags.DEFINE_list("budgets", [], "FLOPs to predict the best sizes for")
  flags.DEFINE_float("unique_tokens", None, "of those: the data there is")
  flags.DEFINE_list("fix", [], "NAME=VALUE of constants that are known")
  flags.DEFINE_list("tie", [], "two exponents that are one: alpha,beta")
  flags.DEFINE_float(
    "near", None, "isoflop: sizes at most this factor from the best count"
  )
  flags.DEFINE_enum(
    "objective", "huber", ["huber", "squares"], "of ln L, or squares of L"
  )
  flags.DEFINE_float("delta", 1e-3, "where Huber's loss becomes a line")
  flags.DEFINE_string("metric", "eval/heldout/loss", "of work directories")
  flags.DEFINE_bool("embeddings", True, "count them among the parameters")
  flags.DEFINE_bool("allow_unfinished", False, "runs not at their end count")


if __name__ == "__main__":
  define_flags()
  command.main(main, words=True, alone=True)
