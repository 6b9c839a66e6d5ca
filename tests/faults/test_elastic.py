"""The same run on other devices and in other processes."""

import signal

import numpy as np
import pytest

from aigc_jax.errors import BadConfig, PeerLost, Stopped
from tests.faults.conftest import write_texts
from tests.faults.harness import (
  SLOW,
  assert_twins,
  events,
  free_port,
  hashes,
  last_step,
  losses,
  patience,
  rows,
  saved,
  together,
)

pytestmark = pytest.mark.slow

HEARTBEAT = 10  # seconds, as `together` sets it


def assert_same_curve(workdir, twin) -> float:
  """Equal batches, losses within 1e-5; the largest difference."""
  assert hashes(workdir) == hashes(twin)
  ours, theirs = losses(workdir), losses(twin)
  assert list(ours) == list(theirs) == list(range(1, 21))
  np.testing.assert_allclose(
    list(ours.values()), list(theirs.values()), rtol=1e-5
  )
  # A state whose digest is another on other devices would be set aside.
  assert not events(workdir, "corrupt")
  return max(abs(ours[n] / theirs[n] - 1) for n in ours)


def until_boundary(step: int) -> dict:
  return SLOW | {"term_at": [{"site": "boundary", "step": step}]}


def test_other_devices(start, workdir, twin, record):
  for devices, step in ((8, 5), (4, 10), (1, 15)):
    run = start(workdir, devices=devices, plan=until_boundary(step))
    run.done(Stopped.code)
    assert saved(workdir)[-1] in (step, step + 1)
  start(workdir, devices=8).done()
  worst = assert_same_curve(workdir, twin)
  record(
    "other devices on resume", "8 -> 4 -> 1 -> 8 devices, stopped in between",
    f"digest equal after each restore, batches equal, losses within {worst:.0e}"
    " of one device", None,
  )  # fmt: skip


@pytest.fixture(scope="module")
def pair_twin(start, tmp_path_factory):
  """An untouched run of two processes with a device each."""
  workdir = tmp_path_factory.mktemp("pair") / "run"
  for run in together(start, workdir, 2):
    run.done()
  return workdir


def test_two_processes_give_the_curve_of_one(pair_twin, twin, record):
  worst = assert_same_curve(pair_twin, twin)
  record(
    "other processes", "2 processes with a device each beside 1 process",
    f"batches equal, losses within {worst:.0e}", None,
  )  # fmt: skip


def test_one_of_two_is_stopped_and_then_killed(
  start, workdir, pair_twin, record
):
  runs = together(start, workdir, 2, plan=SLOW)
  runs[0].row(3)
  runs[1].send(signal.SIGTERM)
  asked = runs[1].seconds
  for run in runs:
    run.done(Stopped.code)
  (stop,) = events(workdir, "stopped")
  assert saved(workdir)[-1] == stop["step"]
  record(
    "one of 2 processes is asked to stop", "SIGTERM to the second",
    "both save the same step and end with 75; equals its twin bitwise",
    runs[1].ended - runs[1].began - asked,
  )  # fmt: skip

  runs = together(start, workdir, 2, plan=SLOW)
  runs[0].row(max(stop["step"], 10) + 1)
  killed(runs, 1, record)
  stood = last_step(workdir)
  runs = together(start, workdir, 2)
  runs[0].row(stood)
  seconds = runs[0].seconds
  for run in runs:
    run.done()
  assert_twins(workdir, pair_twin)
  record(
    "2 processes after one was killed", "both started again",
    "equals its twin bitwise", seconds,
  )  # fmt: skip


def killed(runs, which: int, record) -> None:
  """Kills one of several; the rest must be gone soon after."""
  runs[which].send(signal.SIGKILL)
  others = [run for run in runs if run is not runs[which]]
  died = runs[which].done(-signal.SIGKILL).ended
  for run in others:
    run.done(PeerLost.code)
    assert "another process of this run is gone" in run.err
  gone = max(run.ended for run in others) - died
  assert gone < patience(HEARTBEAT + 10)
  record(
    f"one of {len(runs)} processes dies", f"SIGKILL of process {which}",
    f"status 79 of the others after {gone:.1f} s (--heartbeat={HEARTBEAT})",
    None,
  )  # fmt: skip


@pytest.mark.parametrize("each", [1, 4])
def test_one_process_goes_on_as_two(start, workdir, twin, record, each):
  plan = until_boundary(10)
  start(workdir, devices=2 * each, plan=plan).done(Stopped.code)
  for run in together(start, workdir, 2, devices=each):
    run.done()
  worst = assert_same_curve(workdir, twin)
  record(
    "other processes on resume",
    f"1 process with {2 * each} devices -> 2 with {each}",
    f"digest equal after the restore, batches equal, losses within {worst:.0e}",
    None,
  )  # fmt: skip


