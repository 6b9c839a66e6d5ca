"""No file, however damaged or strange, ends a command in a traceback.

Those of images and sound are in test_hostile_media.py.
"""

import contextlib
import copy
import functools
import gzip
import io
import json
import logging
import os
import random
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from aigc_jax import data, evaluate, export, generate, run, train
from aigc_jax.data import sentences, writer
from aigc_jax.data.sources import open_source
from aigc_jax.data.windows import eval_of
from aigc_jax.errors import Refusal
from aigc_jax.evaluators import formats
from aigc_jax.evaluators.choices import Estimate
from aigc_jax.hf import card
from aigc_jax.presets import skeleton
from aigc_jax.run import settings
from aigc_jax.run.origin import check_saved
from aigc_jax.sampling.prompts import prompts_of
from aigc_jax.scaling import compare, curves
from aigc_jax.scaling.ablation import ablation
from aigc_jax.scaling.arms import arms_of
from aigc_jax.scaling.reference import against, read_reference
from aigc_jax.scaling.runs import open_runs
from aigc_jax.scaling.table import markdown
from aigc_jax.trainer import (
  changes,
  history,
  journal,
  lock,
  manifest,
  provenance,
)
from aigc_jax.trainer.consumed import Consumed
from aigc_jax.trainer.identity import Identity
from aigc_jax.trainer.log import Log
from aigc_jax.trainer.step import MEANS
from tests.data.texts import prose, text_source
from tests.hostile import FEW, Format, laws, try_all, unheard

# Token stores.


def good_store(folder: Path) -> None:
  (folder / "x.txt").write_text(prose(1, 40))
  source = open_source(text_source(folder / "x.txt"), validation=0.0,
                       root=folder)  # fmt: skip
  tokenizer = data.load_tokenizer("bytes")
  writer.write(
    folder / "store", source, "all", tokenizer, workers=0, say=silent
  )
  data.Store(folder / "store").check()
  (folder / "store.checked").write_text(
    json.dumps(
      {"seal": data.Store(folder / "store").manifest["seal"],
       "files": {"tokens-00000.npy": [1, 2, 3, 4]}}
    )
  )  # fmt: skip


def silent(text) -> None:
  """Says nothing."""


def read_store(folder: Path) -> None:
  store = data.Store(folder / "store")
  store._large, store._checked = True, store._remembered()
  store.check()
  found = store.read(0, store.tokens)
  assert found.size == store.tokens and found.max() <= store.max_token
  store.document(store.documents - 1)
  task = dict(kind="next_token")
  eval_of([store], data.load_tokenizer("bytes"), task=task, batch=2,
               length=8, segments=False).rows(0, slice(None))  # fmt: skip


# Text.

