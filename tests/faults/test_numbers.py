"""Losses that are not finite, spikes, and data that is passed over."""

import pytest

from aigc_jax.errors import Diverged, NonFinite
from aigc_jax.trainer import manifest
from tests.faults.harness import events, hashes, last_step, result, saved

pytestmark = pytest.mark.slow

EVERY = ("--config.checkpoint.every_steps=1", "--config.checkpoint.keep=30")


def digests(workdir, step: int) -> dict:
  leaves = manifest.read(workdir / "checkpoints" / str(step))["leaves"]
  return {leaf["name"]: leaf["digest"] for leaf in leaves}


def test_one_batch_that_is_not_finite(start, copy, record):
  start(copy, *EVERY, plan={"nan_at": [14]}).done()
  before, after = digests(copy, 14), digests(copy, 15)
  changed = {name for name in before if before[name] != after[name]}
  assert changed == {"step", "skipped"}
  (skip,) = events(copy, "skip")
  assert skip["step"] == 15
  assert result(copy)["optim/skipped_total"] == 1
  record(
    "loss or gradient not finite, once", "a batch with NaN weights",
    "state bit-identical but for two counters, journalled", None,
  )  # fmt: skip


def test_batches_that_stay_not_finite(start, workdir, record):
  run = start(workdir, plan={"nan_at": list(range(6, 20))})
  run.done(NonFinite.code)
  assert [row["step"] for row in events(workdir, "skip")] == list(range(7, 17))
  assert saved(workdir) == [5, 10, 15]
  params = [
    {k: v for k, v in digests(workdir, n).items() if k.startswith("params/")}
    for n in (10, 15)
  ]
  assert params[0] == params[1], "nothing of it was saved"
  stood = last_step(workdir)
  again = start(workdir)
  again.row(stood)
  seconds = again.seconds
  again.done()
  assert events(workdir, "restart")[-1]["step"] == 15
  record(
    "loss or gradient not finite, for good", "NaN weights from step 6 on",
    "status 76 after 10 in a row, every checkpoint good, goes on from there",
    seconds,
  )  # fmt: skip


def test_a_bit_that_flips_on_one_device(start, workdir, twin, record):
  """Seven of eight copies are right; nothing else would ever notice."""
  replicated = ("--config.mesh.data=8", "--config.mesh.fsdp=1")
  flip = dict(step=7, leaf="params/embed/table", device=3, bit=4)
  run = start(workdir, *replicated, devices=8, plan={"bitflip": [flip]})
  run.done(Diverged.code)
  assert "params/embed/table" in run.err
  (told,) = events(workdir, "diverged")
  assert told["step"] == 10 and "3 of process 0" in told["reason"]
  assert saved(workdir) == [5], "the state of step 10 is not kept"
  stood = last_step(workdir)
  again = start(workdir, *replicated, devices=8)
  again.row(stood)
  seconds = again.seconds
  again.done()
  assert events(workdir, "restart")[-1]["step"] == 5
  assert hashes(workdir) == hashes(twin)
  record(
    "one device computes wrong", "a bit of one of eight copies is flipped",
    "status 79 at the next save, names device and leaf, goes on from before",
    seconds,
  )  # fmt: skip


def test_a_spike(start, copy, twin, record):
  start(copy, plan={"poison_at": [15]}).done()
  (spike,) = events(copy, "spike")
  assert spike["step"] == 16
  assert result(copy)["optim/skipped_total"] == 1
  ours, theirs = (result(x)["eval/heldout/loss"] for x in (copy, twin))
  assert abs(ours - theirs) < 0.1 * theirs
  record(
    "loss spike", "targets of one batch replaced, optim.spike_sigma=8",
    f"step skipped and journalled; final loss {ours:.3f} (twin {theirs:.3f})",
    None,
  )  # fmt: skip


def test_data_that_is_passed_over(start, copy, twin, record):
  start(copy, "--config.data.skip_steps=((14, 17),)").done()
  ours, theirs = hashes(copy), hashes(twin)
  # The row of step n tells of batch n - 1.
  assert all(ours[n] == theirs[n] for n in range(1, 15))
  assert all(ours[n] == theirs[n + 3] for n in range(15, 18))
  (change,) = [
    row for row in events(copy, "change") if row["key"] == "data.skip_steps"
  ]
  assert change["new"] == [[14, 17]]
  record(
    "data to be passed over", "--config.data.skip_steps=((14, 17),) on resume",
    "exactly these batches are missing, journalled", None,
  )  # fmt: skip