def test_processes_with_different_configs(start, workdir, record):
  seeds = iter((3, 4))

  def begin(folder, *flags, **changes):
    return start(folder, *flags, f"--config.seed={next(seeds)}", **changes)

  runs = together(begin, workdir, 2)
  for run in runs:
    run.done(BadConfig.code)
    assert "different configs" in run.err
  record(
    "processes with different configs", "two seeds",
    "both end with 78", max(run.ended - run.began for run in runs),
  )  # fmt: skip


# Both held-out sets of the run are of that text; the first by name is told.
@pytest.mark.parametrize("which", ["data", "evaluate.first"])
def test_processes_with_different_data(start, workdir, tmp_path, record, which):
  """Each finds another text under the same path, as on two machines."""
  homes = [tmp_path / "one", tmp_path / "other"]
  for home in homes:
    home.mkdir()
    write_texts(home)
  path = homes[1] / "plain.txt"
  old = path.read_text()  # its end is held out
  path.write_text("z" + old[1:] if which == "data" else old[:-2] + "z\n")
  own = iter(homes)

  def begin(folder, *flags, **changes):
    home = {"HOME": str(next(own))}
    return start(folder, *flags, text="~", environ=home, **changes)

  runs = together(begin, workdir, 2)
  for run in runs:
    run.done(BadConfig.code)
    assert f"different data ({which})" in run.err
  assert not rows(workdir) and not saved(workdir)
  record(
    "processes with different data", f"one letter in a source, of {which}",
    "both end with 78 before the first step, and name the set",
    max(run.ended - run.began for run in runs),
  )  # fmt: skip


def test_one_of_two_is_stopped_before_it_is_ready(start, workdir, record):
  """Right after they have met: what one is told holds for both."""
  plan = {"stop_at": [{"site": "prepared", "process": 1}]}
  runs = together(start, workdir, 2, plan=plan)
  runs[1].stopped()
  asked = runs[1].go_on(signal.SIGTERM)
  for run in runs:
    run.done(Stopped.code)
  record(
    "one of 2 processes is asked to stop", "SIGTERM to the second at the start",
    "both end with 75", max(run.ended for run in runs) - asked,
  )  # fmt: skip


@pytest.mark.parametrize("which", [0, 1])
def test_a_process_that_never_comes(start, workdir, record, which):
  where = f"--coordinator=127.0.0.1:{free_port()}"
  run = start(
    workdir, where, "--processes=2", f"--process={which}", "--join_limit=5"
  )
  run.done(PeerLost.code)
  waits, late = run.err.splitlines()  # and no stack of C++
  assert "waits for the other processes" in waits
  assert "did not find each other within 5 seconds (--join_limit)" in late
  assert not workdir.exists()
  record(
    "one of 2 processes never comes", f"only process {which} is started",
    "status 79, nothing touched (--join_limit=5)",
    run.ended - run.began,
  )  # fmt: skip


# The process that the others meet at, and one of the others.
@pytest.mark.parametrize("which", [0, 3])
def test_four_processes(start, workdir, twin, record, which):
  runs = together(start, workdir, 4, devices=2, plan=SLOW)
  runs[0].row(3)
  runs[which].send(signal.SIGTERM)
  for run in runs:
    run.done(Stopped.code)
  (stop,) = events(workdir, "stopped")
  assert saved(workdir)[-1] == stop["step"]
  record(
    "one of 4 processes is asked to stop", f"SIGTERM to process {which}",
    "all save the same step and end with 75", None,
  )  # fmt: skip
  runs = together(start, workdir, 4, devices=2, plan=SLOW)
  runs[0].row(max(stop["step"], 10) + 1)
  killed(runs, which, record)
  for run in together(start, workdir, 4, devices=2):
    run.done()
  assert_same_curve(workdir, twin)


def test_one_process_fails_alone(start, workdir, record):
  plan = {"raise_at": [{"site": "boundary", "step": 6, "process": 1}]}
  runs = together(start, workdir, 2, plan=plan)
  runs[1].says("injected at boundary")
  failed = runs[1].seconds
  runs[0].done(PeerLost.code)
  assert runs[1].wait()
  gone = max(run.ended for run in runs) - runs[1].began - failed
  record(
    "one of 2 processes fails alone", "an error in the second at step 6",
    f"both are gone {gone:.1f} s later (--heartbeat={HEARTBEAT})", None,
  )  # fmt: skip
