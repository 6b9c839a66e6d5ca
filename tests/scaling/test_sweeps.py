"""What becomes of the points of a sweep: on disk, and run again."""

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import aigc_jax
from aigc_jax import files, sharding
from aigc_jax.errors import BadConfig, StorageFailure
from aigc_jax.scaling.sweeps import (
  joint_runs,
  launch,
  ledger,
  progress,
  slurm,
  work,
)
from aigc_jax.scaling.sweeps.plan import Cost
from aigc_jax.trainer import joint, lock
from tests.scaling import sweeping
from tests.scaling.sweeping import attempts, carry_out, plan_of, planned


@pytest.fixture
def out(tmp_path):
  return tmp_path / "out"


def states(found) -> list[str]:
  return [state.state for state in found]


def test_a_point_gets_a_config_a_command_and_a_work_directory(out, tmp_path):
  point = planned(1)
  index = ledger.write(plan_of(point), out)
  (entry,) = index.entries
  assert states(carry_out(index, sweeping.line(tmp_path))) == ["done"]
  (words,) = attempts(entry)
  assert words.split()[1:3] == ["-m", "aigc_jax.train"]
  assert f"--workdir={entry.workdir.absolute()}" in words
  assert files.read_json(entry.folder / "config.json") == point.config
  assert work.value_of(entry, index.metric) == 3.0


def test_what_is_done_is_not_done_again_however_the_sweep_changes(
  out, tmp_path
):
  line = sweeping.line(tmp_path)
  first = ledger.write(plan_of(planned(0), planned(1)), out)
  carry_out(first, line)
  changed = plan_of(planned(2), planned(1), planned(0, arm="renamed"))
  second = ledger.write(changed, out)
  assert [e.seed for e in second.entries] == [2, 1, 0]
  assert second.entries[2].arm == "renamed"  # and yet the same point
  assert second.entries[2].name == first.entries[0].name
  assert states(carry_out(second, line)) == ["done"] * 3
  assert [len(attempts(e)) for e in second.entries] == [1, 1, 1]


def test_a_point_that_fails_is_recorded_and_the_rest_goes_on(out, tmp_path):
  line = sweeping.line(tmp_path, {"0": [78, 0]})
  index = ledger.write(plan_of(planned(0), planned(1)), out)
  found = carry_out(index, line)
  assert states(found) == ["failed", "done"]
  assert found[0].status == 78 and len(found[0].error) == 20
  assert found[0].error[-1] == "died of 78"
  assert "line 11" in found[0].error and "line 10" not in found[0].error


def test_the_same_line_again_runs_what_failed_with_its_stored_command(
  out, tmp_path
):
  line = sweeping.line(tmp_path, {"0": [1, 1, 0]})
  plan = plan_of(planned(0), planned(1))
  index = ledger.write(plan, out)
  carry_out(index, line)
  stored = {
    path: path.read_bytes()
    for name in ("config.json", "point.json")
    for path in out.glob(f"points/*/{name}")
  }
  assert states(carry_out(index, line, retry=False)) == ["failed", "done"]
  found = carry_out(ledger.write(plan, out), line)
  assert states(found) == ["failed", "done"]
  found = carry_out(ledger.write(plan, out), line)
  assert states(found) == ["done", "done"]
  assert [len(s.attempts) for s in found] == [3, 1]
  assert all(path.read_bytes() == data for path, data in stored.items())
  first, *others = attempts(index.entries[0])
  assert others == [first, first]


