"""Rows are whole, in order, and outlive a full disk."""

import importlib
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from aigc_jax import files
from aigc_jax.errors import StorageFailure, WorkdirInUse
from aigc_jax.trainer import console, faults, journal, provenance
from aigc_jax.trainer.board import event_pb2, without
from aigc_jax.trainer.console import Console, short
from aigc_jax.trainer.consumed import Consumed
from aigc_jax.trainer.journal import Journal, rows

ROOT = Path(__file__).parents[2]


def written(workdir, step=0, **settings) -> Journal:
  return Journal(workdir, step=step, tensorboard=False, **settings)


def eaten(step: int) -> Consumed:
  return Consumed({"examples": 2 * step, "tokens": 8 * step}, 5 * step)


def fill(workdir, steps=range(1, 11)):
  with written(workdir) as said:
    for step in steps:
      said.row(step, {"train/loss": 1 / step}, eaten(step))
      if step % 5 == 0:
        said.row(step, {"eval/a/loss": 2.0}, eaten(step))
  return workdir / journal.METRICS


def test_every_row_carries_step_units_flops_seconds(tmp_path):
  for row in rows(fill(tmp_path)):
    assert list(row)[:5] == ["step", "examples", "tokens", "flops", "seconds"]
    assert row["tokens"] == 4 * row["examples"] == 8 * row["step"]


def test_a_continued_run_cuts_back_and_keeps_what_it_cut(tmp_path):
  path = fill(tmp_path)
  before = path.read_bytes()
  with written(tmp_path, step=5) as said:
    assert said.evaluated(5) and not said.evaluated(10)
    assert [row["step"] for row in rows(path)] == [1, 2, 3, 4, 5, 5]
    seconds = rows(path)[-1]["seconds"]
    assert said.row(6, {"train/loss": 0.5})["seconds"] >= seconds
  kept = path.read_bytes()
  assert before.startswith(kept[: kept.rindex(b'{"step":6')])
  assert len(rows(tmp_path / journal.CUT)) == 6


def test_rows_that_cannot_be_kept_are_not_cut(tmp_path, monkeypatch):
  path = fill(tmp_path)
  before = path.read_bytes()
  aside = tmp_path / journal.CUT
  aside.write_text("kept before\n")
  (tmp_path / faults.MARK).touch()
  plan = {"raise_at": [{"site": "journal/copy", "errno": 28}]}
  faults.enable(tmp_path, {faults.VARIABLE: json.dumps(plan)})
  with pytest.raises(StorageFailure, match="No space left.*Make room"):
    written(tmp_path, step=5)
  assert path.read_bytes() == before
  assert aside.read_text() == "kept before\n"
  for _ in range(2):  # what is kept already is not kept twice
    journal.copy_later(path, 5, aside)
  with written(tmp_path, step=5):
    assert len(rows(aside)) == 6
  assert path.read_bytes() + aside.read_bytes()[12:] == before


def test_an_evaluation_that_was_cut_off_counts_as_not_done(tmp_path):
  fill(tmp_path, range(1, 5))
  with written(tmp_path, step=4) as said:
    assert not said.evaluated(4)


def with_step(path, number: int, step) -> None:
  """The row of one line says another step than it did."""
  lines = path.read_text().splitlines()
  lines[number] = json.dumps(json.loads(lines[number]) | {"step": step})
  path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("wrong", [13, 900, 1, -3, None, "3", 2.5, True])
def test_one_wrong_digit_takes_no_other_row_with_it(tmp_path, wrong, caplog):
  path = fill(tmp_path)
  before = rows(path)
  with_step(path, 2, wrong)
  with written(tmp_path, step=10) as said:
    assert said.evaluated(10)
  assert rows(path) == before[:2] + before[3:]
  aside = json.loads((tmp_path / journal.CUT).read_text())
  assert aside["step"] == wrong and aside["train/loss"] == 1 / 3
  assert "line 3 is out of place" in caplog.text
  (event,) = rows(tmp_path / journal.EVENTS, journal.EVENT)
  assert event["event"] == "row_set_aside"


def test_a_row_out_of_place_is_told_also_where_later_ones_are_cut(tmp_path):
  path = fill(tmp_path)
  before = rows(path)
  with_step(path, 2, 13)
  with written(tmp_path, step=8):
    pass
  assert rows(path) == before[:2] + before[3:9]
  assert [r["step"] for r in rows(tmp_path / journal.CUT)] == [13, 9, 10, 10]
  assert len(rows(tmp_path / journal.EVENTS, journal.EVENT)) == 1


def test_half_a_line_of_a_dead_process_is_dropped(tmp_path):
  path = fill(tmp_path)
  with open(path, "a") as file:
    file.write('{"step":11,"train/lo')
  with written(tmp_path, step=10) as said:
    said.row(11, {"train/loss": 0.5})
  assert [json.loads(x)["step"] for x in path.read_text().splitlines()] == [
    1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 10, 11,
  ]  # fmt: skip


