"""Hangs end with their stacks; a run says where it comes from."""

import json

from aigc_jax.errors import Hang
from tests.faults.conftest import SECRETS
from tests.faults.harness import assert_twins, last_step

LIMIT = 3


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


def test_a_run_says_where_it_comes_from_and_no_secret(twin, record):
  text = (twin / "run.json").read_text()
  about = json.loads(text)
  for name in ("argv", "packages", "code", "environment", "jax", "system"):
    assert about[name], name
  everything = text + (twin / "events.jsonl").read_text()
  for secret in SECRETS.values():
    assert secret not in everything
  record(
    "secrets in the environment", "HF_TOKEN and JAX_SECRET_TOKEN are set",
    "neither is in run.json or the journal", None,
  )  # fmt: skip
