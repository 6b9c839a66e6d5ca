"""Damaged sweeps, results, samples, branches, half-made stores, TFDS folders.

As of text in test_hostile_files.py: each is read or refused.
"""

import functools
import hashlib
import json
from pathlib import Path

import pytest

from aigc_jax import run
from aigc_jax.data import columns, writer
from aigc_jax.data.documents import Job
from aigc_jax.data.sources import open_source
from aigc_jax.presets import skeleton
from aigc_jax.run import branch
from aigc_jax.scaling import gallery, points, repeat, results
from aigc_jax.scaling.ablation import ablation
from aigc_jax.scaling.arms import arms_of
from aigc_jax.scaling.runs import open_runs
from aigc_jax.scaling.sweeps import joint_runs, launch, ledger, progress, work
from aigc_jax.scaling.table import markdown
from aigc_jax.trainer import identity
from aigc_jax.trainer.journal import METRICS
from tests.data.test_sources import Tiny
from tests.hostile import Format, laws, unheard
from tests.scaling.sweeping import plan_of, planned

# Sweeps and points of fits.

planned_once = functools.cache(planned)


def good_sweep(folder: Path) -> None:
  plan = plan_of(planned_once(0), planned_once(1))
  one, other = ledger.write(plan, folder).entries
  attempt = {"started": 1.5, "seconds": 3.0, "status": 1}
  ledger.write_state(one, ledger.State("failed", (attempt,), ("why",)), 7)
  ledger.write_state(
    other, ledger.State("done", (attempt | {"status": 0},), ())
  )
  for entry in (one, other):
    entry.workdir.mkdir()
    row = {"step": 2, "tokens": 9, "seconds": 1.5, "train/loss": 3.5}
    (entry.workdir / METRICS).write_text(json.dumps(row) + "\n")
    result = {"step": 4, "digest": [1, 2], "eval/heldout/loss": 3.25}
    (entry.workdir / "result.json").write_text(json.dumps(result))


def read_sweep(folder: Path) -> None:
  index = ledger.read_index(folder)
  states = [ledger.state_of(entry) for entry in index.entries]
  progress.status_table(index.entries, states, index.metric)
  progress.summed_up(index.entries, index.metric)
  json.loads(work.as_json(index.entries, index.metric))
  for entry in index.entries:
    ledger.line_of(entry)
    ledger.config_of(entry)
  ledger.found_of(plan_of(planned_once(0)), folder)


def watch_sweep(folder: Path) -> None:
  """What is shown while points run."""
  index = ledger.read_index(folder)
  rows = [(e, work.last_row(e.workdir / METRICS)) for e in index.entries]
  left = work._left(index.entries, index.entries[:1], rows, 1)
  view = progress.Live(index.entries, index.metric)
  view.shows(rows, left)


def in_sweep(file: str, read=read_sweep) -> Format:
  return Format(good_sweep, file, read, few=30)


OUTCOMES = {"/a/b": {"status": 0, "error": []}, "c": {"status": -9,
            "error": ["one", "two"]}}  # fmt: skip


def read_outcomes(folder: Path) -> None:
  for mine in joint_runs.outcomes_in(folder / "x.json").values():
    text = launch.ended(mine["status"])
    assert isinstance(text, str) and isinstance(mine["error"][-3:], list)


POINTS = "params,tokens,flops,loss\n" + "".join(
  f"{n}e6,{20 * n}e6,{120 * n * n}e12,{3.0 - n / 9}\n" for n in range(1, 7)
)


def one(name: str, content, read) -> Format:
  """A file alone."""
  text = content if isinstance(content, str) else json.dumps(content)
  return Format(lambda f: (f / name).write_text(text), name, read)


# Runs in one file.

