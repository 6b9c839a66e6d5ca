"""Interrupted equals uninterrupted, and the order of the loop is kept."""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from aigc_jax.errors import BadConfig, BadData, NonFinite, Stopped
from aigc_jax.trainer import faults, log, manifest
from aigc_jax.trainer.consumed import Consumed
from aigc_jax.trainer.journal import EVENT, EVENTS, METRICS, Journal, rows
from aigc_jax.trainer.loop import fit
from aigc_jax.trainer.profile import Profiler
from aigc_jax.trainer.step import MEANS
from aigc_jax.trainer.stop import Stop
from aigc_jax.trainer.watchdog import Watchdog
from tests.sweep import sweep
from tests.trainer import toy


class Number:
  """A metric that tells when somebody looks at it."""

  def __init__(self, value, calls, step):
    self.value, self.calls, self.step = value, calls, step

  def __array__(self, dtype=None, copy=None):
    self.calls.append(f"fetch {self.step}")
    return np.asarray(self.value, dtype)


class Saved:
  """Checkpoints that only note what is asked of them."""

  digest = [1, 2]

  def __init__(self, calls, every):
    self.calls, self.every, self.meta = calls, every, {}

  def check(self):
    pass

  def close(self):
    self.calls.append("close")

  def due(self, n):
    return n > 0 and n % self.every == 0

  def save(self, n, state, meta):
    assert state == n
    self.calls.append(f"save {n}")
    self.meta[n] = meta

  commit = save


def loop(
  tmp_path, calls, *, steps=4, k=1, save=2, evaluate=2, stop_at=None, **changes
):
  """fit with parts that note their calls; the state is the step."""

  def advance(n, batch):
    assert batch == {"n": n}
    calls.append(f"step {n}")
    value = n + 1.0 if k == 1 else np.arange(n + 1.0, n + k + 1)
    return n + k, {"train/loss": Number(value, calls, n + k)}

  def judge(n, state):
    assert state == n
    calls.append(f"evaluate {n}")
    if n == stop_at:
      raise Stopped("SIGTERM")
    return {"eval/a/loss": 0.5}

  settings = dict(
    start=0, steps=steps, steps_per_call=k, advance=advance,
    batches=((n, {"n": n}) for n in range(0, steps, k)),
    evaluate=changes.pop("judge", judge),
    meta=lambda n: {"config": "c", "n": n}, log_every_steps=1,
    each=Consumed({"examples": 2, "tokens": 10}, 100), peak_flops=None,
    due=lambda n: n % evaluate == 0,
  ) | changes  # fmt: skip
  with (
    Journal(tmp_path, tensorboard=False) as journal,
    Stop(tmp_path) as stop,
    Watchdog(tmp_path, step_seconds=60, compile_seconds=60) as watchdog,
  ):
    saved = settings.pop("checkpoints", None) or Saved(calls, save)
    return fit(
      settings.pop("state", 0), checkpoints=saved, journal=journal,
      stop=settings.pop("stop", stop), watchdog=watchdog, **settings,
    )  # fmt: skip


def test_the_order_is_evaluate_save_step_and_metrics_one_step_late(tmp_path):
  calls = []
  loop(tmp_path, calls)
  assert calls == [
    "evaluate 0", "step 0",
    "step 1", "fetch 1",
    "fetch 2", "evaluate 2", "save 2", "step 2",
    "step 3", "fetch 3",
    "fetch 4", "evaluate 4", "save 4",
  ]  # fmt: skip


class Slow(Saved):
  """Checkpoints that take their time."""

  def save(self, n, state, meta):
    time.sleep(0.05)
    super().save(n, state, meta)

  commit = save


def test_the_journal_says_where_the_time_of_a_run_went(tmp_path):
  def batches():
    for n in range(4):
      time.sleep(0.03)
      yield n, {"n": n}

  began = time.monotonic()
  _, result = loop(tmp_path, [], batches=batches(), checkpoints=Slow([], 2))
  whole = time.monotonic() - began
  shares = result["goodput"]
  assert sum(shares.values()) == pytest.approx(1.0, abs=1e-3)
  for name, least in (("save", 2 * 0.05), ("data", 4 * 0.03)):
    assert shares[name] >= 0.99 * least / whole
  assert {"evaluate", "steps"} < set(shares)
  assert rows(tmp_path / EVENTS, EVENT)[-1]["goodput"] == shares