@pytest.mark.parametrize(
  "change",
  [
    lambda words: ["sh", "-c", "touch hacked"],
    lambda words: [*words[:2], "http.server", *words[3:]],
    lambda words: [*words[:2], "aigc_jax.train", "--with=x.py", *words[4:]],
    lambda words: [*words, "--with=x.py"],
    lambda words: [*words[:3], "--config=x.py", words[4]],
    lambda words: [*words[:4], "--workdir=/elsewhere"],
    lambda words: words[:4],
    lambda words: [],
  ],
)
def test_a_command_that_trains_no_point_is_never_run(change, out, tmp_path):
  index = ledger.write(plan_of(planned(0)), out)
  path = index.entries[0].folder / "point.json"
  stored = json.loads(path.read_text())
  stored["command"] = change(stored["command"])
  path.write_text(json.dumps(stored))
  with pytest.raises(BadConfig, match="not the one that trains this point"):
    carry_out(index, launch.LOCAL)
  with pytest.raises(BadConfig, match="not the one that trains this point"):
    carry_out(index, sweeping.line(tmp_path))
  assert not attempts(index.entries[0])
  path.unlink()  # the way out
  index = ledger.write(plan_of(planned(0)), out)
  assert states(carry_out(index, sweeping.line(tmp_path))) == ["done"]


def test_a_point_is_run_by_the_python_that_asks_for_it(out):
  entry = ledger.write(plan_of(planned(0)), out).entries[0]
  path = entry.folder / "point.json"
  stored = json.loads(path.read_text())
  stored["command"][0] = "/of-a-stranger"
  path.write_text(json.dumps(stored))
  words, _ = ledger.command_of(entry)
  assert words == [sys.executable, *stored["command"][1:]]


def test_nothing_is_imported_from_the_folder_that_a_point_names(out, tmp_path):
  entry = ledger.write(plan_of(planned(0)), out).entries[0]
  stranger = tmp_path / "stranger/aigc_jax"
  stranger.mkdir(parents=True)
  for name in ("__init__", "train"):
    (stranger / f"{name}.py").write_text("open('hacked', 'w')")
  path = entry.folder / "point.json"
  stored = json.loads(path.read_text()) | {"folder": str(stranger.parent)}
  path.write_text(json.dumps(stored))
  asks = "-c 'import aigc_jax; print(aigc_jax.__file__)'"
  carry_out(ledger.read_index(out), f"{sys.executable} {asks} {{command}}")
  said = (entry.folder / "out.txt").read_text().strip()
  assert said == aigc_jax.__file__
  assert not list(tmp_path.rglob("hacked"))


@pytest.mark.parametrize("name", ["out.txt", "err.txt", ""])
def test_no_link_leads_what_a_point_says_elsewhere(name, out, tmp_path):
  index = ledger.write(plan_of(planned(0)), out)
  place, there = index.entries[0].folder / name, tmp_path / "theirs"
  if name:
    there.write_text("")
  else:
    os.rename(place, there)
  place.symlink_to(there)
  with pytest.raises(StorageFailure, match="is a link to"):
    carry_out(index, sweeping.line(tmp_path))
  assert not attempts(index.entries[0])
  assert not name or not there.read_text()


@pytest.mark.parametrize("name", ["..", ".", ".hidden", "a/b", ""])
def test_a_name_that_leads_out_of_a_sweep_is_refused(name, out):
  ledger.write(plan_of(planned(0)), out)
  found = json.loads((out / ledger.INDEX).read_text())
  found["points"][0]["name"] = name
  (out / ledger.INDEX).write_text(json.dumps(found))
  with pytest.raises(BadConfig, match="expected a text like"):
    ledger.read_index(out)


def test_points_run_side_by_side_each_on_its_cores(out, tmp_path):
  index = ledger.write(plan_of(*map(planned, range(4))), out)
  found = carry_out(index, sweeping.line(tmp_path), parallel=2)
  assert states(found) == ["done"] * 4
  used = {tuple(s.attempts[0]["cores"]) for s in found}
  assert used == {share.cores for share in launch.shares(2)}