HEADS = [
  {"run": f"{arm}{seed}", "arm": arm, "seed": seed, "status": "finished",
   "steps": 2, "values": {"optim.learning_rate": 0.1}, "parameters": 9,
   "heldout_fingerprints": {"evaluate.heldout": "ab"}}
  for arm in "ab" for seed in (0, 1)
]  # fmt: skip
LINES = "".join(
  json.dumps(row) + "\n"
  for head in HEADS
  for row in (
    head,
    {"run": head["run"], "step": 1, "train/loss": 3.0 + head["seed"] / 9},
    {"run": head["run"], "step": 2, "tokens": 64, "train/loss": 2.5},
  )
)
CSV = "arm,seed,step,tokens,train/loss,note\n" + "".join(
  f"{arm},{seed},{step},{32 * step},{3.5 - step / 9 + seed / 7},\n"
  for arm in "ab"
  for seed in (0, 1)
  for step in (1, 2)
)


def read_results(folder: Path, name: str) -> None:
  runs = open_runs([str(folder / name)])
  for r in runs:
    assert r.status
    r.series("train/loss", "step")
  arms = arms_of(runs)
  print(markdown(ablation(arms, metric="train/loss")))
  named = {r.name: arm.name for arm in arms for r in arm.runs}
  results.lines_of(runs, named, ["train/loss"])


# What lies in a work directory besides.


def good_samples(folder: Path) -> None:
  samples = folder / "one/samples"
  samples.mkdir(parents=True)
  (folder / "one/config.json").write_text(json.dumps({"seed": 0}))
  row = {"step": 4, "seconds": 1.0, "eval/drawn/fid": 2.5}
  (folder / "one" / METRICS).write_text(json.dumps(row) + "\n")
  (samples / "4.drawn.png").write_bytes(gallery.MAGIC + b"of step 4")
  (samples / "4.txt").write_text("<b> é")


def read_samples(folder: Path) -> None:
  assert gallery.page("all", open_runs([str(folder / "one")]))


@functools.cache
def branched() -> run.Config:
  config = run.read(skeleton())
  return config | {"branch_from": "/trunk", "branch_step": 4}


def good_branch(folder: Path) -> None:
  mark = {"from": "/trunk", "step": 4, "copying": True, "config": "ab" * 32}
  (folder / "branch.json").write_text(json.dumps(mark))
  (folder / "config.json").write_text("{}")


def copy_lines(folder: Path) -> None:
  lines = b"".join(branch._lines_until(folder / METRICS, 2))
  assert not lines or lines.endswith(b"\n")


ROWS = "".join(json.dumps({"step": i, "train/loss": 3}) + "\n" for i in (1, 2))
RUN = {
  "run": {
    "id": "0123456789abcdef", "since": 4, "legs": [["a1", 4], ["b7", None]],
    "place": {"path": "/there", "inode": 7},
  },
  "seed": 0, "code": {"commit": "ab", "dirty": False, "sha256": "cd"},
  "packages": {"jax": "1"},
}  # fmt: skip


def good_origin(folder: Path) -> None:
  (folder / "run.json").write_text(json.dumps(RUN))
  (folder / "config.json").write_text(json.dumps({"seed": 0, "steps": 4}))
  events = [{"time": "t", "event": "change", "step": 2, "key": "seed"}]
  text = "".join(json.dumps(row) + "\n" for row in events)
  (folder / "events.jsonl").write_text(text)


def read_origin(folder: Path) -> None:
  found = repeat.origin(folder)
  json.dumps(found.changed)
  about = run.provenance_in(folder)
  own = identity.of(about)
  identity.original_of(folder, own)


def read_given(folder: Path) -> None:
  """A config.json that stands on the line of a command."""
  config = run.read(run.configured(str(folder / "config.json"), []))
  run.check_evaluators(config)


# Stores that were not finished.

NOTHING = hashlib.sha256(b"").hexdigest()
DONE = {
  "tokens": 0, "documents": 0, "bytes": 0, "replaced": 0, "max_token": 256,
  "sha256": NOTHING, "offsets_sha256": NOTHING,
}  # fmt: skip


def good_shard(folder: Path) -> None:
  (folder / "shard-00000.json").write_text(json.dumps(DONE))
  for what in ("tokens", "offsets"):
    (folder / f"{what}-00000.npy").write_bytes(b"\0" * writer.HEADER)