def test_rows_are_those_of_the_state_they_made(tmp_path):
  loop(tmp_path, [])
  found = rows(tmp_path / METRICS)
  trained = {r["step"]: r["train/loss"] for r in found if "train/loss" in r}
  assert trained == {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0}
  assert [r["step"] for r in found if "eval/a/loss" in r] == [0, 2, 4]
  assert [r["step"] for r in found] == [0, 1, 2, 2, 3, 4, 4]
  assert all(r["tokens"] == 10 * r["step"] for r in found)
  assert all(r["flops"] == 100.0 * r["step"] for r in found)


def test_what_has_no_row_is_read_only_where_a_step_was_skipped(tmp_path):
  calls = []

  def advance(n, batch):
    skipped = np.int32(n == 5)
    loss = Number(n + 1.0, calls, n + 1)
    return n + 1, {"train/loss": loss, "optim/skipped": skipped}

  loop(tmp_path, calls, steps=8, advance=advance, log_every_steps=4, save=9)
  assert [call for call in calls if "fetch" in call] == [
    "fetch 4", "fetch 6", "fetch 8",
  ]  # fmt: skip
  (skip,) = (r for r in rows(tmp_path / EVENTS, EVENT) if r["event"] == "skip")
  assert (skip["step"], skip["loss"], skip["data_step"]) == (6, 6.0, 5)
  trained = [r for r in rows(tmp_path / METRICS) if "train/loss" in r]
  assert [r["step"] for r in trained] == [4, 8]


def weighed(n, batch, skipped=()):
  """A step whose loss is n + 1 with weight n + 1; nan where it is skipped."""
  bad = n in skipped
  loss = np.float32("nan") if bad else np.float32(n + 1)
  pair = np.array([[(n + 1) ** 2, n + 1]], np.float32)
  metrics = {"train/loss": loss, MEANS: pair * (np.nan if bad else 1)}
  return n + 1, metrics | {"optim/skipped": np.int32(bad)}


def losses(workdir) -> dict:
  found = [r for r in rows(workdir / METRICS) if "train/loss" in r]
  return {r["step"]: (r["train/loss"], r["train/last_loss"]) for r in found}


def test_a_row_has_the_mean_over_its_steps_by_their_weights(tmp_path):
  loop(tmp_path, [], steps=8, advance=weighed, log_every_steps=3, save=9)

  def mean(*values):
    return float(np.float32(sum(v * v for v in values) / sum(values)))

  assert losses(tmp_path) == {
    3: (mean(1, 2, 3), 3.0), 6: (mean(4, 5, 6), 6.0), 8: (mean(7, 8), 8.0),
  }  # fmt: skip


def test_a_step_that_is_not_finite_voids_no_mean_but_its_own(tmp_path):
  advance = functools.partial(weighed, skipped=(1, 3))
  loop(tmp_path, [], steps=4, advance=advance, log_every_steps=3, save=9)
  assert losses(tmp_path) == {3: (2.5, 3.0), 4: (None, None)}


def test_the_last_step_has_a_row_whatever_the_interval(tmp_path):
  loop(tmp_path, [], steps=4, log_every_steps=100, save=9)
  trained = [r for r in rows(tmp_path / METRICS) if "train/loss" in r]
  assert [r["step"] for r in trained] == [4]


def test_what_was_consumed_is_added_to_and_saved(tmp_path):
  """A larger batch on resume counts from there on, not from the start."""
  saved = Saved([], 2)
  loop(tmp_path, [], checkpoints=saved)
  before = saved.meta[4]
  assert before["n"] == 4
  assert before["consumed"] == {
    "units": {"examples": 8, "tokens": 40}, "flops": 400,
  }  # fmt: skip
  later = Saved([], 2)
  _, result = loop(
    tmp_path, [], start=4, steps=6, state=4, before=before, checkpoints=later,
    each=Consumed({"examples": 4, "tokens": 32}, 500),
    batches=((n, {"n": n}) for n in (4, 5)),
  )  # fmt: skip
  found = {r["step"]: r for r in rows(tmp_path / METRICS)}
  assert [found[n]["tokens"] for n in (4, 5, 6)] == [40, 72, 104]
  assert [found[n]["examples"] for n in (4, 5, 6)] == [8, 12, 16]
  assert [found[n]["flops"] for n in (4, 5, 6)] == [400.0, 900.0, 1400.0]
  assert later.meta[6]["consumed"]["units"] == {"examples": 16, "tokens": 104}
  assert result["tokens"] == 104


def test_calls_that_do_not_meet_a_step_are_told_which_would(tmp_path):
  with pytest.raises(BadConfig, match=r"goes on at step 3.*steps_per_call=1:"):
    loop(tmp_path, [], start=3, k=2, state=3)
  with pytest.raises(BadConfig, match=r"ends at step 6.*steps_per_call=2:"):
    loop(tmp_path, [], steps=6, k=4)


