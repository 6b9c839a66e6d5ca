"""Hangs end with their stacks; a run says where it comes from."""

import json

import pytest

from aigc_jax.errors import Hang
from tests.faults.conftest import SECRETS
from tests.faults.harness import assert_twins, last_step, stop

LIMIT = 3


@pytest.mark.slow
def test_a_hang(start, copy, twin, record):
  plan = {"sleep_at": [{"site": "step", "step": 16, "seconds": 600}]}
  run = start(copy, f"--step_limit={LIMIT}", plan=plan)
  run.row(15)
  began = run.seconds
  run.done(Hang.code)
  noticed = run.ended - run.began - began
  text = (copy / "hang.0.txt").read_text()
  assert "step 16" in text, "the data position"
  assert "faults.py" in text and "loop.py" in text, "the stacks"
  stood = last_step(copy)
  again = start(copy)
  again.row(stood)
  seconds = again.seconds
  again.done()
  assert_twins(copy, twin)
  record(
    "hang", f"a step that sleeps, --step_limit={LIMIT}",
    f"status 79 after {noticed:.1f} s with all stacks and the step; equals "
    "the twin", seconds,
  )  # fmt: skip


@pytest.mark.slow
def test_a_hang_in_compiling_has_a_limit_of_its_own(start, copy, record):
  plan = stop("boundary", step=12) | {
    "sleep_at": [{"site": "compile", "seconds": 600}]
  }
  run = start(copy, "--step_limit=2", "--compile_limit=6", plan=plan)
  run.stopped()
  began = run.go_on()
  run.done(Hang.code)
  assert run.ended - began > 5, "longer than a step may take"
  text = (copy / "hang.0.txt").read_text()
  assert "compilation" in text and "_compiled" in text
  record(
    "hang", "a compilation that sleeps, --step_limit=2 --compile_limit=6",
    f"status 79 after {run.ended - began:.1f} s with all stacks", None,
  )  # fmt: skip


@pytest.mark.slow
def test_a_run_says_where_it_comes_from_and_no_secret(twin, record):
  text = (twin / "run.json").read_text()
  about = json.loads(text)
  for name in ("argv", "packages", "code", "environment", "jax", "system"):
    assert about[name], name
  assert about["packages"]["jax"] and about["environment"]["XLA_FLAGS"]
  assert {"commit", "sha256"} <= about["code"].keys()
  assert about["code"]["commit"] is None or "diff" in about["code"]
  for name in ("config_sha256", "data_fingerprint", "tokenizer_fingerprint"):
    assert len(about[name]) == 64, name
  assert len(about["hlo_sha256"]) == 64
  assert about["jax"]["devices"] == 1 and about["jax"]["mesh"]
  everything = text + (twin / "events.jsonl").read_text()
  for secret in SECRETS.values():
    assert secret not in everything
  record(
    "secrets in the environment", "HF_TOKEN and JAX_SECRET_TOKEN are set",
    "neither is in run.json or the journal", None,
  )  # fmt: skip