def test_a_wish_to_stop_lets_points_save_and_starts_no_other(out, tmp_path):
  line = sweeping.line(tmp_path, {"0": ["wait", 0]})
  plan = plan_of(planned(0), planned(1))
  index, wish = ledger.write(plan, out), work.Wish()

  def stop_once_it_waits():
    until = time.monotonic() + 60
    while time.monotonic() < until:
      if (index.entries[0].workdir / "waits").exists():
        return wish()
      time.sleep(0.02)

  watcher = threading.Thread(target=stop_once_it_waits)
  watcher.start()
  found = carry_out(index, line, wish=wish)
  watcher.join()
  assert states(found) == ["stale", "planned"] and found[0].status == 75
  assert states(carry_out(index, line)) == ["done", "done"]


def test_a_point_whose_sweep_was_killed_is_stale_and_goes_on(out, tmp_path):
  index = ledger.write(plan_of(planned(0)), out)
  (entry,) = index.entries
  dead = subprocess.Popen([sys.executable, "-c", ""])
  dead.wait()
  running = ledger.State("running", ({"started": time.time()},))
  ledger.write_state(entry, running, os.getpid())
  assert ledger.state_of(entry).state == "running"
  ledger.write_state(entry, running, dead.pid)
  assert ledger.state_of(entry).state == "stale"
  (found,) = carry_out(index, sweeping.line(tmp_path))
  assert found.state == "done" and len(found.attempts) == 2


def test_a_point_that_another_process_trains_is_left_to_it(out, tmp_path):
  index = ledger.write(plan_of(planned(0), planned(1)), out)
  entry, line = index.entries[0], sweeping.line(tmp_path)
  entry.workdir.mkdir()
  held = lock.Lock(entry.workdir)
  held.acquire()
  assert ledger.state_of(entry).state == "running"

  def finish_later():
    until = time.monotonic() + 60
    while time.monotonic() < until and not attempts(index.entries[1]):
      time.sleep(0.02)
    held.release()

  other = threading.Thread(target=finish_later)
  other.start()
  found = carry_out(index, line, parallel=2)  # one share is the other's
  other.join()
  assert states(found) == ["done", "done"]
  assert len(attempts(entry)) == 1  # once it was free


@pytest.mark.parametrize("lives", [True, False])
def test_a_clock_that_is_set_starts_no_point_that_another_sweep_keeps(
  lives, out, tmp_path, monkeypatch
):
  monkeypatch.setattr(work, "LOOK", 0.05)
  monkeypatch.setattr(work, "WATCH", 0.4)
  (entry,) = ledger.write(plan_of(planned(0)), out).entries
  running = ledger.State("running", ({"started": 0.0},))
  ledger.write_state(entry, running, os.getpid())
  told = entry.folder / "state.json"
  os.utime(told, (1.0, 1.0))  # by the clock as it is now

  def keep():
    for second in range(2, 10):
      os.utime(told, (second, second))
      time.sleep(0.1)
    entry.workdir.mkdir()
    (entry.workdir / "result.json").write_text("{}")
    ledger.write_state(entry, ledger.State("done", running.attempts))

  keeper = threading.Thread(target=keep) if lives else None
  if keeper:
    keeper.start()
  index = ledger.read_index(out)
  (found,) = carry_out(index, sweeping.line(tmp_path))
  if keeper:
    keeper.join()
  assert found.state == "done" and len(found.attempts) == (1 if lives else 2)


def test_a_point_takes_as_long_as_it_takes_whatever_the_clock_says(
  out, tmp_path, monkeypatch
):
  hours = itertools.count(time.time(), -3600)
  clock = types.SimpleNamespace(
    time=lambda: float(next(hours)), monotonic=time.monotonic, sleep=time.sleep
  )
  monkeypatch.setattr(work, "time", clock)
  index = ledger.write(plan_of(planned(0)), out)
  (found,) = carry_out(index, sweeping.line(tmp_path))
  assert 0 < found.seconds < 3600


