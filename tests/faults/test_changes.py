"""What may change between two starts of a run, and what must be allowed."""

import json
import shutil
import signal

import pytest

from aigc_jax.errors import BadConfig
from aigc_jax.scaling import compare
from aigc_jax.trainer import faults, manifest
from tests.faults.harness import (
  assert_twins,
  events,
  forge,
  last_step,
  rows,
  saved,
  timeless,
)

REFUSED = {
  "another width": (
    ["--config.model.dim=32"],
    ["model.dim: 16 -> 32", "another --workdir"],
  ),
  "another learning rate": (
    ["--config.optim.learning_rate=0.5"],
    ["learning_rate: 0.01 -> 0.5", "--allow_change=optim.learning_rate"],
  ),
  "another length of rows": (
    ["--config.data.length=8"],
    ["data.length: 16 -> 8", "--allow_data_change"],
  ),
  "another tokenizer": (
    ["--config.data.tokenizer=sentencepiece"],
    ["data.tokenizer: 'bytes' -> 'sentencepiece'", "--allow_data_change"],
  ),
  "a key that does not exist": (
    ["--config.optim.learning_rat=0.5"],
    ["learning_rat"],
  ),
}


@pytest.mark.slow
def test_a_config_that_does_not_fit_is_refused(start, midway, tmp_path, record):
  runs = {}
  for i, (what, (flags, _)) in enumerate(REFUSED.items()):
    shutil.copytree(midway, tmp_path / str(i))
    runs[what] = start(tmp_path / str(i), *flags)
  for what, run in runs.items():
    run.done(BadConfig.code)
    assert "Traceback" not in run.err
    for words in REFUSED[what][1]:
      assert words in run.err, what
    assert rows(run.workdir) == rows(midway)
    record(
      "config changed on resume", what,
      "status 78, names what and the way out",
      run.ended - run.began,
    )  # fmt: skip


@pytest.mark.slow
def test_a_change_that_is_allowed_is_journalled(start, copy, twin, record):
  flags = ["--config.optim.learning_rate=0.02", "--config.log.every_steps=2"]
  stood = last_step(copy)
  run = start(copy, *flags, "--allow_change=optim.learning_rate")
  run.row(stood)
  seconds = run.seconds
  run.done()
  changed = {row["key"]: row["new"] for row in events(copy, "change")}
  assert changed["optim.learning_rate"] == 0.02
  assert changed["log.every_steps"] == 2
  assert (copy / "config.before-12.json").is_file()
  report = compare.compare(copy, twin)
  differing = {change.key for change in report.config}
  assert "optim.learning_rate" in differing
  assert not report.data and not report.code
  assert report.bitwise_until == 12 and report.parts_at == 14
  record(
    "config changed on resume", "another learning rate, with --allow_change",
    "goes on, journalled, the old config is kept", seconds,
  )  # fmt: skip


@pytest.mark.slow
def test_another_batch_goes_on_at_the_example(start, copy, twin, record):
  """Sixteen rows a step, from step 12 on eight: no window is seen twice."""
  flags = [
    "--config.data.batch=8",
    "--config.steps=16",
    "--config.compute.microbatches=1",
  ]
  allow = ["--allow_data_change", "--allow_change=steps,compute.microbatches"]
  plan = {"die_at": [{"site": "save/begin", "step": 15}]}
  start(copy, *flags, *allow, plan=plan).done(-signal.SIGKILL)
  start(copy, *flags, *allow).done()
  last = manifest.read(copy / "checkpoints" / "16")["meta"]
  assert last["consumed"]["units"] == {"examples": 224, "tokens": 3584}
  assert last["position"] == 12 * 16 + 4 * 8
  assert last["batches"] == [[0, 16], [192, 8]]
  found = [row["tokens"] for row in rows(copy)]
  assert found == sorted(found)
  before, after = (
    next(row for row in rows(x) if row["step"] == 12) for x in (copy, twin)
  )
  assert before["flops"] == after["flops"]
  record(
    "batch changed on resume", "16 rows a step, from step 12 on 8, and a kill",
    "goes on at the example, tokens and FLOPs are added to", None,
  )  # fmt: skip


@pytest.mark.slow
def test_data_that_lies_elsewhere_is_the_same_data(
  start, copy, twin, text, tmp_path, record
):
  elsewhere = tmp_path / "else where"
  shutil.copytree(text, elsewhere)
  start(copy, text=elsewhere).done()
  assert_twins(copy, twin)
  assert events(copy, "change")[-1]["key"] == "data.sources"
  record(
    "data moved on resume", "both texts in another folder",
    "equal fingerprints: goes on, equals the twin, journalled", None,
  )  # fmt: skip


@pytest.mark.slow
def test_a_checkpoint_of_before_consumption_was_counted(
  start, copy, twin, record
):
  def older(content):
    for name in ("consumed", "position", "batches", "means"):
      del content["meta"][name]

  forge(copy / "checkpoints" / "12", older)
  run = start(copy).done()
  assert "Taken from its rows: {'examples': 192, 'tokens': 3072}" in run.err
  (derived,) = events(copy, "derived")
  assert derived["position"] == 192
  assert_twins(copy, twin)
  record(
    "work directory of an older version", "a checkpoint without a count",
    "consumption taken from its rows, told, goes on, equals the twin", None,
  )  # fmt: skip