def test_numbers_are_exact_and_what_is_not_finite_is_null(tmp_path):
  value = np.float32(0.1)
  with written(tmp_path) as said:
    said.row(1, {"a": value, "b": np.float32("nan"), "c": np.uint32(2**32 - 1)})
  (row,) = rows(tmp_path / journal.METRICS)
  assert np.float32(row["a"]).tobytes() == value.tobytes()
  assert row["b"] is None and row["c"] == 2**32 - 1


def test_a_full_disk_delays_rows_and_loses_none(tmp_path, monkeypatch):
  path = tmp_path / journal.METRICS
  said = written(tmp_path)
  with monkeypatch.context() as full, open("/dev/full", "wb") as disk:
    write = os.write
    full.setattr(os, "write", lambda fd, data: write(disk.fileno(), data))
    for step in range(1, 4):
      said.row(step, {"train/loss": 1.0})
  assert rows(path) == []
  said.row(4, {"train/loss": 1.0})
  said.close()
  assert [row["step"] for row in rows(path)] == [1, 2, 3, 4]


def test_one_who_lost_the_directory_writes_no_row(tmp_path):
  def fence():
    raise WorkdirInUse("taken over")

  with written(tmp_path, fence=fence) as said, pytest.raises(WorkdirInUse):
    said.row(1, {})
  assert rows(tmp_path / journal.METRICS) == []


def test_tensorboard_forgets_the_steps_that_come_again(tmp_path):
  with Journal(tmp_path, step=5) as said:
    said.row(6, {"train/loss": 0.5})
  (path,) = (tmp_path / "tensorboard").iterdir()
  data, at, events = path.read_bytes(), 0, []
  while at < len(data):
    size = int.from_bytes(data[at : at + 8], "little")
    events.append(event_pb2.Event.FromString(data[at + 12 : at + 12 + size]))
    at += 16 + size
  assert events[0].file_version == "brain.Event:2"
  assert events[1].step == 6
  assert events[1].session_log.status == event_pb2.SessionLog.START
  tags = {v.tag: v.simple_value for e in events for v in e.summary.value}
  assert tags["train/loss"] == 0.5


def test_wandb_is_asked_for_and_continues_its_run(tmp_path, monkeypatch):
  calls = []
  fake = types.ModuleType("wandb")
  fake.init = lambda **settings: calls.append(settings)
  monkeypatch.setitem(sys.modules, "wandb", fake)
  for _ in range(2):
    journal.wandb_run(tmp_path, "p", {})
  assert calls[0]["id"] == calls[1]["id"] and calls[0]["resume"] == "allow"


def test_a_json_file_is_replaced_whole(tmp_path):
  files.write_json(tmp_path / "a.json", {"x": 1})
  with pytest.raises(ValueError):
    files.write_json(tmp_path / "a.json", {"x": float("nan")})
  assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}


def test_plain_lines_where_there_is_no_terminal(tmp_path, capsys):
  with written(tmp_path, total_steps=1000) as said:
    for step in range(1, 1001):
      said.row(step, {"train/loss": 1.5, "speed/tokens_per_second": 2e6})
    said.row(1000, {"eval/a/loss": 2.0})
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 3
  assert lines[0].startswith("step 1/1000  loss 1.5  2M tokens/s")
  assert lines[2] == "step 1000: a/loss 2"


def test_a_long_compilation_is_told_where_no_bar_does(capsys):
  plain = Console(4, 0)
  for seconds in range(0, 130, 3):
    plain.compiling(float(seconds))
  assert capsys.readouterr().err.splitlines() == [
    f"compiling the step: {seconds} s so far" for seconds in (12, 60, 120)
  ]


def test_time_left_counts_no_compilation(monkeypatch, capsys):
  clock = [0.0]
  monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
  shown = console.Console(total_steps=101, step=0, every_seconds=0.0)
  clock[0] = 600.0  # compiling
  for step in (1, 2, 3):
    shown.move(step)
    shown.row({"step": step, "train/loss": 1.0})
    clock[0] += 2.0
  lines = capsys.readouterr().err.splitlines()
  assert "left" not in lines[0]
  assert lines[2].endswith("  0:03:16 left")


@pytest.mark.parametrize(
  "value, text", [(999, "999"), (1234567, "1.23M"), (2.5e13, "25T")]
)
def test_short_numbers(value, text):
  assert short(value) == text


def test_secrets_are_not_recorded(monkeypatch):
  monkeypatch.setenv("JAX_SECRET_TOKEN", "qqqq")
  monkeypatch.setenv("WANDB_API_KEY", "wwww")
  monkeypatch.setenv("XLA_FLAGS", "--xla_something=1")
  found = provenance.describe(
    argv=["x", "--hf_token=eeee", "--api_key", "rrrr", "--tokenizer=bytes"],
    mesh={"data": 1},
    config={"password": "tttt", "url": "https://me:yyyy@host/", "tokens": 5},
    note="hf_0123456789abcdefghij",
  )
  text = json.dumps(found)
  for secret in ("qqqq", "wwww", "eeee", "rrrr", "tttt", "yyyy", "hf_0123"):
    assert secret not in text
  assert found["argv"][-1] == "--tokenizer=bytes"
  assert found["config"]["tokens"] == 5
  assert found["environment"]["XLA_FLAGS"] == "--xla_something=1"
  assert found["packages"]["jax"] and len(found["code"]["sha256"]) == 64


