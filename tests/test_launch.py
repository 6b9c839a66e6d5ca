"""Several machines: the lines of the page are started as they stand there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "experiments" / "launch"
# The run of the page, made small; nothing else of its lines is changed.
SMALL = (
  "--config.steps=2", "--config.data.tokenizer=bytes", "--config.data.batch=4",
  "--config.data.length=16", "--config.model.vocab=257",
  "--config.model.layers=1", "--config.model.dim=16",
  "--config.data.path=text.txt", "--config.data.root=root",
  "--config.evaluate.samples.max_tokens=2",
)  # fmt: skip


def lines_of_two_terminals() -> list[list[str]]:
  text = (LAUNCH / "README.md").read_text()
  section = text.split("## Two terminals")[1]
  block = re.search(r"```sh\n(.*?)```", section, re.DOTALL)[1]
  return [shlex.split(line) for line in block.splitlines()]


def test_the_lines_differ_by_the_number_of_the_process_alone():
  first, second = lines_of_two_terminals()
  assert [w for w in first if w not in second] == ["--process=0"]
  assert [w for w in second if w not in first] == ["--process=1"]


@pytest.mark.slow
def test_two_terminals_train_one_run(tmp_path):
  (tmp_path / "configs").symlink_to(ROOT / "configs")
  (tmp_path / "text.txt").write_text("".join(
    f"line {i} of a text to learn\n" for i in range(400)
  ))  # fmt: skip
  environ = os.environ | {
    "PYTHONPATH": str(ROOT),
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
  }
  started = [
    subprocess.Popen(
      [sys.executable, *line[1:], *SMALL], cwd=tmp_path, env=environ,
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )
    for line in lines_of_two_terminals()
  ]  # fmt: skip
  try:
    said = [process.communicate(timeout=580)[0] for process in started]
  finally:
    for process in started:
      process.kill()
  assert [process.returncode for process in started] == [0, 0], said
  assert (tmp_path / "runs/two/result.json").is_file()
  assert "2 x cpu (fsdp=2)" in said[0]


def test_a_job_of_slurm_is_requeued_where_it_was_stopped_and_saved(tmp_path):
  """With commands that stand in for the scheduler's."""
  for name, script in (
    ("srun", 'echo "srun $@" >> log; exit $STATUS'),
    ("scontrol", 'echo "scontrol $@" >> log'),
  ):
    (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / name).chmod(0o755)
  environ = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
  for status, requeued in ((75, True), (78, False), (0, False)):
    (tmp_path / "log").unlink(missing_ok=True)
    done = subprocess.run(
      ["bash", str(LAUNCH / "slurm.sh"), "--workdir=a b"], cwd=tmp_path,
      env=environ | {"STATUS": str(status), "SLURM_JOB_ID": "7"},
    )  # fmt: skip
    assert done.returncode == status
    log = (tmp_path / "log").read_text()
    assert "python -m aigc_jax.train --workdir=a b" in log
    assert ("scontrol requeue 7" in log) == requeued
