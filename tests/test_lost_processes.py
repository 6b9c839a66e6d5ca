"""A process whose peers are gone ends with a status that is documented."""

import os
import subprocess
import sys

import jax
import pytest

from aigc_jax import outages
from aigc_jax.errors import PeerLost

ABORTED = """
import os, threading
from aigc_jax import outages
outages.name_aborts()
threading.Thread(target=os.abort).start()
threading.Event().wait()
"""


@pytest.mark.slow
def test_a_process_that_jax_aborts_ends_with_our_status():
  run = subprocess.run(
    [sys.executable, "-c", ABORTED], capture_output=True, text=True,
    timeout=600, env=os.environ | {"JAX_PLATFORMS": "cpu"},
  )  # fmt: skip
  assert run.returncode == PeerLost.code, run.stderr
  assert "another process of this run is gone" in run.stderr
  assert "start all of them again" in run.stderr


@pytest.mark.parametrize(
  ("error", "lost"),
  [
    (jax.errors.JaxRuntimeError("UNAVAILABLE: Socket closed"), True),
    (jax.errors.JaxRuntimeError("INTERNAL: Gloo: closed by peer"), True),
    (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: memory"), False),
    (OSError("UNAVAILABLE"), False),
    (KeyError("heartbeat"), False),
  ],
)
def test_errors_of_lost_processes_are_told_from_others(
  monkeypatch, error, lost
):
  assert not outages.of_another_process(error)
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
  assert outages.of_another_process(error) == lost
