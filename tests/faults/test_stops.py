"""Killed or stopped at any moment, a run ends as one that never was."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from aigc_jax.errors import Stopped
from aigc_jax.trainer.stop import Wishes
from tests.faults import tiny
from tests.faults.harness import (
  LIMIT,
  ROOT,
  SLOW,
  assert_twins,
  events,
  last_step,
  saved,
  slow,
  stop,
  until,
)

RUNS = int(os.environ.get("AIGC_JAX_RUNS", "10"))


def kill_at_random_rows(start, workdir, draw, kills, twin) -> list[float]:
  """Kills one run `kills` times; seconds until it stood again where it was."""
  seconds, stood = [], 0
  for _ in range(kills):
    run = start(workdir, plan=SLOW)
    run.row(stood)
    if stood:
      seconds.append(run.seconds)
    first = max((s for s in saved(workdir)), default=0)
    run.row(draw.randint(first + 1, tiny.STEPS - 1))
    run.send(signal.SIGKILL)
    run.done(-signal.SIGKILL)
    assert (workdir / "LOCK").stat().st_size, "its record is still there"
    stood = last_step(workdir)
  run = start(workdir)
  run.row(stood)
  seconds.append(run.seconds)
  run.done()
  assert_twins(workdir, twin)
  return seconds


@pytest.mark.slow
def test_a_killed_run_that_is_stopped_as_well(start, copy, twin, record):
  """It was killed at step 14 and is stopped some steps later."""
  plan = {"term_at": [{"site": "step", "step": random.randint(14, 17)}]}
  run = start(copy, plan=plan)
  run.done(Stopped.code)
  (stopped,) = events(copy, "stopped")
  assert saved(copy)[-1] == stopped["step"]
  start(copy).done()
  assert_twins(copy, twin)
  record(
    "killed, then asked to stop", "SIGKILL and SIGTERM at steps of one run",
    "saved, status 75, continued, equals the twin bitwise", None,
  )  # fmt: skip


@pytest.mark.slow
def test_a_run_killed_again_and_again(start, workdir, twin, record):
  draw = random.Random()
  seconds = kill_at_random_rows(start, workdir, draw, 3, twin)
  record(
    "process killed in mid-step", "SIGKILL at 3 random rows of one run",
    "lock taken over, goes on, equals the twin bitwise", max(seconds),
  )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(RUNS))
def test_random_kills(start, workdir, twin, record, seed):
  draw = random.Random(seed)
  kills = draw.randint(1, 6)
  seconds = kill_at_random_rows(start, workdir, draw, kills, twin)
  record(
    "process killed in mid-step", "SIGKILL at 1 to 6 random rows of one run",
    "equals the twin bitwise", max(seconds),
  )  # fmt: skip


@pytest.fixture
def importing(tmp_path):
  """importing(*words) -> a Python process held up in its import of JAX.

  Its `jax` reads from a fifo, to which nobody writes.
  """
  (tmp_path / "jax").mkdir()
  fifo = tmp_path / "fifo"
  os.mkfifo(fifo)
  (tmp_path / "jax" / "__init__.py").write_text(f"open({str(fifo)!r}).read()")
  opened = []

  def begin(*words: str) -> subprocess.Popen:
    process = subprocess.Popen(
      [sys.executable, *words], cwd=tmp_path, stderr=subprocess.PIPE,
      env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip

    def reads() -> bool:
      assert process.poll() is None, process.stderr.read()
      try:  # there is no writing to a fifo before somebody reads
        opened.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
      except OSError:
        return False
      return True

    until(reads, "JAX is imported")
    return process

  yield begin
  for fd in opened:
    os.close(fd)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_stopped_while_it_imports(importing, record, number):
  run = importing("-m", "aigc_jax.train")
  run.send_signal(number)
  assert run.wait(LIMIT) == Stopped.code
  assert b"run the same line again" in run.stderr.read()
  record(
    "asked to stop", f"{number.name} while importing JAX",
    "status 75 at once, nothing there to save", None,
  )  # fmt: skip


@pytest.mark.slow
def test_a_run_stopped_while_it_prepares_its_data(
  start, workdir, twin, tmp_path, record
):
  own = f"--config.data.root={tmp_path / 'stores'}"
  run = start(workdir, own, plan=stop("prepare"))
  run.stopped()
  asked = run.go_on(signal.SIGTERM)
  run.done(Stopped.code)
  assert run.out.count("preparing") == 1, "the other stores are not begun"
  start(workdir, own).done()
  assert_twins(workdir, twin)
  record(
    "asked to stop", "SIGTERM while preparing data",
    "status 75 at once, continued, equals the twin bitwise", run.ended - asked,
  )  # fmt: skip


def test_who_only_imports_the_command_keeps_the_signals(importing):
  run = importing("-c", "import aigc_jax.train")
  run.terminate()
  assert run.wait(LIMIT) == -signal.SIGTERM


@pytest.mark.slow
def test_a_run_stopped_in_every_phase(
  start, workdir, twin, record, tmp_path_factory
):
  """One run, stopped in each phase in turn, and then let go on to its end."""
  checkpoints = workdir / "checkpoints"
  stops = 0

  def stopped(run, asked, at, how, doing):
    nonlocal stops
    run.done(Stopped.code)
    stops += 1
    found = events(workdir, "stopped")
    assert len(found) == stops, run.err
    n = found[-1]["step"]
    # While a save is written beside it, training is up to two steps ahead.
    assert at <= n <= at + (3 if doing == "saving" else 1)
    assert saved(workdir)[-1] == n
    saves = [row["step"] for row in events(workdir, "save")]
    assert saves.count(n) == 1, "it saves once"
    record(
      "asked to stop", f"{how} while {doing}",
      "saved once, status 75, continued, equals the twin bitwise",
      run.ended - asked,
    )  # fmt: skip

  def ask(doing, site, step, number=signal.SIGTERM, at=None, **changes):
    place = {} if step is None else {"step": step}
    # Steps so slow that a busy machine hears the signal within one.
    plan = slow(0.5) | stop(site, **place)
    run = start(workdir, plan=plan, **changes)
    run.stopped()
    asked = run.go_on(number)
    name = signal.Signals(number).name
    stopped(run, asked, step if at is None else at, name, doing)

  # A cache of its own: the compilation is real and takes its time.
  cold = tmp_path_factory.mktemp("cold")
  ask("compiling", "compile", None, at=0, compiled=cold)
  ask("training", "step", 3, signal.SIGINT)

  run = start(workdir, plan=slow(1.0) | stop("step", step=6))
  run.stopped()
  (workdir / "STOP").touch()
  stopped_at = run.go_on()
  run.done(Stopped.code)
  stops += 1
  assert not (workdir / "STOP").exists()
  assert "STOP" in events(workdir, "stopped")[-1]["reason"]
  record(
    "asked to stop", "a file DIR/STOP while training",
    "saved once, status 75, continued, equals the twin bitwise",
    run.ended - stopped_at,
  )  # fmt: skip

  # Two signals while a save takes long: the last commit counts.
  before = saved(workdir)
  plan = {"sleep_at": [{"site": "save/manifest", "seconds": 600}]}
  run = start(workdir, plan=plan)
  run.until(lambda: list(checkpoints.glob("*.saving")), "a save")
  run.send(signal.SIGTERM)
  run.says("saving and stopping")
  time.sleep(Wishes.ECHO + 0.1)  # sooner it would be the first one's echo
  asked = run.go_on(signal.SIGTERM)
  run.done(Stopped.code)
  assert saved(workdir) == before
  record(
    "second signal", "SIGTERM twice during a slow save",
    "status 75 at once from the last commit, continued, equals the twin",
    run.ended - asked,
  )  # fmt: skip

  ask("sampling", "evaluate/samples", None, at=10)
  ask("saving", "save/manifest", 15)
  ask("evaluating", "evaluate/heldout", None, at=20)
  start(workdir).done()
  assert_twins(workdir, twin)