def test_several_steps_a_call_give_the_same_rows(tmp_path):
  for k in (1, 2):
    (tmp_path / str(k)).mkdir()
    loop(tmp_path / str(k), [], k=k)
  one, two = (timeless(tmp_path / str(k)) for k in (1, 2))
  assert one == two
  with pytest.raises(BadConfig, match="steps_per_call=3"):
    loop(tmp_path, [], k=3)


def test_mfu_is_told_only_where_the_peak_is_known(tmp_path):
  for name, peak in (("unknown", None), ("known", 1e9)):
    (tmp_path / name).mkdir()
    loop(tmp_path / name, [], peak_flops=peak)
    row = rows(tmp_path / name / METRICS)[-2]
    assert ("speed/mfu" in row) == (peak is not None)
    assert row["speed/tokens_per_second"] > 0


class Device:
  """A clock, and a device that takes so many seconds of it for a step."""

  def __init__(self, seconds):
    self.now, self.free, self.seconds = 100.0, 100.0, seconds

  def advance(self, n, batch):
    self.free = end = max(self.free, self.now) + self.seconds
    return n + 1, {"train/loss": Number(1.0, self, end)}

  def monotonic(self):
    return self.now

  def append(self, fetched):  # "fetch T", which waits until then
    self.now = max(self.now, float(fetched.split()[1]))

  def evaluate(self, n, state):
    self.now = max(self.now, self.free) + 1000.0
    return {"eval/a/loss": 0.5}


