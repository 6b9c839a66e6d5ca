"""Runs as one file: results.jsonl, which a report writes and reads, or a CSV.

results.jsonl has a line for each run, {"run", "arm", "seed", "status", ...},
and after it the run's rows, {"run", "step", "tokens", ..., "train/loss"}: what
tables and pictures of them are drawn from once the work directories are gone.

A CSV has a row for each run, or for several steps of it: the columns arm, seed
and those of metrics, by their names ("eval/heldout/loss"); step, tokens,
examples, flops, seconds where they are known; other columns are left alone.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from aigc_jax import files, records
from aigc_jax.errors import BadConfig, BadData
from aigc_jax.records import COUNT
from aigc_jax.scaling import held_out
from aigc_jax.scaling.points import csv_rows

KINDS = (".csv", ".jsonl")
STATES = ("finished", "unfinished", "diverged")
MOST_BYTES = 256 << 20
ROWS = 200  # of a run that are kept of what is measured at every row
TEXTS = {str: str}
HEAD = {
  "run": str,
  "arm": str,
  "seed": (COUNT, None),
  "status": "|".join(STATES),
  "steps?": (COUNT, None),
  "values?": dict,
  "data_fingerprint?": (str, None),
  "tokenizer_fingerprint?": (str, None),
  "heldout_fingerprints?": TEXTS,
  "heldout_texts?": TEXTS,
  "parameters?": (COUNT, None),
  "objective?": dict,
}
NUMBERS = ("step", "tokens", "examples", "flops", "seconds")
ROW = {
  "run": str,
  "step": COUNT,
  **{f"{name}?": (float, None) for name in NUMBERS[1:]},
  str: (float, None, str),
}


def is_file(word: str) -> bool:
  """Whether this is the name of such a file, not of a folder."""
  return word.endswith(KINDS) and not files.expanded(word).is_dir()


def read(word: str) -> list[dict]:
  """[{"head": ..., "rows": [...]}] of the runs in a file, in its order.

  Raises BadConfig where there is none, BadData, with the line, for what is no
  run.
  """
  path = files.expanded(word)
  if not path.is_file():
    raise BadConfig(f"{path}: there is no such file")
  if path.stat().st_size > MOST_BYTES:
    raise BadData(f"{path} is larger than {MOST_BYTES} bytes: not read")
  found = _of_csv(path) if path.suffix == ".csv" else _of_lines(path)
  if not found:
    raise BadData(f"{path} holds no run")
  return list(found.values())


def _of_lines(path: Path) -> dict[str, dict]:
  found: dict[str, dict] = {}
  for number, line in enumerate(files.read_lines(path), 1):
    where = f"{path}, line {number}"
    if line.row is None:
      raise BadData(f"{where}: {line.fault}")
    if "step" not in line.row:
      head = records.check(line.row, HEAD, where)
      if not head["arm"]:
        raise BadData(f"{where}: the run {head['run']!r} is of no arm")
      if head["run"] in found:
        raise BadData(f"{where}: the run {head['run']!r} is there twice")
      found[head["run"]] = {"head": head, "rows": []}
      continue
    row = dict(records.check(line.row, ROW, where))
    name = row.pop("run")
    if name not in found:
      raise BadData(
        f"{where}: a row of the run {name!r}, which no line before names"
      )
    found[name]["rows"].append(row)
  return found


def _of_csv(path: Path) -> dict[str, dict]:
  header, lines = csv_rows(path, path.read_bytes())
  for name in ("arm", "seed"):
    if name not in header:
      raise BadConfig(
        f"{path} has no column {name!r} (it has: {', '.join(header)}): runs "
        "are told apart by arm and seed"
      )
  measured = _measured(path, header, lines)
  found: dict[str, dict] = {}
  for number, cells in lines:
    where = f"{path}, line {number}"
    seed = _whole(where, "seed", cells["seed"])
    if not cells["arm"]:
      raise BadData(f"{where}: arm is empty: each run is of one, such as plain")
    name = cells.get("run") or f"{cells['arm']} seed {seed}"
    head = {"run": name, "arm": cells["arm"], "seed": seed,
            "status": "finished"}  # fmt: skip
    one = found.setdefault(name, {"head": head, "rows": []})
    if one["head"] != head:
      raise BadData(f"{where}: the run {name!r} has two arms or seeds")
    row = {k: _number(where, k, cells[k]) for k in measured if cells[k]}
    # Without places: the end of its run, wherever that was.
    row["step"] = _whole(where, "step", cells.get("step") or "1")
    if any(row["step"] == other["step"] for other in one["rows"]):
      raise BadData(
        f"{where}: arm {cells['arm']!r}, seed {seed} is there twice at step "
        f"{row['step']}: leave one out, or tell steps apart by a column step"
      )
    one["rows"].append(row)
  return found


def _measured(path: Path, header: Sequence[str], lines) -> list[str]:
  """The columns that hold numbers: places, and metrics."""
  kept = []
  for name in header:
    if name in ("arm", "seed", "run", "step"):
      continue
    texts = [cells[name] for _, cells in lines if cells[name]]
    if name in NUMBERS or "/" in name or (texts and all(map(_float, texts))):
      kept.append(name)
  if not any(name not in NUMBERS for name in kept):
    raise BadConfig(
      f"{path} has no column of a metric (it has: {', '.join(header)})"
    )
  return kept


def _float(text: str) -> bool:
  try:
    float(text)
  except ValueError:
    return False
  return True


def _number(where: str, name: str, text: str) -> float | None:
  """None for what is not finite: such a run counts as diverged."""
  if not _float(text):
    raise BadData(f"{where}: {name}={text!r} is no number")
  value = float(text)
  return value if math.isfinite(value) else None


def _whole(where: str, name: str, text: str) -> int:
  value = float(text) if _float(text) else math.nan
  if not (math.isfinite(value) and value == int(value) and value >= 0):
    raise BadData(f"{where}: {name}={text!r} is no whole number from 0 on")
  return int(value)


def lines_of(runs: Sequence, arms: Mapping[str, str], metrics) -> str:
  """The text of results.jsonl: these metrics of these runs.

  runs: `runs.Record`. arms: {name of a run: its arm}. Of a metric that every
  row has, about ROWS rows are kept, always the last.
  """
  out = []
  for r in runs:
    head = {
      "run": r.name,
      "arm": arms[r.name],
      "seed": r.seed,
      "status": r.status,
      "steps": r.planned,
      "values": r.values,
    }
    head |= {
      key: r.about[key]
      for key in (
        "data_fingerprint", "tokenizer_fingerprint", "heldout_fingerprints",
        "heldout_texts", "parameters", "objective",
      )
      if key in r.about
    }  # fmt: skip
    if "objective" in r.config:
      head["objective"] = r.config["objective"]
    texts = held_out.texts_of(r.config)
    if texts:
      head["heldout_texts"] = texts
    out.append(head)
    out += _thinned(r, metrics)
  return "".join(json.dumps(one, allow_nan=False) + "\n" for one in out)


def _thinned(r, metrics: Sequence[str]) -> list[dict]:
  having = [row for row in r.rows if any(m in row for m in metrics)]
  every = -(-len(having) // ROWS)
  last = len(having) - 1
  kept = []
  for i, row in enumerate(having):
    trained = all(m not in row or m.startswith("train/") for m in metrics)
    if trained and i % every and i != last and not _next_is_last(having, i):
      continue
    names = (*NUMBERS, "data/batch_hash", *metrics)
    kept.append({"run": r.name} | {n: row[n] for n in names if n in row})
  return kept


def _next_is_last(rows: Sequence[Mapping], i: int) -> bool:
  """Whether a row is the last of training, before the last evaluation."""
  return all("train/loss" not in row for row in rows[i + 1 :])
