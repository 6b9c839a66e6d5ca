"""A work directory or data set of somebody: it runs nothing, and no file
beside it is changed."""

import json
import os
import subprocess
import sys

import pytest

from aigc_jax.errors import BadData, StorageFailure

INFO = {
  "name": "tiny", "version": "1.0.0", "fileFormat": "array_record",
  "splits": [{"name": "train", "shardLengths": ["1"], "numBytes": "9"}],
}  # fmt: skip


@pytest.mark.slow
def test_links_in_a_work_directory_reach_nothing(start, copy, tmp_path, record):
  """What trains, cuts and prunes here leaves alone what a link names."""
  elsewhere = tmp_path / "elsewhere"
  elsewhere.mkdir()
  (elsewhere / "12").mkdir()
  (elsewhere / "precious").write_text("kept")
  seconds = 0.0
  for name, target in (
    ("LOCK", elsewhere / "precious"),
    ("metrics.jsonl", elsewhere / "precious"),
    ("checkpoints", elsewhere),
  ):
    path = copy / name
    if os.path.lexists(path):
      path.rename(tmp_path / name)
    path.symlink_to(target)
    run = start(copy).done(StorageFailure.code)
    assert f"{name} is a link to {target}" in run.err
    seconds = max(seconds, run.ended - run.began)
    path.unlink()
    if (tmp_path / name).exists():
      (tmp_path / name).rename(path)
  assert (elsewhere / "precious").read_text() == "kept"
  assert (elsewhere / "12").is_dir()
  record(
    "links in a work directory",
    "LOCK, metrics.jsonl and checkpoints name files elsewhere",
    "status 74 by name, nothing elsewhere is changed", seconds,
  )  # fmt: skip


@pytest.mark.slow
def test_a_data_set_that_names_a_class_runs_nothing(tmp_path, record):
  """features.json of TFDS may name any class of any module that is found."""
  (tmp_path / "trap.py").write_text("open('ran', 'w').close()\n")
  folder = tmp_path / "tiny" / "1.0.0"
  folder.mkdir(parents=True)
  (folder / "dataset_info.json").write_text(json.dumps(INFO))
  features = {"pythonClassName": "trap.Feature"}
  (folder / "features.json").write_text(json.dumps(features))
  paths = [str(tmp_path), *sys.path]
  done = subprocess.run(
    [
      sys.executable, "-m", "aigc_jax.prepare", f"--tfds={folder}",
      f"--root={tmp_path}/root",
    ],
    cwd=tmp_path, capture_output=True, text=True, timeout=600,
    env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
  )  # fmt: skip
  assert done.returncode == BadData.code, done.stderr
  assert "trap.Feature" in done.stderr and "Traceback" not in done.stderr
  assert not (tmp_path / "ran").exists()
  record(
    "a data set that names code", "a TFDS folder whose features.json does",
    "status 65 by name, nothing is imported", None,
  )  # fmt: skip