def good_columns(folder: Path) -> None:
  record = {
    "records": 3,
    "files": {"label-00000.npy": {"count": 3, "sha256": NOTHING}},
    "left_out": {"damaged": {"count": 2, "first": ["a", "b"]}},
  }  # fmt: skip
  (folder / "shard-00000.json").write_text(json.dumps(record))
  (folder / "label-00000.npy").write_bytes(b"\0" * columns.HEADER)


def read_columns(folder: Path) -> None:
  record = columns._finished(folder, 0)
  if record is not None:
    assert record["records"] >= 0
    assert isinstance(columns.told(record["left_out"]), str)


def good_plan(folder: Path) -> None:
  writer.start_aside(folder / "aside", [Job((0,), 1)])


# Folders of TFDS.


@functools.cache
def dataset(place: str) -> Path:
  builder = Tiny(data_dir=place, file_format="array_record")
  builder.download_and_prepare()
  return Path(builder.data_dir)


def good_dataset(folder: Path) -> None:
  dataset(str(folder))


def read_dataset(folder: Path) -> None:
  spec = dict(
    kind="tfds", name=str(folder / "tiny/1.0.0"), split="train", field="body"
  )
  source = open_source(spec, validation=0.3, root=folder / "root")
  for split in ("train", "validation"):
    for job in source.jobs(split):
      list(source.read(job, split))
  assert len(source.fingerprint) == 64


def in_dataset(file: str) -> Format:
  return Format(good_dataset, f"tiny/1.0.0/{file}", read_dataset, few=20)


FORMATS = {
  "sweep": in_sweep("sweep.json"),
  "point of a sweep": in_sweep("points/plain-seed0-*/point.json"),
  "state of a point": in_sweep("points/plain-seed0-*/state.json"),
  "config of a point": in_sweep("points/plain-seed0-*/config.json"),
  "result of a point": in_sweep("runs/plain-seed1-*/result.json"),
  "rows of a point": in_sweep("runs/plain-seed0-*/metrics.jsonl", watch_sweep),
  "state of a point that is watched": in_sweep(
    "points/plain-seed1-*/state.json", watch_sweep
  ),
  "outcomes of runs together": one(
    "x.outcome.json", {"outcomes": OUTCOMES}, read_outcomes
  ),
  "speed of a machine": one(
    "x.json", {"flops_per_second": 1e12, "steps": [1, 2]},
    lambda folder: work.bench_rate(str(folder / "x.json")),
  ),
  "points csv": one(
    "x.csv", POINTS, lambda folder: points.from_csv(folder / "x.csv")
  ),
  "results jsonl": one(
    "x.jsonl", LINES, functools.partial(read_results, name="x.jsonl")
  ),
  "results csv": one(
    "x.csv", CSV, functools.partial(read_results, name="x.csv")
  ),
  "picture of a run": Format(
    good_samples, "one/samples/4.drawn.png", read_samples
  ),
  "sample of a run": Format(good_samples, "one/samples/4.txt", read_samples),
  "rows beside samples": Format(
    good_samples, "one/metrics.jsonl", read_samples
  ),
  "mark of a branch": Format(
    good_branch, "branch.json", lambda folder: branch.check(folder, branched())
  ),
  "rows of a trunk": one(METRICS, ROWS, copy_lines),
  "run that is repeated": Format(good_origin, "run.json", read_origin),
  "events of a run that is repeated": Format(
    good_origin, "events.jsonl", read_origin
  ),
  "config on a line": one(
    "config.json", skeleton().to_dict(), read_given
  ),
  "shard of tokens": Format(
    good_shard, "shard-00000.json",
    lambda folder: writer._finished(folder, 0),
  ),
  "shard of columns": Format(good_columns, "shard-00000.json", read_columns),
  "plan of a store": Format(
    good_plan, "aside/plan.json",
    lambda folder: writer.start_aside(folder / "aside", [Job((0,), 1)]),
  ),
  "TFDS folder's features": in_dataset("features.json"),
  "TFDS folder's info": in_dataset("dataset_info.json"),
  "TFDS folder's records": in_dataset("tiny-train.array_record-*"),
}  # fmt: skip


(
  test_a_damaged_file_is_read_or_refused,
  test_ten_thousand_damaged_files_are_read_or_refused,
) = laws(FORMATS)