def test_points_that_differ_in_numbers_only_are_one_program(out, tmp_path):
  numbers = {"optim.learning_rate": "0.1", "optim.weight_decay": "0.2"}
  points = [
    planned(0), planned(1, "wide", **{"model.dim": "64"}),
    planned(2, **numbers),
    planned(3, "undecayed", **{"optim.weight_decay": "0"}), planned(4),
  ]  # fmt: skip
  index = ledger.write(plan_of(*points), out)
  line = sweeping.line(tmp_path, {"2": [9, 0]})
  found = carry_out(index, line, together=2)
  assert states(found) == ["done", "done", "failed", "done", "done"]
  assert found[2].status == 9 and found[2].error == ("it said why",)
  assert [s.attempts[0]["together"] for s in found] == [2, 1, 2, 1, 1]
  assert states(carry_out(index, line, together=2)) == ["done"] * 5
  assert [len(attempts(e)) for e in index.entries] == [1, 1, 2, 1, 1]


def test_a_result_that_was_deleted_is_made_again(out, tmp_path):
  line = sweeping.line(tmp_path)
  index = ledger.write(plan_of(planned(0)), out)
  carry_out(index, line)
  shutil.rmtree(index.entries[0].workdir)
  assert ledger.state_of(index.entries[0]).state == "planned"
  assert states(carry_out(index, line)) == ["done"]


def test_a_launcher_that_does_not_wait_is_told_so(out):
  index = ledger.write(plan_of(planned(0)), out)
  (found,) = carry_out(index, "sh -c 'true {command}'")
  assert found.state == "failed" and "must wait" in found.error[-1]


def test_a_sweep_that_was_moved_works_in_its_new_place(out, tmp_path):
  line = sweeping.line(tmp_path, {"0": [1, 0]})
  plan = plan_of(planned(0))
  carry_out(ledger.write(plan, out), line)
  there = tmp_path / "there"
  out.rename(there)
  index = ledger.write(plan, there)
  assert states(carry_out(index, line)) == ["done"] and not out.exists()
  assert f"--workdir={there}" in attempts(index.entries[0])[-1]


def test_points_that_the_sweep_has_no_more_stay_and_are_named(out):
  ledger.write(plan_of(planned(0), planned(1)), out)
  index = ledger.write(plan_of(planned(1)), out)
  (name,) = ledger.strangers(index, out)
  assert name.startswith("plain-seed0-")


@pytest.mark.parametrize(
  "launcher, message",
  [
    ("ssh host", "{command} stands for the command"),
    ("sh -c '{command}", "No closing quotation"),
    ("nowhere-at-all {command}", "no program 'nowhere-at-all'"),
    ("sh {command} {what}", "{what} is unknown"),
  ],
)
def test_a_launcher_that_could_start_nothing_is_refused(launcher, message):
  with pytest.raises(BadConfig, match=message):
    launch.check_line(launcher)


def test_a_line_gets_the_command_as_words_or_as_one_text():
  words = ["python", "-m", "x", "--a=b c"]
  assert launch.words_of("local", words) == words
  assert launch.words_of("ssh host {command}", words) == ["ssh", "host", *words]
  assert launch.words_of("sh -c 'cd /x && {command}; {slot}'", words, "n", 3)[
    2
  ] == ("cd /x && python -m x '--a=b c'; 3")


def test_cores_and_gpus_are_divided_or_shared(monkeypatch):
  monkeypatch.setattr(launch, "_cores", lambda: [0, 1, 2, 3])
  monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
  monkeypatch.setenv("JAX_PLATFORMS", "cuda")
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
  assert [s.cores for s in launch.shares(2)] == [(0, 1), (2, 3)]
  assert [s.cores for s in launch.shares(3)] == [(0,), (1,), (2, 3)]
  assert [s.environ for s in launch.shares(2)] == [
    {"CUDA_VISIBLE_DEVICES": "4"}, {"CUDA_VISIBLE_DEVICES": "7"},
  ]  # fmt: skip
  four = [s.environ for s in launch.shares(4)]
  assert [e["CUDA_VISIBLE_DEVICES"] for e in four] == ["4", "7", "4", "7"]
  assert {e["XLA_PYTHON_CLIENT_MEM_FRACTION"] for e in four} == {"0.375"}
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  assert launch.shares(2)[0].environ == {}
  assert launch.shares(1)[0].cores is None