@pytest.mark.parametrize("every", [1, 2, 4])
def test_no_step_is_taken_for_evaluation_in_the_pace(
  tmp_path, monkeypatch, every
):
  device = Device(2.0)
  monkeypatch.setattr(log, "time", device)
  loop(
    tmp_path, [], steps=8, advance=device.advance, judge=device.evaluate,
    evaluate=4, peak_flops=1e3, log_every_steps=every,
  )  # fmt: skip
  found = [r for r in rows(tmp_path / METRICS) if "train/loss" in r]
  assert [r["speed/steps_per_second"] for r in found] == [0.5] * (8 // every)
  assert {r["speed/tokens_per_second"] for r in found} == {5.0}
  assert {r["speed/mfu"] for r in found} == {0.5 * 100 / 1e3}


def test_a_small_pace_is_told_by_digits_that_count(tmp_path, monkeypatch):
  device = Device(3e4)
  monkeypatch.setattr(log, "time", device)
  loop(tmp_path, [], advance=device.advance, save=9, peak_flops=1e3)
  row = rows(tmp_path / METRICS)[-2]
  assert row["speed/steps_per_second"] == pytest.approx(1 / 3e4, rel=1e-4)
  assert row["speed/mfu"] == pytest.approx(1 / 3e5, rel=1e-4)


def test_data_that_ends_too_early_is_bad_data(tmp_path):
  calls = []
  with pytest.raises(BadData, match="step 2 of 4"):
    loop(tmp_path, calls, batches=iter([(0, {"n": 0}), (1, {"n": 1})]))
  assert calls[-1] == "close"


def test_what_is_not_finite_is_counted_over_restarts(tmp_path):
  def advance(n, batch):
    return n + 1, {"train/loss": np.float32("nan"), "optim/skipped": 1}

  saved = Saved([], 2)
  with pytest.raises(NonFinite, match="step 3: 5 steps in a row"):
    loop(
      tmp_path, [], steps=8, advance=advance, checkpoints=saved,
      most_skipped=5, before={"skipped_in_a_row": 2},
    )  # fmt: skip
  assert saved.meta[2]["skipped_in_a_row"] == 4
  found = [r for r in rows(tmp_path / EVENTS, EVENT) if r["event"] == "skip"]
  assert [r["step"] for r in found] == [1, 2, 3]


def test_what_is_not_finite_names_the_batches_to_pass_over(tmp_path):
  """Three steps of the data are left out already, before step 2."""

  def advance(n, batch):
    bad = n >= 4
    loss = np.float32("nan" if bad else 1.0)
    return n + 1, {"train/loss": loss, "optim/skipped": np.int32(bad)}

  with pytest.raises(NonFinite, match=r'skip_steps="\(\(7, 9\),\)"'):
    loop(
      tmp_path, [], steps=8, advance=advance, most_skipped=2, save=9,
      data_step=lambda n: n + 3 * (n >= 2),
    )  # fmt: skip
  found = [r for r in rows(tmp_path / EVENTS, EVENT) if r["event"] == "skip"]
  assert [(r["step"], r["data_step"]) for r in found] == [(5, 7), (6, 8)]


def test_a_stop_in_an_evaluation_saves_once_and_leaves(tmp_path):
  calls = []
  with pytest.raises(Stopped, match="saved at step 2 of 4"):
    loop(tmp_path, calls, save=4, stop_at=2)
  assert calls[-3:] == ["fetch 2", "evaluate 2", "save 2"]
  assert rows(tmp_path / METRICS)[-1]["step"] == 2


# Whole runs of the toy, in this process or another.


def timeless(workdir) -> list[dict]:
  """The rows of a run without what depends on time."""
  return [
    {
      name: x
      for name, x in row.items()
      if name != "seconds" and not name.startswith("speed/")
    }
    for row in rows(workdir / METRICS)
  ]


def digest_of(workdir) -> list[int]:
  return json.loads((workdir / "result.json").read_text())["digest"]


def kinds(workdir) -> list[str]:
  return [row["event"] for row in rows(workdir / EVENTS, EVENT)]


@contextlib.contextmanager
def planned(workdir, monkeypatch, **plan):
  workdir.mkdir(exist_ok=True)
  (workdir / faults.MARK).touch()
  with monkeypatch.context() as patch:
    patch.setenv(faults.VARIABLE, json.dumps(plan))
    yield


def equal(workdir, twin):
  assert timeless(workdir) == timeless(twin)
  assert digest_of(workdir) == digest_of(twin)


FLAGS = ["--steps=20", "--save=5", "--evaluate=4"]


@pytest.fixture(scope="module")
def twin(tmp_path_factory, compiled):
  """The run that nothing ever happened to."""
  workdir = tmp_path_factory.mktemp("twin")
  assert toy.main([str(workdir), *FLAGS]) == 0
  return workdir


@pytest.mark.parametrize(
  "place",
  sweep(
    [
      {"site": "boundary", "step": 0},
      {"site": "boundary", "step": 5},
      {"site": "step", "step": 7},
      {"site": "evaluate/batch", "n": 8},
      {"site": "save/manifest", "n": 2},
      {"site": "compile"},
    ],
    {"site": "save/manifest", "n": 2},
  ),
)
def test_a_run_stopped_anywhere_continues_bit_for_bit(
  tmp_path, monkeypatch, twin, place
):
  words = [str(tmp_path), *FLAGS]
  with planned(tmp_path, monkeypatch, term_at=[place]):
    assert toy.main(words) == Stopped.code
  assert toy.main(words) == 0
  equal(tmp_path, twin)
  assert kinds(tmp_path).count("stopped") == 1


@pytest.mark.slow
def test_means_over_steps_outlive_a_stop_between_two_rows(
  tmp_path, monkeypatch, compiled
):
  flags = ["--steps=20", "--save=5", "--log=7"]
  (tmp_path / "twin").mkdir()
  assert toy.main([str(tmp_path / "twin"), *flags]) == 0
  assert list(losses(tmp_path / "twin")) == [7, 14, 20]
  words = [str(tmp_path / "run"), *flags]
  place = {"site": "step", "step": 11}
  with planned(tmp_path / "run", monkeypatch, term_at=[place]):
    assert toy.main(words) == Stopped.code
  assert toy.main(words) == 0
  equal(tmp_path / "run", tmp_path / "twin")
  for name in ("train/loss", "eval/heldout/loss"):
    a, b = (
      json.loads((tmp_path / x / "result.json").read_text()).get(name)
      for x in ("run", "twin")
    )
    assert a == b


def _number(folder) -> int:
  return int(folder.name)


@pytest.mark.slow
def test_a_run_after_a_damaged_checkpoint_continues_bit_for_bit(
  tmp_path, monkeypatch, twin
):
  words = [str(tmp_path), *FLAGS]
  with planned(tmp_path, monkeypatch, term_at=[{"site": "step", "step": 12}]):
    assert toy.main(words) == Stopped.code
  # The signal may reach the thread that waits for it a step later.
  steps = (tmp_path / "checkpoints").iterdir()
  newest = max((p for p in steps if p.name.isdigit()), key=_number)
  os.truncate(newest / manifest.NAME, 50)
  assert toy.main(words) == 0
  equal(tmp_path, twin)
  assert "corrupt" in kinds(tmp_path)


@pytest.mark.slow
def test_several_steps_a_call_and_a_full_disk_change_nothing(
  tmp_path, monkeypatch, twin
):
  words = [str(tmp_path), *FLAGS, "--steps-per-call=2", "--save=4"]
  plan = [{"site": "save/manifest", "n": [1, 2], "errno": 28}]
  with planned(tmp_path, monkeypatch, raise_at=plan):
    assert toy.main(words) == 0
  assert timeless(tmp_path) == timeless(twin)
  assert digest_of(tmp_path) == digest_of(twin)
  assert kinds(tmp_path).count("save_failed") == 2


@pytest.mark.slow
def test_a_batch_that_is_not_finite_leaves_the_state_as_it_was(
  tmp_path, monkeypatch, compiled
):
  words = [str(tmp_path), "--steps=8", "--save=1", "--keep=9"]
  with planned(tmp_path, monkeypatch, nan_at=[4]):
    assert toy.main(words) == 0
  assert kinds(tmp_path).count("skip") == 1
  before, after = (
    manifest.read(tmp_path / "checkpoints" / str(n))["leaves"] for n in (4, 5)
  )
  changed = [
    a["name"]
    for a, b in zip(before, after, strict=True)
    if a["digest"] != b["digest"]
  ]
  assert sorted(changed) == ["skipped", "step"]


def test_a_run_that_stays_not_finite_ends_and_saves_nothing_bad(
  tmp_path, monkeypatch, compiled
):
  words = [str(tmp_path), *FLAGS, "--most-skipped=3"]
  with planned(tmp_path, monkeypatch, nan_at=list(range(7, 20))):
    assert toy.main(words) == NonFinite.code
  assert kinds(tmp_path).count("skip") == 3
  assert toy.main(words) == 0


def program(workdir, compiled, *words, **plan) -> int:
  """A run in a process of its own."""
  environ = os.environ | {
    "JAX_COMPILATION_CACHE_DIR": compiled,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    faults.VARIABLE: json.dumps(plan) if plan else "",
  }
  workdir.mkdir(exist_ok=True)
  (workdir / faults.MARK).touch()
  return subprocess.run(
    [sys.executable, "-m", "tests.trainer.toy", str(workdir), *words],
    env=environ,
    capture_output=True,
    timeout=600,
  ).returncode


@pytest.mark.slow
def test_a_run_killed_again_and_again_continues_bit_for_bit(
  tmp_path, compiled, twin
):
  for site, step in (("save/rename", 10), ("save/renamed", 15)):
    plan = {"die_at": [{"site": site, "step": step}]}
    code = program(tmp_path, compiled, *FLAGS, **plan)
    assert code == -signal.SIGKILL
  assert toy.main([str(tmp_path), *FLAGS]) == 0
  equal(tmp_path, twin)
  assert "leftover" in kinds(tmp_path)
  programs = {r.get("hlo_sha256") for r in rows(tmp_path / EVENTS, EVENT)} - {
    None
  }
  assert len(programs) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
  "site, step",
  [
    ("evaluate", 8), ("boundary", 10), ("step", 13), ("save/begin", 10),
    ("save/manifest", 10), ("save/rename", 5), ("save/renamed", 10),
    ("save/renamed", 20), ("save/retain", 5), ("journal/append", None),
  ],
)  # fmt: skip
def test_a_run_killed_at_any_place_continues_bit_for_bit(
  tmp_path, compiled, twin, site, step
):
  place = {"site": site, "n": 1 if step is not None else 11}
  place |= {} if step is None else {"step": step}
  plan = {"die_at": [place]}
  assert program(tmp_path, compiled, *FLAGS, **plan) == -signal.SIGKILL
  assert program(tmp_path, compiled, *FLAGS) == 0
  equal(tmp_path, twin)


def test_a_checkpoint_notes_the_rows_that_stand_when_it_is_saved(tmp_path):
  noted = {}

  class Noting(Saved):
    def save(self, n, state, meta):
      noted[n] = meta["rows"]

    commit = save

  loop(tmp_path, [], checkpoints=Noting([], 2))
  assert {n: x["count"] for n, x in noted.items()} == {2: 4, 4: 7}
  assert noted[4]["trained"] == [[1, 4, 1]]
  assert noted[4]["evaluated"] == [[0, 4, 2]]


@pytest.mark.parametrize(
  ("steps", "call", "good"),
  [
    ("10,13", 1, True), ("0,0", 1, True), ("19,90", 1, True),
    ("20,30", 1, False), ("13,10", 1, False), ("-3,-1", 1, False),
    ("x,y", 1, False), ("5", 1, False), ("11,14", 5, False),
    ("11,15", 5, True),
  ],
)  # fmt: skip
def test_a_profile_of_steps_that_never_begin_is_refused(steps, call, good):
  make = functools.partial(Profiler, Path("x"), steps.split(","), 20, call)
  if good:
    assert make().first == int(steps.split(",")[0])
  else:
    with pytest.raises(BadConfig, match=f"--profile_steps={steps}: "):
      make()