def events_in(folder):
  """The events of the one file of a TensorBoard folder."""
  (path,) = folder.iterdir()
  data, found = path.read_bytes(), []
  while data:
    size = int.from_bytes(data[:8], "little")
    found.append(event_pb2.Event.FromString(data[12 : 12 + size]))
    data = data[16 + size :]
  return found


def test_tensorboard_has_curves_and_the_config_and_no_columns(tmp_path):
  with Journal(tmp_path) as journal:
    journal.config(0, {"seed": 3})
    journal.row(1, {"train/loss": 1.0, "data/batch_hash": 77}, eaten(1))
  values = [
    v for e in events_in(tmp_path / "tensorboard") for v in e.summary.value
  ]
  assert [v.tag for v in values] == ["config", "train/loss"]
  assert values[0].metadata.plugin_data.plugin_name == "text"
  assert b'"seed": 3' in values[0].tensor.string_val[0]


def test_gzip_and_xz_are_no_progress(tmp_path, capsys):
  console = Console(total_steps=2, step=0, every_seconds=0)
  rows = {"eval/a/loss": 2.0, "eval/a/gzip_bits_per_byte": 1.0}
  console.row({"step": 1} | rows | {"eval/a/xz_bits_per_byte": 1.0})
  assert capsys.readouterr().err == "step 1: a/loss 2\n"


def noted(workdir) -> dict:
  """What a checkpoint would note of the rows that stand there."""
  with written(workdir, step=10) as said:
    return json.loads(json.dumps(said.written()))


def goes_on(workdir, then, step=10) -> list[dict]:
  """What the journal of a run that goes on tells of its rows."""
  with written(workdir, step=step) as said:
    said.compare(step, then)
  return rows(workdir / journal.EVENTS, journal.EVENT)


def test_a_row_taken_out_of_the_middle_is_told_when_the_run_goes_on(
  tmp_path, caplog
):
  path = fill(tmp_path)
  then = noted(tmp_path)
  assert then["trained"] == [[1, 10, 1]] and then["evaluated"] == [[5, 10, 5]]
  assert goes_on(tmp_path, then) == []
  lines = path.read_text().splitlines(keepends=True)
  path.write_text("".join(lines[:2] + lines[3:5] + lines[6:]))
  (event,) = goes_on(tmp_path, then)
  assert event["event"] == "rows_gone" and event["step"] == 10
  assert "12 rows then, 10 now" in event["reason"]
  assert "of training, step 3" in event["reason"]
  assert "of evaluation, step 5" in event["reason"]
  assert event["reason"] in caplog.text
  assert len(rows(path)) == 10


def test_a_number_that_was_changed_later_is_told(tmp_path):
  path = fill(tmp_path)
  then = noted(tmp_path)
  path.write_text(path.read_text().replace("0.25", "0.75"))
  (event,) = goes_on(tmp_path, then)
  assert "the same steps, and other numbers" in event["reason"]


def test_rows_that_came_after_a_save_are_no_difference(tmp_path):
  """An evaluation that a stop cut off is done when the run goes on."""
  with written(tmp_path) as said:
    said.row(1, {"train/loss": 1.0})
    then = said.written()
    said.row(1, {"eval/a/loss": 2.0})
  assert goes_on(tmp_path, then, step=1) == []


STRANGE_RUNS = ([[0, 2**52, 1]], [[5]], [[1, 2, 3, 4]], [["a"]], 3)


@pytest.mark.parametrize("runs", STRANGE_RUNS)
def test_strange_notes_of_rows_neither_fail_nor_fill_the_memory(tmp_path, runs):
  fill(tmp_path)
  goes_on(tmp_path, noted(tmp_path) | {"count": 99, "trained": runs})


def test_what_a_board_needs_is_imported_without_what_takes_seconds(monkeypatch):
  """tensorboardX imports PyTorch wherever it is installed."""
  monkeypatch.delitem(sys.modules, "torch", raising=False)
  with without("torch"):
    with pytest.raises(ImportError):
      importlib.import_module("torch")
  assert "torch" not in sys.modules
  with without("json"):  # what is there already stays
    assert importlib.import_module("json") is json


@pytest.mark.slow
def test_a_board_does_not_import_a_package_that_lies_there(tmp_path):
  (tmp_path / "torch.py").write_text("raise SystemExit('imported')")
  subprocess.run(
    [sys.executable, "-c", "import aigc_jax.trainer.board"], check=True,
    env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
  )  # fmt: skip
