"""report diff: what differs between two runs, and where their curves part."""

import json

import pytest

from aigc_jax.errors import BadConfig
from aigc_jax.scaling import compare

CONFIG = {"seed": 0, "optim": {"learning_rate": 0.1}, "steps": 4}
ABOUT = {
  "code": {"commit": "abc", "dirty": False},
  "data_fingerprint": "d0",
  "packages": {"jax": "0.10.2"},
  "jax": {"devices": 1},
}


def workdir(path, config=CONFIG, about=ABOUT, losses=(3.0, 2.0, 1.5, 1.2)):
  path.mkdir()
  (path / "config.json").write_text(json.dumps(config))
  (path / "run.json").write_text(json.dumps(about))
  with open(path / "metrics.jsonl", "w") as file:
    for step, loss in enumerate(losses, 1):
      row = {
        "step": step, "seconds": 7.0 * len(path.name) + step,
        "tokens": 8 * step, "train/loss": loss, "data/batch_hash": step,
        "speed/tokens_per_second": float(len(path.name)),
      }  # fmt: skip
      file.write(json.dumps(row) + "\n")
  return path


def test_equal_runs_differ_in_nothing_but_time(tmp_path):
  a, b = workdir(tmp_path / "a"), workdir(tmp_path / "longer")
  found = compare.compare(a, b)
  assert not (found.config or found.code or found.data or found.environment)
  assert found.parts_at is None and found.bitwise_until == 4
  assert "equal bit for bit in all 4" in compare.as_text(found)


def test_the_first_bit_that_differs_is_where_curves_part(tmp_path):
  a = workdir(tmp_path / "a")
  b = workdir(tmp_path / "b", losses=(3.0, 2.0, 1.5000000000000002, 1.1))
  found = compare.compare(a, b)
  assert (found.bitwise_until, found.parts_at) == (2, 3)
  assert found.parts_in == ("train/loss",)
  assert found.worst == pytest.approx(0.1 / 1.2)
  assert "part at step 3" in compare.as_text(found)


def test_every_difference_stands_under_its_heading(tmp_path):
  a = workdir(tmp_path / "a")
  about = ABOUT | {
    "code": {"commit": "def", "dirty": False},
    "data_fingerprint": "d1",
    "packages": {"jax": "0.11.0"},
  }
  b = workdir(tmp_path / "b", CONFIG | {"optim": {"learning_rate": 0.2}}, about)
  found = compare.compare(a, b)
  for heading, words in {
    "config": "optim.learning_rate: 0.1 -> 0.2",
    "code": "code.commit: 'abc' -> 'def'",
    "data": "data_fingerprint: 'd0' -> 'd1'",
    "environment": "packages.jax: '0.10.2' -> '0.11.0'",
  }.items():
    assert [str(c) for c in getattr(found, heading)] == [words]
    assert words in compare.as_text(found)


def test_losses_of_unlike_objectives_are_said_to_be_no_pair(tmp_path):
  kinds = (dict(kind="distill", soft=5.0), dict(kind="tokens"))
  one, other = (
    workdir(tmp_path / o["kind"], CONFIG | {"objective": o}, losses=(i, 1.0))
    for i, o in enumerate(kinds, 2)
  )
  assert "their objectives differ" in compare.as_text(
    compare.compare(one, other)
  )


def test_a_folder_without_a_run_is_refused(tmp_path):
  with pytest.raises(BadConfig, match="holds no run"):
    compare.compare(tmp_path, tmp_path)