def test_time_is_predicted_from_the_finished_point_most_alike():
  known = [(Cost(1, 10, 1, 1e6), 10.0), (Cost(1, 10, 1, 1e9), 100.0)]
  assert work.predicted(Cost(1, 20, 1, 2e9), known) == 200.0
  assert work.predicted(Cost(1, 10, 1, 2e6), known) == 20.0
  assert work.predicted(Cost(1, 10, 1, 2e6), [], 1e6) == 2.0
  assert work.predicted(Cost(1, 10, 1, 2e6), []) is None


def test_an_array_runs_a_point_a_task_and_goes_back_when_stopped(
  out, tmp_path, monkeypatch
):
  index = ledger.write(plan_of(planned(0), planned(1)), out)
  script = slurm.write(index.entries, out, 4, ["--partition=gpu"])
  text = script.read_text()
  assert "#SBATCH --array=0-1%4" in text and "--partition=gpu" in text
  assert subprocess.run(["bash", "-n", script]).returncode == 0
  names = (out / "slurm.txt").read_text().split()
  assert names == [entry.name for entry in index.entries]
  # In the place of Python: what the task is called with, and a status.
  told = tmp_path / "told"
  for name, ends in (("python", 75), ("scontrol", 0)):
    fake = tmp_path / name
    fake.write_text(f'#!/bin/sh\necho {name} "$@" >> {told}\nexit {ends}\n')
    fake.chmod(0o755)
  script.write_text(text.replace(sys.executable, str(tmp_path / "python")))
  environ = {
    "PATH": f"{tmp_path}:{os.environ['PATH']}",
    "SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_JOB_ID": "9",
  }  # fmt: skip
  done = subprocess.run(["bash", script], env=environ)
  assert done.returncode == 75
  first, second = told.read_text().splitlines()
  assert first.endswith(f"--point={names[1]}") and "-m aigc_jax.sweep" in first
  assert second == "scontrol requeue 9_1"
  with pytest.raises(BadConfig, match="expected an option of sbatch"):
    slurm.write(index.entries, out, 0, ["partition"])


def test_a_folder_of_any_name_says_nothing_else_to_sbatch(tmp_path):
  """Its options stand in comments, which no shell quotes."""
  out = tmp_path / "12:30 é $x"
  index = ledger.write(plan_of(planned(0)), out)
  script = slurm.write(index.entries, out, 0, [])
  lines = script.read_text().splitlines()
  assert f'#SBATCH --output="{out}/slurm/%A_%a.log"' in lines
  assert "#SBATCH --job-name=sweep-12-30-é-x" in lines
  assert subprocess.run(["bash", "-n", script]).returncode == 0
  for name in ("a\ntouch bad", "a%j", 'a"b', "a'b"):
    with pytest.raises(BadConfig, match="sbatch reads its options"):
      slurm.write(index.entries, tmp_path / name, 0, [])


def test_without_sbatch_the_script_is_written_and_that_is_said(
  out, monkeypatch
):
  index = ledger.write(plan_of(planned(0)), out)
  script = slurm.write(index.entries, out, 0, [])
  monkeypatch.setenv("PATH", "/nowhere")
  with pytest.raises(BadConfig, match="is written: submit it where"):
    slurm.submit(script)


def test_no_point_is_best_whose_pairs_are_told_from_fewer_others(out, tmp_path):
  index = ledger.write(plan_of(planned(0), planned(1)), out)
  carry_out(index, sweeping.line(tmp_path))
  for entry, batch in zip(index.entries, (4, 8), strict=True):
    path = entry.workdir / "config.json"
    config = json.loads(path.read_text())
    config["objective"]["kind"] = "contrastive"
    path.write_text(json.dumps(config | {"data": {"batch": batch}}))
  told = progress.summed_up(index.entries, index.metric)
  assert told.startswith("2 done of 2; none is the best: eval/heldout/loss tel")
  assert index.entries[0].name in told  # and of which batch it is
  alone = progress.summed_up(index.entries[:1], index.metric)
  assert "; best eval/heldout/loss 2.0000" in alone


