"""A process whose peers are gone ends with a status that is documented."""

import os
import subprocess
import sys

import jax
import pytest

from aigc_jax import command, outages, sharding
from aigc_jax.errors import PeerLost

ABORTED = """
import os, threading
from aigc_jax import command, outages
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


LATE = """
import os, time
from aigc_jax import command, outages
with outages.joining(7, patience=0.1):
  time.sleep(0.5)
  os.abort()
"""


@pytest.mark.slow
def test_processes_that_never_came_are_waited_for_and_not_called_gone():
  run = subprocess.run(
    [sys.executable, "-c", LATE], capture_output=True, text=True,
    timeout=600, env=os.environ | {"JAX_PLATFORMS": "cpu"},
  )  # fmt: skip
  assert run.returncode == PeerLost.code, run.stderr
  waits, late = run.stderr.splitlines()
  assert "waits for the other processes" in waits and "7 seconds" in waits
  assert "did not find each other within 7 seconds (--join_limit)" in late
  assert "gone" not in late


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


GAVE_UP = b"""E1128 23:11:25.692718   11586 coordination_service.cc:1549] Use
1
F1128 23:11:25.716211   11597 client.h:80] Terminating process because the JAX \
distributed service detected fatal errors. absl::Status: UNAVAILABLE: The \
following tasks are unhealthy (stopped sending heartbeats):
1
0
The tasks have crashed. Check the task logs for an earlier error

E1128 23:11:25.716311   11586 slow_operation_alarm.cc:73]
********************************
[Compiling module jit_step for CPU] Very slow compile?
W1128 23:11:25.900000  11597 cuda.cc:1] between
*** Check failure stack trace: ***
    @     0x7f7346240634  absl::lts_20260107::log_internal::LogMessage::Flush()
"""
SIFTED = f"""
import os, sys
from aigc_jax import early, native
sys.stdout.write("ours first")
native.begin()
print(", then this", flush=True)
os.write(1, b"[Gloo] Rank 0 is connected to 1 peer ranks.\\n")
os.write(1, b"of another library\\n")
os.write(2, {GAVE_UP!r})
os.write(2, b"W1128 23:11:26.000000  11597 cuda.cc:1] a warning\\n")
print(native.why(), file=sys.stderr, flush=True)
early.say("the end")
os._exit(0)
"""


def test_words_of_a_library_about_lost_processes_make_one_line_of_ours():
  run = subprocess.run(
    [sys.executable, "-c", SIFTED], capture_output=True, text=True, timeout=600
  )
  assert run.stdout.splitlines() == [
    "ours first, then this", "of another library"
  ]  # fmt: skip
  assert run.stderr.splitlines() == [
    "W1128 23:11:25.900000  11597 cuda.cc:1] between",
    "W1128 23:11:26.000000  11597 cuda.cc:1] a warning",
    "UNAVAILABLE: The following tasks are unhealthy (stopped sending "
    "heartbeats): 1 0",
    "the end",
  ]


@pytest.mark.parametrize(("asked", "levels"), [("1", [3]), ("0", [])])
def test_one_process_on_cpus_leaves_out_what_xla_says_of_slow_compilation(
  monkeypatch, asked, levels
):
  from jax._src.lib import utils

  assert callable(utils.absl_set_min_log_level)  # in the JAX that is installed
  set_to = []
  monkeypatch.setattr(utils, "absl_set_min_log_level", set_to.append)
  monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", asked)
  axes = {axis: 1 for axis in sharding.AXES}
  sharding.make_mesh(**axes, devices=jax.devices()[:1])
  assert not set_to  # it is for commands to say, and no mesh's
  command.quiet_compiler()
  assert set_to == levels


SETTLED = """
from aigc_jax import native, terminal
terminal.guard()
native.begin()
print("a result")
raise SystemExit(terminal.settled(0))
"""


@pytest.mark.parametrize(
  ("out", "status"), [(os.devnull, 0), ("/dev/full", 74)]
)
def test_a_process_of_several_ends_with_the_status_of_its_output(out, status):
  """A good one with 0: a scheduler would start it again."""
  with open(out, "w") as file:
    run = subprocess.run(
      [sys.executable, "-c", SETTLED], stdout=file, stderr=subprocess.PIPE,
      text=True, timeout=600,
    )  # fmt: skip
  assert run.returncode == status, run.stderr
  assert "Traceback" not in run.stderr


@pytest.mark.parametrize("which", [0, 1])
def test_the_other_processes_say_who_speaks(monkeypatch, capsys, which):
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
  monkeypatch.setattr(jax, "process_index", lambda: which)
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  command._tell_who_speaks()
  told = "aigc_jax: process 1 of 2 has joined; process 0 speaks for all\n"
  assert capsys.readouterr().err == told * which