ROWS = [{"text": f"row {i} é", "n": i} for i in range(20)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def texts(name: str, content: bytes) -> Format:
  def good(folder: Path) -> None:
    (folder / name).write_bytes(content)

  def read(folder: Path) -> None:
    source = open_source(text_source(folder / name), validation=0.1,
                         root=folder)  # fmt: skip
    for split in source.splits:
      for job in source.jobs(split):
        list(source.read(job, split))
    writer._nothing(source, "train")

  return Format(good, name, read)


def parquet() -> bytes:
  from pyarrow import Table
  from pyarrow import parquet as pq

  out = io.BytesIO()
  pq.write_table(Table.from_pylist(ROWS), out)
  return out.getvalue()


def read_fingerprint(folder: Path) -> None:
  source = open_source(text_source(folder / "x.txt"), validation=0.1,
                       root=folder / "root")  # fmt: skip
  shutil.copy(folder / "kept.json", folder / "root" / "fingerprints" /
              f"{source.state[:32]}.json")  # fmt: skip
  assert len(source.fingerprint) == 64


def good_fingerprint(folder: Path) -> None:
  (folder / "root" / "fingerprints").mkdir(parents=True)
  (folder / "x.txt").write_text(prose(1, 20))
  (folder / "kept.json").write_text(json.dumps({"content": "0" * 64}))


# Tokenizers.


def good_tokenizer(folder: Path) -> None:
  made = sentences.train([prose(seed, 200) for seed in range(4)], 400, "prose")
  data.save(made, folder)


# Work directories.


# What reports ask of a config, and little more.
LITTLE = {
  "seed": 0, "steps": 6, "data": {"batch": 2, "tokenizer": "bytes"},
  "model": {"kind": "decoder", "dim": 8}, "optim": {"learning_rate": 1e-3},
}  # fmt: skip


def good_reports(folder: Path) -> None:
  """`good_run` with configs that are soon read."""
  good_run(folder)
  for seed, name in enumerate(("one", "two")):
    path = folder / name / "config.json"
    path.write_text(json.dumps(LITTLE | {"seed": seed}))


def good_run(folder: Path) -> None:
  for name, shift in (("one", 0.0), ("two", 0.25)):
    workdir = folder / name
    workdir.mkdir()
    config = copy.deepcopy(own_config())
    config["seed"] = int(4 * shift)
    config["steps"] = 6
    files = {
      "config.json": config,
      "result.json": {"step": 6, "digest": [17, 31], "eval/heldout/loss": 2.5},
      "run.json": about(config["seed"]),
      "evaluate/6.json": {
        "model": "one", "step": 6,
        "scores": {"heldout": {"loss": {"value": 2.5, "items": 9}}},
      },
    }  # fmt: skip
    (workdir / "evaluate").mkdir()
    for file, content in files.items():
      (workdir / file).write_text(json.dumps(content, indent=1))
    rows = [
      {"step": i, "tokens": 32 * i, "flops": 1e6 * i, "seconds": 0.5 * i,
       "train/loss": 3.0 - i / 8 + shift, "data/batch_hash": 77 + i}
      for i in range(1, 7)
    ]  # fmt: skip
    rows[-1] |= {"eval/heldout/loss": 2.5 + shift, "norm/grad": None}
    events = [{"time": "t", "event": "start", "step": None},
              {"time": "t", "event": "finished", "step": 6}]  # fmt: skip
    for file, found in (("metrics", rows), ("events", events)):
      text = "".join(json.dumps(row) + "\n" for row in found)
      (workdir / f"{file}.jsonl").write_text(text)
  (folder / "reference.json").write_text(
    json.dumps(
      {
        "metrics": {
          "train/loss": {"n": 3, "step": [1, 2, 3], "mean": [3.0, 2.9, 2.8],
                         "sigma": [0.1, 0.1, 0.2]}
        },
        "about": {"code": None, "heldout_fingerprints": {"evaluate.heldout":
                  "ab"}, "seeds": [0, 1, 2], "config": {}},
      }
    )
  )  # fmt: skip


@functools.cache
def about(seed: int) -> dict:
  found = provenance.describe(
    argv=["train"], mesh={"data": 1}, parameters=3, flops_per_token=1.0,
    seed=seed, data_fingerprint="ab", tokenizer_fingerprint="cd",
    heldout_fingerprints={"evaluate.heldout": "ab"},
    heldout_entries={"evaluate.heldout": "ef"},
  )  # fmt: skip
  found["packages"] = {"jax": "0.1"}
  found["jax"]["config"] = {"jax_enable_x64": False}
  found["environment"] = {"XLA_FLAGS": "", "HOME": None}
  return found


def read_reports(folder: Path) -> None:
  one, two = folder / "one", folder / "two"
  print(compare.as_text(compare.compare(one, two)))
  runs = open_runs([str(one), str(two)])
  for r in runs:
    assert r.status
    r.series("train/loss", "tokens")
  arms = arms_of(runs)
  print(markdown(ablation(arms, metric="train/loss")))
  for r in runs:
    against(r, read_reference(folder / "reference.json"))


opened = functools.cache(open_runs)


def read_against(folder: Path) -> None:
  reference = read_reference(folder / "reference.json")
  for r in opened((str(folder / "one"), str(folder / "two"))):
    against(r, reference)


def read_status(folder: Path) -> None:
  for r in open_runs([str(folder / "one")]):
    assert r.status


def read_journal(folder: Path) -> None:
  with journal.Journal(folder / "one", step=4, tensorboard=False) as found:
    found.evaluated(4)


@functools.cache
def own_config() -> run.Config:
  return run.read(skeleton())


def read_result(folder: Path) -> None:
  found = run.result_in(folder / "one")
  print(train.footer(folder / "one", found, own_config()))


def read_record(folder: Path) -> None:
  found = run.provenance_in(folder / "one")
  card.write(
    name="x", architecture="y", library="l", pipeline="z", parameters=3,
    dtype="float32", step=6, metrics={}, record=found, config={},
  )  # fmt: skip


def read_config(folder: Path) -> None:
  found = run.config_in(folder / "one")
  run.fingerprint(found)
  changes.changes(found, run.config_in(folder / "two"))


def read_whole_config(folder: Path) -> None:
  config = run.read(run.config_in(folder / "one"))
  run.check_evaluators(config)
  run.objective_of(config)
  run.model_of(config)
  run.make_mesh(config)


def read_used_config(folder: Path) -> None:
  config = run.usable_config_in(folder / "one")
  kwargs = config["model"] | {"unroll": None, "remat": "none"}
  model = run.model_of(config | {"model": kwargs})
  tokenizer = data.load_tokenizer("bytes")
  loaded = run.Loaded(model, None, tokenizer, config, None, 6, "one")
  assert loaded.length >= 0
  generate.note_length(loaded, 9)
  run.check_data(config)  # as before an export
  assert export.length_of(config, tokenizer) > 0
  run.check_evaluators(config)
  run.evaluations(config)
  run.objective_of(config)
  run.data_of(config).arguments()


# Checkpoints, locks, prompts.

OURS = Identity("0123456789abcdef", legs=(("a1", 4), ("b7", None)))


def good_checkpoint(folder: Path) -> None:
  good_run(folder)
  config = run.config_in(folder / "one")
  meta = {
    "config_sha256": "ab", "data_fingerprint": "cd", "hlo_sha256": None,
    "heldout_fingerprints": {"evaluate.heldout": "ef"},
    "heldout_entries": {"evaluate.heldout": "01"},
    "tokenizer_fingerprint": "23", "each_step": {"units": {"examples": 2}},
    "model": config["model"], "packages": {"jax": "0.1"},
    "code_sha256": "45", "numerics": provenance.numerics(),
    "skipped_in_a_row": 0, "position": 8, "batches": [[0, 2]],
    "consumed": Consumed({"examples": 8}, 10**20).as_meta(),
    "means": {"train/loss": [3.5, 2.0]},
    "rows": {"count": 4, "sha256": "0" * 64, "trained": [[1, 4, 1]],
             "evaluated": []},
  }  # fmt: skip
  step = folder / "one/checkpoints/4"
  (step / "arrays").mkdir(parents=True)
  (step / "arrays/data").write_bytes(b"abcd")
  leaves = manifest.table(STATE)
  for leaf in leaves:
    leaf["digest"] = [1, 2]
  manifest.write(step, step=4, leaves=leaves, meta=meta, run=OURS)


STATE = {"params": {"w": np.zeros((2, 3), np.float32)}, "step": np.int32(4)}


def read_checkpoint(folder: Path) -> None:
  """All that is read of a manifest before its arrays are."""
  workdir = folder / "one"
  saved = history.checkpoints_in(workdir, OURS)
  saved.latest()
  run.heldout_prints(str(workdir), 4)
  content = saved.manifest(4)
  if content is None:
    return
  manifest.digest_version(content)
  manifest.differences(content, manifest.table(STATE), "")
  meta, config = content["meta"], run.config_in(workdir)
  run.check_resumed(config["model"], ["model.rotary_base"], content)
  check_saved(str(workdir), config, None, content)
  now = {"packages": {"jax": "2"}, "code_sha256": "x", "numerics": {}}
  history.program_changes(content, now, tuple(now))
  changes.data_changes(meta, {"data": "x"}, {}, True, "the start")
  with journal.Journal(workdir, step=4, tensorboard=False) as found:
    log = Log(
      found, start=4, steps=6, every=1, each=Consumed({"examples": 2}, 3),
      peak_flops=None, most_skipped=3, before=meta,
    )  # fmt: skip
    means = np.ones((1, 2), np.float32)
    log.step(5, 1, {"train/loss": np.float32(1), MEANS: means})
    log.catch_up()
    json.dumps(log.meta(5, {}))


def good_lock(folder: Path) -> None:
  holder = {
    "host": "there", "pid": os.getpid(), "boot_id": lock.boot_id(),
    "token": "ab", "since": "2026-01-01T00:00:00+0000",
  }  # fmt: skip
  (folder / "LOCK").write_text(json.dumps(holder))


def read_stolen(folder: Path) -> None:
  with lock.Lock(folder, steal=True) as held:
    held.check()


def read_lock(folder: Path) -> None:
  with lock.Lock(folder) as held:
    held.check()


def prompts(name: str, content: str, chats: bool) -> Format:
  return Format(
    lambda folder: (folder / name).write_text(content),
    name,
    lambda folder: prompts_of([], str(folder / name), chats),
  )


PROMPTS = "".join(json.dumps({"prompt": f"é {i}"}) + "\n" for i in range(4))
TALKS = "".join(
  json.dumps({"messages": [{"role": "user", "content": f"é {i}"}]}) + "\n"
  for i in range(3)
)


class Loaded(NamedTuple):
  name: str
  step: int
  digest: str = "0" * 16


def read_scores(folder: Path) -> None:
  loss = {"heldout": {"loss": Estimate(1.0, 0.1, 9)}}
  evaluate.save(folder / "one/evaluate/6.json", Loaded("one", 6), loss)


def in_run(file: str, read) -> Format:
  return Format(good_run, file, read)


def in_reports(file: str, read) -> Format:
  return Format(good_reports, file, read, few=30)


TASK = [
  {"context": "a b", "choices": ["c", "d"], "label": 1},
  {"context": "e", "choices": ["f", "g", "h"], "label": 0, "between": ""},
]


def good_task(folder: Path) -> None:
  lines = (json.dumps(row) + "\n" for row in TASK)
  (folder / "task.jsonl").write_text("".join(lines))


FORMATS = {
  "store manifest": Format(good_store, "store/manifest.json", read_store),
  "store tokens": Format(good_store, "store/tokens-00000.npy", read_store),
  "store offsets": Format(good_store, "store/offsets-00000.npy", read_store),
  "store checked": Format(good_store, "store.checked", read_store),
  "text plain": texts("x.txt", prose(2, 8).encode()),
  "text jsonl": texts("x.jsonl", LINES),
  "text jsonl.gz": texts("x.jsonl.gz", gzip.compress(LINES, mtime=0)),
  "text json": texts("x.json", json.dumps(ROWS).encode()),
  "text json lines": texts("x.json", LINES),
  "text parquet": texts("x.parquet", parquet()),
  "text fingerprint": Format(good_fingerprint, "kept.json", read_fingerprint),
  "tokenizer manifest": Format(good_tokenizer, "manifest.json", data.load),
  "tokenizer model": Format(good_tokenizer, "tokenizer.model", data.load),
  "metrics in reports": in_reports("one/metrics.jsonl", read_reports),
  "metrics in a journal": in_run("one/metrics.jsonl", read_journal),
  "events": in_reports("one/events.jsonl", read_status),
  "result": in_run("one/result.json", read_result),
  "result in reports": in_reports("one/result.json", read_reports),
  "run in reports": in_reports("one/run.json", read_reports),
  "run in a card": in_run("one/run.json", read_record),
  "reference": in_reports("reference.json", read_against),
  "config": in_run("one/config.json", read_config),
  "config read again": in_run("one/config.json", read_whole_config),
  "config of a model in use": in_run("one/config.json", read_used_config),
  "config in reports": Format(
    good_run, "one/config.json", read_reports, few=30
  ),
  "scores": in_run("one/evaluate/6.json", read_scores),
  "checkpoint manifest": Format(
    good_checkpoint, "one/checkpoints/4/manifest.json", read_checkpoint
  ),
  "lock": Format(good_lock, "LOCK", read_lock),
  "lock that is taken over": Format(good_lock, "LOCK", read_stolen),
  "prompts": prompts("in.txt", "a\nb é\n\nc\n", chats=False),
  "prompts jsonl": prompts("in.jsonl", PROMPTS, chats=False),
  "conversations": prompts("in.jsonl", TALKS, chats=True),
  "task": Format(
    good_task, "task.jsonl", lambda folder: formats.read(folder / "task.jsonl")
  ),
}


(
  test_a_damaged_file_is_read_or_refused,
  test_ten_thousand_damaged_files_are_read_or_refused,
) = laws(FORMATS)


def test_a_careless_reader_is_found(tmp_path, unheard):
  def careless(folder):
    return json.loads((folder / "one/result.json").read_text())["step"] + 1

  form = in_run("one/result.json", careless)
  with pytest.raises(AssertionError, match="kinds of errors"):
    try_all(form, "careless", tmp_path, FEW)