@pytest.mark.slow
def test_one_wrong_digit_in_the_metrics(start, copy, twin, record):
  path = copy / "metrics.jsonl"
  path.write_text(path.read_text().replace('{"step":3,', '{"step":13,', 1))
  run = start(copy).done()
  assert "is out of place" in run.err
  assert len(events(copy, "row_set_aside")) == 1
  assert [r["step"] for r in timeless(copy) if r not in timeless(twin)] == []
  assert len(rows(copy)) == len(rows(twin)) - 1
  record(
    "metrics.jsonl damaged", "one digit: the row of step 3 says 13",
    "this row alone is set aside and told, goes on, all others equal the twin",
    None,
  )  # fmt: skip


@pytest.fixture
def edited(text):
  """One of the sources with one letter changed; put back afterwards."""
  path = text / "plain.txt"
  old = path.read_text()
  path.write_text("z" + old[1:])
  yield path
  path.write_text(old)


@pytest.mark.slow
def test_data_that_changed_is_refused_or_a_fork(start, copy, edited, record):
  before = rows(copy)
  about = json.loads((copy / "run.json").read_text())
  run = start(copy).done(BadConfig.code)
  assert "the data has changed since step 12" in run.err
  assert f"data: {about['data_fingerprint'][:12]} ->" in run.err
  assert "--allow_data_change" in run.err
  assert rows(copy) == before
  record(
    "data changed on resume", "one letter of a source file",
    "status 78, names both fingerprints and the flag", run.ended - run.began,
  )  # fmt: skip
  stood = last_step(copy)
  again = start(copy, "--allow_data_change")
  again.row(stood)
  seconds = again.seconds
  again.done()
  (fork,) = events(copy, "fork")
  assert fork["step"] == 12
  assert fork["old"]["data"] != fork["new"]["data"]
  record(
    "data changed on resume", "one letter, with --allow_data_change",
    "goes on, the fork is journalled", seconds,
  )  # fmt: skip


@pytest.mark.slow
def test_held_out_data_that_changed_is_refused(start, copy, text, record):
  """The training data is as it was; only what is measured would be another."""
  path = text / "plain.txt"
  old = path.read_text()
  path.write_text(old[:-2] + "z\n")
  try:
    run = start(copy).done(BadConfig.code)
  finally:
    path.write_text(old)
  assert "the data has changed since step 12" in run.err
  assert "evaluate.heldout:" in run.err and "\n  data:" not in run.err
  record(
    "data changed on resume", "the last letter, of a held-out set only",
    "status 78, names the set and the flag", run.ended - run.began,
  )  # fmt: skip


@pytest.mark.slow
def test_another_version_of_a_package_is_told(start, copy, twin, record):
  def older(content):
    content["meta"]["packages"]["jax"] = "0.0.1"

  forge(copy / "checkpoints" / "12", older)
  run = start(copy).done()
  assert (
    "not the program of step 12 any more, so results may differ: packages"
    in run.err
  )
  (old,) = [
    row["old"] for row in events(copy, "change") if row["key"] == "packages.jax"
  ]
  assert old == "0.0.1"
  assert_twins(copy, twin)
  record(
    "another version of a package on resume", "a forged version of jax",
    "goes on, said on the console and journalled", None,
  )  # fmt: skip


@pytest.mark.slow
def test_a_run_that_goes_back(start, copy, twin, record):
  """Two steps back, and again after the end."""
  back = start(copy, "--rewind=8").done()
  assert "error" not in back.err and "checkpoints/10.rewound-*" in back.out
  assert saved(copy) == [2, 4, 6, 8] and last_step(copy) == 8
  start(copy).done()
  assert events(copy, "restart")[-1]["step"] == 8
  assert_twins(copy, twin)
  start(copy, "--rewind=15").done()
  start(copy).done()
  assert_twins(copy, twin)
  gone = [(row["step"], row["set_aside"]) for row in events(copy, "rewind")]
  assert gone == [(8, [10, 12]), (15, [20])]
  run = start(copy, "--rewind=7").done(BadConfig.code)
  assert "no whole checkpoint of step 7 of this run (there" in run.err
  record(
    "going back", "--rewind to an older checkpoint, also after the end",
    "later ones and their rows are kept aside, journalled, equals the twin",
    None,
  )  # fmt: skip


@pytest.mark.slow
def test_hooks_for_tests_are_refused_in_a_normal_run(start, workdir):
  run = start(workdir, environ={faults.VARIABLE: "{}"}).done(BadConfig.code)
  assert "has no file FAULTS_ALLOWED" in run.err


@pytest.mark.slow
def test_a_held_out_set_that_is_read_otherwise_is_no_other_data(start, copy):
  """Also where the run was stopped before a checkpoint knew of it."""
  otherwise = "--config.evaluate.first.batches=2"
  plan = {"die_at": [{"site": "save/begin", "step": 15}]}
  start(copy, otherwise, plan=plan).done(-signal.SIGKILL)
  start(copy, otherwise).done()