def test_the_tables_show_states_results_and_reasons(out, tmp_path, capsys):
  index = ledger.write(plan_of(planned(0), planned(1), planned(2)), out)
  found = carry_out(index, sweeping.line(tmp_path, {"1": [1], "2": [-9]}))
  assert states(found) == ["done", "failed", "failed"]
  text = progress.status_table(index.entries, found, index.metric)
  assert "exit status 1: died of 1" in text and "2.0000" in text
  assert progress.summed_up(index.entries, index.metric) == (
    f"1 done, 2 failed of 3; best eval/heldout/loss 2.0000 "
    f"({index.entries[0].name})"
  )
  printed = capsys.readouterr().err
  assert "| died of 1" in printed and "(1 of 3 done" in printed
  rows = json.loads(work.as_json(index.entries, index.metric))["points"]
  assert [row["state"] for row in rows] == states(found)
  assert rows[1]["error"][-1] == "died of 1"


def test_a_live_table_shows_what_runs_and_escapes_what_it_is_told(out):
  index = ledger.write(plan_of(planned(0), planned(1)), out)
  shown = progress.Live(index.entries, index.metric)
  row = {"step": 2, "train/loss": 3.25}
  picture = shown.picture([(index.entries[0], row)])
  from rich.console import Console

  console = Console(width=120, record=True, file=open(os.devnull, "w"))
  console.print(picture)
  text = console.export_text()
  assert index.entries[0].name in text and "2/4" in text and "3.25" in text
  assert "2 planned of 2" in text


def test_a_row_that_is_being_written_does_not_count(tmp_path):
  path = tmp_path / "metrics.jsonl"
  assert work.last_row(path) == {}
  rows = [{"step": n, "train/loss": 1.0} for n in (1, 2)]
  text = "".join(json.dumps(row) + "\n" for row in rows)
  path.write_text(text + '{"step": 3, "train/lo')
  assert work.last_row(path)["step"] == 2


def test_what_points_that_train_together_say_is_said_once(
  tmp_path, monkeypatch, capsys
):
  class Member:
    def __init__(self, *_, say, **__):
      self.say = say

    def plan(self): ...

    def open_data(self):
      self.say("12 tokens held out")

    train = plan

  monkeypatch.setattr(joint_runs, "Member", Member)
  meeting = joint.Meeting(lambda *_: None, 2)
  mesh = sharding.mesh_of(jax.devices()[0])
  crew = joint_runs._Crew(mesh, meeting, tmp_path / "listed.json")
  for k in range(2):
    crew.work(k, {}, tmp_path / str(k), None)
  assert capsys.readouterr().out.count("12 tokens held out") == 1


def test_points_that_train_together_work_one_at_a_time(tmp_path):
  """Compilations side by side hang where a process has one core."""
  at_work, most = [], []

  class Crew(joint_runs._Crew):
    def _train(self, k, config, workdir, stop):
      step = self.meeting.advance(k, None)
      for _ in range(3):
        at_work.append(k)
        time.sleep(0.005)
        most.append(len(at_work))
        at_work.remove(k)
        step(jnp.zeros(1), None)

  def program(stack, batches):
    return stack, [{}] * len(batches)

  meeting = joint.Meeting(lambda *_: program, 4)
  crew = Crew(None, meeting, tmp_path / "listed.json")
  threads = [
    threading.Thread(target=crew.work, args=(k, {}, tmp_path / str(k), None))
    for k in range(4)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(20)
  assert {one["status"] for one in crew.outcomes.values()} == {0}
  assert most == [1] * 12
