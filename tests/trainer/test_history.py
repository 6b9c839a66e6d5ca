"""A run that lost something of itself does not go on as if it had not."""

import json
import shutil

import jax.numpy as jnp
import pytest

from aigc_jax import train
from aigc_jax.errors import BadConfig, StorageFailure
from aigc_jax.trainer import faults, history, identity, provenance
from aigc_jax.trainer.changes import Change
from aigc_jax.trainer.checkpoint import Checkpoints
from aigc_jax.trainer.identity import Identity
from aigc_jax.trainer.journal import CUT, METRICS, Journal, rows
from aigc_jax.trainer.lock import Lock

RUN = Identity("0123456789abcdef")


@pytest.fixture
def workdir(tmp_path):
  """A run with one checkpoint, of step 3, in the middle of step 5."""
  (tmp_path / "config.json").write_text("{}")
  (tmp_path / "run.json").write_text(json.dumps({"run": RUN.as_json()}))
  with Journal(tmp_path, tensorboard=False) as journal:
    journal.event("start", 0)
    saved = Checkpoints(
      tmp_path / "checkpoints", every_steps=3, keep=1, keep_every_steps=0,
      tell=journal.event, run=RUN,
    )  # fmt: skip
    for step in range(1, 5):
      journal.row(step, {"train/loss": 1.0})
      if step == 3:
        saved.commit(3, {"params": {"w": jnp.arange(3.0)}}, {})
  return tmp_path


def test_checkpoints_are_of_a_config_that_is_there(workdir):
  history.check_config(workdir)
  (workdir / "config.json").unlink()
  with pytest.raises(BadConfig, match="step 3.*no config.json.*print_config"):
    history.check_config(workdir)
  shutil.rmtree(workdir / "checkpoints")
  history.check_config(workdir)


def forget(path, *kinds: str) -> None:
  """Takes events out of a journal."""
  lines = path.read_text().splitlines(keepends=True)
  kept = [x for x in lines if json.loads(x)["event"] not in kinds]
  path.write_text("".join(kept))


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (lambda d: None, "tells of one of step 3"),
    (lambda d: (d / "events.jsonl").unlink(), "metrics.jsonl has 4 rows"),
    (lambda d: (d / "result.json").write_text("{}"), "was finished"),
  ],
)
def test_a_run_that_saved_and_has_no_checkpoint_never_begins_again(
  workdir, change, words
):
  shutil.rmtree(workdir / "checkpoints")
  change(workdir)
  with pytest.raises(StorageFailure, match=words):
    history.check_nothing_lost(workdir)


def test_a_run_that_never_saved_may_begin_again(workdir):
  shutil.rmtree(workdir / "checkpoints")
  forget(workdir / "events.jsonl", "save")
  assert history.check_nothing_lost(workdir) == 4
  with Journal(workdir, tensorboard=False) as journal:
    journal.event("restart", 3)
  with pytest.raises(StorageFailure, match=r"of step 3 \(restart\)"):
    history.check_nothing_lost(workdir)


def test_going_back_without_room_for_the_rows_changes_nothing(workdir):
  (workdir / "result.json").write_text('{"step": 4}')
  (workdir / faults.MARK).touch()
  plan = {"raise_at": [{"site": "journal/copy", "errno": 28}]}
  faults.enable(workdir, {faults.VARIABLE: json.dumps(plan)})
  before = {p.name: p.stat().st_size for p in workdir.rglob("*")}
  with Lock(workdir) as lock:
    with pytest.raises(StorageFailure, match="so nothing is changed.*No space"):
      train._rewind(workdir, lock, 3)
    after = {p.name: p.stat().st_size for p in workdir.rglob("*")}
    assert {name: after[name] for name in before} == before
    train._rewind(workdir, lock, 3)
  assert [row["step"] for row in rows(workdir / METRICS)] == [1, 2, 3]
  assert [row["step"] for row in rows(workdir / CUT)] == [4]
  assert (workdir / "result.4.rewound.json").is_file()


def test_a_result_counts_with_the_checkpoint_it_is_of(workdir):
  path = workdir / "checkpoints" / "3" / "manifest.json"
  digest = json.loads(path.read_text())["digest"]
  result = {"step": 3, "digest": digest}
  assert history.what_is_gone(workdir, result, RUN) == ""
  other = {"step": 3, "digest": [digest[0] ^ 1, digest[1]]}
  assert "not the one" in history.what_is_gone(workdir, other, RUN)
  elsewhere = history.what_is_gone(workdir, result, Identity("f" * 16))
  assert "gone or not whole" in elsewhere
  path.unlink()
  assert "step 3 is gone" in history.what_is_gone(workdir, result, RUN)


@pytest.mark.parametrize(
  "entry", ["x", [], {"id": 3}, {"id": "a/b"}, {"id": "a", "since": "b"}, {}]
)
def test_an_identity_that_makes_no_sense_is_refused(entry):
  with pytest.raises(BadConfig, match="put back the run.json"):
    identity.of({"run": entry})
  assert identity.of({}) == Identity("")
  assert identity.new() != identity.new()


def test_flags_of_xla_are_compared_without_order_and_what_is_silent():
  one = provenance.flags_of("--xla_b=2 --xla_a=1 --xla_dump_to=/x")
  other = provenance.flags_of(
    "--xla_a=0 --xla_a=1  --xla_b=2 --xla_force_host_platform_device_count=8"
  )
  assert one == other == {"xla_a": "1", "xla_b": "2"}


def test_what_changes_bits_is_found_by_name(monkeypatch):
  before = {"numerics": provenance.numerics(), "hlo_sha256": "a"}
  monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
  monkeypatch.setenv("NCCL_ALGO", "Ring")
  now = {"numerics": provenance.numerics(), "hlo_sha256": "b"}
  manifest = {"step": 3, "meta": before}
  found = history.program_changes(manifest, now, ("numerics", "hlo_sha256"))
  keys = [change.key for change in found]
  assert "numerics.XLA_FLAGS.xla_cpu_enable_fast_math" in keys
  assert {"numerics.NCCL_ALGO", "hlo_sha256"} < set(keys)
  assert not history.program_changes(manifest, before, ("numerics",))
  assert not history.program_changes(
    {"step": 3, "meta": {}}, now, ("numerics",)
  )
  for name in ("jax_default_prng_impl", "jax_threefry_partitionable"):
    assert name in now["numerics"]


def test_a_step_that_is_another_by_a_changed_key_is_told_with_the_key(caplog):
  manifest, now = {"step": 3, "meta": {"hlo_sha256": "a"}}, {"hlo_sha256": "b"}
  meant = [Change("log.every_steps", 1, 2), Change("steps", 10, 20)]

  def told(meant) -> str:
    caplog.clear()
    assert history.program_changes(manifest, now, ("hlo_sha256",), meant)
    return caplog.text

  assert "as it has to be: the numbers of steps are a part" in told(meant)
  assert "results may differ" in told(meant[:1])  # is no part of the step
  assert "results may differ" in told(())
