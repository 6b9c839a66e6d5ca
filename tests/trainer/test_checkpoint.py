"""What is saved comes back bit for bit, or is not used."""

import gc
import itertools
import json
import os
import pathlib
import random
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aigc_jax import files, sharding, tree
from aigc_jax.errors import (
  BadConfig,
  Diverged,
  NonFinite,
  StorageFailure,
  WorkdirInUse,
)
from aigc_jax.trainer import arrays, faults, manifest, replicas, saving
from aigc_jax.trainer.checkpoint import Checkpoints
from aigc_jax.trainer.identity import Identity
from aigc_jax.trainer.state import fresh
from tests.sweep import sweep
from tests.trainer.golden import make as golden


def make(step: int = 0, mesh=None, size: int = 64):
  """A state with every kind of leaf, different at every step."""
  bits = np.random.default_rng(step).normal(size=(size, 24))
  state = {
    "step": jnp.int32(step),
    "params": {
      "stack/w": jnp.asarray(bits, jnp.float32),
      "half": jnp.asarray(bits[:8], jnp.bfloat16),
      "empty": jnp.zeros((0, 3)),
    },
    "opt_state": ({"seen": jnp.array([True, False])}, jnp.uint32(7)),
  }
  if mesh is None:
    return state

  def place(x):
    letters = "FD" if x.ndim == 2 else "?" * x.ndim
    return jax.device_put(x, sharding.shardings(letters, x.shape, mesh))

  return jax.tree.map(place, state)


def mesh_of(fsdp: int, tensor: int):
  return sharding.make_mesh(
    data=1, fsdp=fsdp, expert=1, tensor=tensor, sequence=1, pipeline=1,
    devices=jax.devices()[: fsdp * tensor],
  )  # fmt: skip


def abstract(state):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    state,
  )


def opened(folder, **changes) -> Checkpoints:
  told = changes.pop("told", [])
  settings = dict(every_steps=5, keep=3, keep_every_steps=0) | changes
  return Checkpoints(
    folder, tell=lambda kind, **fields: told.append((kind, fields)), **settings
  )


def same(a, b) -> bool:
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(
    x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()
    for x, y in pairs
  )


@pytest.fixture(scope="module")
def three(tmp_path_factory):
  """A folder with the steps 5, 10, 15."""
  folder = tmp_path_factory.mktemp("three") / "checkpoints"
  saved = opened(folder)
  for step in (5, 10, 15):
    saved.save(step, make(step), {"config": "c"})
  assert saved.wait()
  return folder


@pytest.fixture
def copy(three, tmp_path):
  return shutil.copytree(three, tmp_path / "checkpoints")


def largest_file(folder):
  files = [p for p in folder.rglob("*") if p.is_file() and p.parent.name == "d"]
  return max(files, key=lambda p: p.stat().st_size)


@pytest.mark.parametrize("name", ["a [b]", "a **", "50%20 #?é{x}"])
def test_a_folder_may_have_any_name(name, tmp_path):
  saved = opened(tmp_path / name)
  saved.save(5, make(5), {})
  assert saved.wait()
  found, _ = opened(tmp_path / name).restore(abstract(make(5)))
  assert same(found, make(5))
  assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_whose_arrays_would_lie_elsewhere_is_refused(tmp_path):
  with pytest.raises(BadConfig, match="backslash in their path"):
    opened(tmp_path / "a\\b")
  assert not list(tmp_path.iterdir())


def test_arrays_that_nobody_would_find_again_are_no_checkpoint(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(arrays._Folder, "glob", lambda folder, pattern: iter(()))
  saved = opened(tmp_path)
  saved.save(5, make(5), {})
  assert not saved.wait() and "without an index" in saved.failure
  assert not saved.steps()


def test_what_is_saved_comes_back_bit_for_bit(three):
  state, saved = opened(three).restore(abstract(make(15)))
  assert same(state, make(15))
  assert saved["step"] == 15 and saved["meta"] == {"config": "c"}
  assert saved["digest"] == tree.digest(make(15)).tolist()


def test_a_donated_state_is_saved_as_it_was(tmp_path):
  advance = jax.jit(
    lambda s: jax.tree.map(lambda x: x + x.dtype.type(1), s), donate_argnums=0
  )
  state = {"params": {"w": jnp.arange(300_000.0)}}
  expected = jax.tree.map(lambda x: np.array(x), state)
  saved = opened(tmp_path)
  saved.save(5, state, {})
  for _ in range(20):
    state = advance(state)
  assert saved.wait()
  assert same(saved.restore(abstract(state))[0], expected)


def test_a_save_in_the_background_holds_the_meta_of_its_moment(tmp_path):
  with_sums = {"means": {"train/loss": [1.5, 2.0]}}
  checkpoints = opened(tmp_path)
  assert checkpoints.save(5, make(5), with_sums)
  with_sums["means"]["train/loss"][0] += 1.0  # the next step has been taken
  with_sums["means"]["train/nll"] = [1.0, 1.0]
  assert checkpoints.wait()
  content = manifest.read(tmp_path / "5")
  assert content["meta"]["means"] == {"train/loss": [1.5, 2.0]}


SIZES = [(4, 2), (1, 1), (2, 3)]


@pytest.mark.parametrize(
  ("writer", "reader"),
  sweep(
    itertools.product(SIZES, SIZES),
    ((4, 2), (1, 1)),
    ((2, 3), (4, 2)),
  ),
)
def test_the_digest_is_the_same_whatever_devices_save_and_restore(
  writer, reader, tmp_path
):
  saved = opened(tmp_path)
  saved.save(5, make(5, mesh_of(*writer)), {})
  assert saved.wait()
  state, found = opened(tmp_path).restore(abstract(make(5, mesh_of(*reader))))
  assert same(state, make(5))
  assert state["params"]["stack/w"].sharding.mesh == mesh_of(*reader)
  assert found["digest"] == jax.jit(tree.digest)(make(5)).tolist()


def spoil_truncate(step):
  path = largest_file(step)
  os.truncate(path, path.stat().st_size - 7)


def spoil_delete(step):
  largest_file(step).unlink()


def spoil_bit(step):
  path = largest_file(step)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 4
  path.write_bytes(data)


def spoil_manifest_bit(step):
  path = step / manifest.NAME
  data = bytearray(path.read_bytes())
  data[data.index(b"float32") + 5] ^= 1
  path.write_bytes(data)


def spoil_no_manifest(step):
  (step / manifest.NAME).unlink()


def spoil_half_manifest(step):
  os.truncate(step / manifest.NAME, 100)


def spoil_other_step(step):
  shutil.rmtree(step)
  shutil.copytree(step.with_name("5"), step)


@pytest.mark.parametrize("leaves", [2, 200])
def test_what_is_stored_beside_small_leaves_is_bounded_by_their_number(
  leaves, tmp_path
):
  """On a busy machine its tree was written anew often: 4 MB for .5 MB."""
  (tmp_path / "d").write_bytes(bytes(4 << 20))
  content = {
    "leaves": [{"shape": [8, 24], "dtype": "float32"}] * leaves,
    "files": {"d": 4 << 20},
    "hashes": {},
  }
  if leaves == 200:
    manifest.check_files(tmp_path, content)
  else:
    with pytest.raises(manifest.Invalid, match="hold 4194304 bytes for 1536"):
      manifest.check_files(tmp_path, content)


@pytest.mark.parametrize(
  "spoil",
  [
    spoil_truncate, spoil_delete, spoil_bit, spoil_manifest_bit,
    spoil_no_manifest, spoil_half_manifest, spoil_other_step,
  ],
)  # fmt: skip
def test_restore_walks_back_over_what_is_not_whole(copy, spoil):
  spoil(copy / "15")
  told = []
  state, found = opened(copy, told=told).restore(abstract(make()))
  assert found["step"] == 10 and same(state, make(10))
  aside = [p.name for p in copy.iterdir() if p.name.startswith("15")]
  assert len(aside) == 1 and aside[0].startswith("15.corrupt-")
  assert [kind for kind, _ in told] == ["corrupt"]


def test_a_bit_that_flips_anywhere_is_found_or_without_effect(copy):
  choose = random.Random(1)
  files = sorted(p for p in (copy / "15").rglob("*") if p.is_file())
  reader = opened(copy)
  wanted = abstract(make())["params"]
  found = []
  for n in range(24):
    path = files[n % len(files)]
    data = bytearray(path.read_bytes())
    whole = bytes(data)
    data[choose.randrange(len(data))] ^= 1 << choose.randrange(8)
    path.write_bytes(data)
    params, content = reader.restore_params(wanted)
    assert same(params, make(content["step"])["params"])
    found.append(content["step"])
    path.write_bytes(whole)
  assert 10 in found


def test_an_empty_folder_named_like_a_step_is_no_checkpoint(copy):
  (copy / "900").mkdir()
  told = []
  saved = opened(copy, told=told)
  saved.clean()
  assert saved.latest() == 15
  assert saved.restore(abstract(make()))[1]["step"] == 15
  assert told[0][0] == "rubbish"


def test_no_checkpoint_at_all_is_a_fresh_start(tmp_path):
  assert opened(tmp_path / "none").restore(abstract(make())) is None
  (tmp_path / "5.saving").mkdir()
  assert opened(tmp_path).restore(abstract(make())) is None


def test_checkpoints_of_which_none_is_valid_are_never_a_fresh_start(copy):
  for step in ("5", "10", "15"):
    spoil_bit(copy / step)
  for _ in range(2):
    with pytest.raises(StorageFailure, match="no checkpoint is valid"):
      opened(copy).restore(abstract(make()))
  assert len([p for p in copy.iterdir() if ".corrupt-" in p.name]) == 3


def test_leftovers_of_killed_saves_are_removed_and_nothing_else(copy):
  for name in ("20.saving", "3.deleting", "7.orbax-checkpoint-tmp"):
    (copy / name / "arrays").mkdir(parents=True)
  (copy / "1.corrupt-20200101T000000").mkdir()
  opened(copy).clean()
  left = sorted(p.name for p in copy.iterdir())
  assert left == ["1.corrupt-20200101T000000", "10", "15", "5"]


def test_a_state_of_another_shape_is_refused_with_its_leaves(copy):
  wanted = abstract(make())
  wanted["params"]["stack/w"] = jax.ShapeDtypeStruct((9, 24), jnp.float32)
  wanted["params"]["half"] = jax.ShapeDtypeStruct((8, 24), jnp.float16)
  wanted["params"]["new"] = jax.ShapeDtypeStruct((1,), jnp.float32)
  del wanted["opt_state"]
  with pytest.raises(BadConfig) as refusal:
    opened(copy).restore(wanted)
  for line in (
    "params/stack/w: saved float32[64, 24], expected float32[9, 24]",
    "params/half: saved bfloat16[8, 24], expected float16[8, 24]",
    "params/new: not in the checkpoint",
    "opt_state/1: only in the checkpoint",
  ):
    assert line in str(refusal.value)
  assert opened(copy).steps() == [5, 10, 15]


def test_the_parameters_alone_are_read_on_any_mesh_without_a_trace(copy):
  spoil_bit(copy / "15")
  before = sorted(p.name for p in copy.iterdir())
  wanted = abstract(make(0, mesh_of(2, 4)))["params"]
  params, found = opened(copy).restore_params(wanted)
  assert found["step"] == 10 and same(params, make(10)["params"])
  assert sorted(p.name for p in copy.iterdir()) == before
  with pytest.raises(BadConfig, match="holds no checkpoint"):
    opened(copy / "none").restore_params(wanted)
  for step in ("5", "10"):
    spoil_bit(copy / step)
  with pytest.raises(StorageFailure, match="nothing was changed") as error:
    opened(copy).restore_params(wanted)
  assert "set aside" not in str(error.value)
  assert sorted(p.name for p in copy.iterdir()) == before


def test_a_checkpoint_of_before_stats_were_averaged_is_read_without_them(
  tmp_path,
):
  x = jnp.arange(4.0)
  old = fresh({"w": x}, optax.sgd(0.1), 0, stats={"mean": x}, average=True)
  saved = opened(tmp_path / "checkpoints")
  saved.commit(5, old.replace(average_stats=None), {})
  saved.commit(10, old, {})
  for step, has in ((10, True), (5, False)):
    some = dict(
      average=abstract(old.average), average_stats=abstract(old.stats)
    )
    parts, _ = saved.restore_parts(some, step)
    assert set(parts) == {"average", *(["average_stats"] if has else [])}
    state, _ = opened(tmp_path / "checkpoints").restore(abstract(old))
    assert (state.average_stats is not None) == has
    assert same(state.average, old.average)
    saved.rewind(5)


def test_going_back_sets_the_later_steps_aside(copy):
  saved = opened(copy)
  with pytest.raises(BadConfig, match="there are: 5, 10, 15"):
    saved.rewind(7)
  assert saved.rewind(5) == [10, 15]
  assert same(saved.restore(abstract(make()))[0], make(5))
  assert saved.steps() == [5]
  names = sorted(p.name.split("-")[0] for p in copy.iterdir())
  assert names == ["10.rewound", "15.rewound", "5"]


def fail(folder, **plan):
  (folder / faults.MARK).touch()
  assert faults.enable(folder, {faults.VARIABLE: json.dumps(plan)})


def test_a_failure_in_the_background_surfaces_and_the_next_save_succeeds(
  tmp_path,
):
  told = []
  saved = opened(tmp_path / "c", told=told)
  fail(tmp_path, raise_at=[{"site": "save/rename", "n": 1, "errno": 28}])
  assert saved.save(5, make(5), {})
  saved._saver._save.thread.join()
  saved.check()
  assert saved.failures == 1 and told[0][0] == "save_failed"
  assert "No space left" in told[0][1]["reason"]
  assert list((tmp_path / "c").iterdir()) == []
  assert saved.save(10, make(10), {}) and saved.wait()
  assert saved.failures == 0 and saved.steps() == [10]


def test_too_many_failures_are_a_storage_failure(tmp_path):
  saved = opened(tmp_path / "c", retries=2)
  fail(tmp_path, raise_at=[{"site": "save/begin", "n": 0, "errno": 5}])
  assert not saved.save(5, make(5), {})
  assert not saved.save(10, make(10), {})
  with pytest.raises(StorageFailure, match="3 saves in a row failed"):
    saved.save(15, make(15), {})


def test_a_file_that_may_not_grow_fails_the_save_and_leaves_the_old(tmp_path):
  told = []
  saved = opened(tmp_path / "c", told=told)
  saved.save(5, make(5, size=4096), {})
  assert saved.wait()
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
  try:
    saved.save(10, make(10, size=4096), {})
    assert not saved.wait()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert [p.name for p in (tmp_path / "c").iterdir()] == ["5"]
  assert told[-1][0] == "save_failed"
  saved.commit(15, make(15, size=4096), {})
  assert saved.steps() == [5, 15]


def test_a_save_of_many_arrays_that_fails_is_told_once(tmp_path, capfd, caplog):
  draw = np.random.default_rng(0).normal(size=(9, 60, 24))
  state = {f"w{i}": jnp.asarray(x, jnp.float32) for i, x in enumerate(draw)}
  saved = opened(tmp_path / "c", retries=0)
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
  try:
    with pytest.raises(StorageFailure, match="1 saves in a row failed"):
      saved.commit(5, {"params": state}, {})
    gc.collect()  # asyncio tells of tasks that nobody waits for
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert len(caplog.records) == 1 and "checkpoint 5" in caplog.text
  assert "Traceback" not in capfd.readouterr().err


def test_a_disk_without_room_is_seen_before_writing(tmp_path, monkeypatch):
  usage = shutil.disk_usage(tmp_path)._replace(free=100)
  monkeypatch.setattr(saving.shutil, "disk_usage", lambda _: usage)
  saved = opened(tmp_path)
  assert not saved.save(5, make(5), {})
  assert "bytes free" in saved.failure and saved.steps() == []


def test_retention_keeps_the_newest_and_every_kth(tmp_path):
  saved = opened(tmp_path, keep=2, keep_every_steps=10)
  for step in range(5, 40, 5):
    saved.save(step, make(step), {})
  saved.wait()
  assert saved.steps() == [10, 20, 30, 35]


def test_the_last_proven_step_outlives_younger_ones(copy):
  saved = opened(copy, keep=1)
  saved.restore(abstract(make()))
  for step in (20, 25):
    saved.save(step, make(step), {})
  saved.wait()
  assert saved.steps() == [15, 25]


def test_parameters_that_are_not_finite_are_never_saved(tmp_path):
  saved = opened(tmp_path)
  state = make(5)
  state["params"]["half"] = state["params"]["half"].at[3, 2].set(jnp.inf)
  with pytest.raises(NonFinite):
    saved.save(5, state, {})
  assert saved.steps() == []


def with_one_copy_changed(x: jax.Array, device: int) -> jax.Array:
  """`x` as a device would leave it whose memory lost a bit."""
  copies = [
    shard.data + (shard.device.id == device) for shard in x.addressable_shards
  ]
  return jax.make_array_from_single_device_arrays(x.shape, x.sharding, copies)


@pytest.mark.parametrize("leaf", ["stack/w", "half"])
def test_a_state_whose_copies_differ_is_never_saved(tmp_path, leaf):
  mesh = sharding.make_mesh(
    data=4, fsdp=2, expert=1, tensor=1, sequence=1, pipeline=1
  )
  told = []
  saved = opened(tmp_path, told=told)
  state = make(5, mesh)
  saved.save(5, state, {})
  assert saved.wait(), "equal copies are saved"
  state = make(10, mesh)
  state["params"][leaf] = with_one_copy_changed(state["params"][leaf], 6)
  with pytest.raises(Diverged, match=f"6 of process 0, in params/{leaf}. "):
    saved.save(10, state, {})
  assert saved.steps() == [5]
  assert [kind for kind, _ in told] == ["save", "diverged"]


def test_of_two_copies_that_differ_both_are_named(tmp_path):
  mesh = sharding.make_mesh(
    data=2, fsdp=4, expert=1, tensor=1, sequence=1, pipeline=1
  )
  state = make(5, mesh)
  damaged = with_one_copy_changed(state["params"]["stack/w"], 6)
  assert replicas.differing(state) == {}
  odd = replicas.differing({"w": damaged, "rest": state})
  assert {name: {d.id for d in devices} for name, devices in odd.items()} == {
    "w": {2, 6}
  }


def test_a_copy_that_is_negated_differs():
  mesh = sharding.make_mesh(
    data=4, fsdp=2, expert=1, tensor=1, sequence=1, pipeline=1
  )
  x = make(5, mesh)["params"]["stack/w"]
  copies = [
    -shard.data if shard.device.id == 6 else shard.data
    for shard in x.addressable_shards
  ]
  x = jax.make_array_from_single_device_arrays(x.shape, x.sharding, copies)
  (devices,) = replicas.differing({"w": x}).values()
  assert [device.id for device in devices] == [6]


def test_one_who_lost_the_directory_commits_nothing(tmp_path):
  def fence():
    raise WorkdirInUse("taken over")

  saved = opened(tmp_path, fence=fence)
  with pytest.raises(WorkdirInUse):
    saved.save(5, make(5), {})
  assert not any(tmp_path.iterdir()), "nothing is written at all"


def test_one_who_loses_the_directory_in_a_save_does_not_commit(tmp_path):
  passed = []

  def fence():
    passed.append(1)
    if len(passed) > 1:
      raise WorkdirInUse("taken over")

  saved = opened(tmp_path, fence=fence)
  saved.save(5, make(5), {})
  with pytest.raises(WorkdirInUse):
    saved.wait()
  assert saved.steps() == []


def test_a_save_that_finds_another_under_way_is_skipped_and_counted(tmp_path):
  told = []
  saved = opened(
    tmp_path / "c", patience_seconds=0.0, keep_every_steps=15, told=told
  )
  fail(tmp_path, sleep_at=[{"site": "save/manifest", "step": 5, "seconds": 1}])
  assert saved.save(5, make(5), {})
  assert not saved.save(10, make(10), {}) and saved.skipped == 1
  assert saved.save(15, make(15), {})  # one to keep for good waits
  assert saved.wait() and saved.steps() == [5, 15]
  assert told[0][0] == "save_skipped"


def test_the_folder_is_synced_after_the_rename(tmp_path, monkeypatch):
  synced = []
  real = files.sync
  monkeypatch.setattr(
    files, "sync", lambda f: synced.append((f, "5" in os.listdir(tmp_path)))
    or real(f),
  )  # fmt: skip
  saved = opened(tmp_path)
  saved.save(5, make(5), {})
  assert saved.wait()
  assert synced[-1] == (tmp_path, True)


def forge(step, change):
  """Changes a manifest as one who knows its format would."""
  path = step / manifest.NAME
  content = json.loads(path.read_text())
  change(content)
  content["sha256"] = manifest._hash(content)
  path.write_text(json.dumps(content))


def outside(content):
  content["files"]["../../secret"] = 3


def absolute(content):
  content["files"]["/etc/passwd"] = 3


def fat(content):
  content["files"] = {name: 10**12 for name in content["files"]}


def untyped(content):
  content["files"] = list(content["files"])


def without_leaves(content):
  del content["leaves"]


def strange_dtype(content):
  content["leaves"][0]["dtype"] = "object"


@pytest.mark.parametrize(
  "change", [outside, absolute, fat, untyped, without_leaves, strange_dtype]
)
def test_a_forged_manifest_leads_nowhere(copy, change):
  (copy / "secret").write_text("abc")
  forge(copy / "15", change)
  assert opened(copy).restore(abstract(make()))[1]["step"] == 10


def test_a_manifest_of_absurd_shapes_is_refused_before_any_reading(copy):
  def huge(content):
    content["leaves"][0]["shape"] = [10**12]

  forge(copy / "15", huge)
  with pytest.raises(BadConfig, match=r"saved \w+\[1000000000000\]"):
    opened(copy).restore(abstract(make()))


@pytest.mark.parametrize(
  "text",
  [
    "[" * 100_000,
    '{"format":1,"format":1}',
    '{"format":NaN}',
    "[]",
    "9" * 9999,
  ],
)
def test_a_strange_manifest_is_no_manifest(copy, text):
  (copy / "15" / manifest.NAME).write_text(text)
  assert opened(copy).restore(abstract(make()))[1]["step"] == 10


def test_a_symbolic_link_is_no_file_of_a_checkpoint(copy):
  path = largest_file(copy / "15")
  moved = shutil.move(path, copy.parent / "elsewhere")
  path.symlink_to(moved)
  assert opened(copy).restore(abstract(make()))[1]["step"] == 10


GOLDEN = pathlib.Path(__file__).parent / "golden" / "checkpoints"


@pytest.mark.slow
def test_a_checkpoint_of_an_earlier_program_is_read_and_told_once(tmp_path):
  folder = shutil.copytree(GOLDEN, tmp_path / "checkpoints")
  told = []
  saved = opened(folder, told=told)
  state, content = saved.restore(abstract(golden.state()))
  assert same(state, golden.state()) and content["step"] == golden.STEP
  assert "digest_version" not in content
  assert [kind for kind, _ in told] == ["old_digest"]
  saved.save(golden.STEP + 1, state, {})
  assert saved.wait()
  again = opened(folder, told=told)
  assert same(again.restore(abstract(state))[0], state)
  assert [kind for kind, _ in told] == ["old_digest", "save"]


def test_a_flipped_bit_shows_in_an_earlier_checkpoint_too(tmp_path):
  folder = shutil.copytree(GOLDEN, tmp_path / "checkpoints")

  def other(content):
    content["leaves"][3]["digest"][0] ^= 1

  forge(folder / str(golden.STEP), other)
  with pytest.raises(StorageFailure, match="no checkpoint is valid"):
    opened(folder).restore(abstract(golden.state()))


def test_a_digest_of_a_later_program_is_refused_and_left_alone(copy):
  forge(copy / "15", lambda content: content.update(digest_version=3))
  with pytest.raises(BadConfig, match="version 3.*later"):
    opened(copy).restore(abstract(make()))
  assert opened(copy).steps() == [5, 10, 15]


def test_an_error_of_who_looks_at_a_manifest_is_no_damage(copy):
  def look(content):
    return content["meta"]["nothing of this name"]

  with pytest.raises(KeyError):
    opened(copy).restore(abstract(make()), look)
  assert opened(copy).steps() == [5, 10, 15]


def test_matrices_that_are_negated_are_no_checkpoint(tmp_path):
  """What arrays hold is replaced by what another state holds, all sound."""
  saved = opened(tmp_path)
  state = {"params": {"w": make(5)["params"]["stack/w"]}}
  negated = jax.tree.map(lambda x: -x, state)
  saved.save(5, state, {})
  saved.save(10, negated, {})
  assert saved.wait()
  contents = [manifest.read(tmp_path / name) for name in ("5", "10")]
  forge(
    tmp_path / "10",
    lambda content: content.update(
      digest=contents[0]["digest"], leaves=contents[0]["leaves"]
    ),
  )
  assert saved.restore(abstract(state))[1]["step"] == 5


@pytest.mark.parametrize(
  "name", ["0999", "\u0663", "00", "9" * 30, "+7", "1_0"]
)
def test_only_a_name_that_is_its_own_number_is_a_step(copy, name):
  shutil.copytree(copy / "15", copy / name)
  saved = opened(copy)
  saved.clean()
  assert saved.steps() == [5, 10, 15] and saved.latest() == 15
  assert saved.restore(abstract(make()))[1]["step"] == 15
  assert (copy / name).is_dir()


OURS = Identity("a" * 16)


@pytest.fixture
def ours(tmp_path):
  """The steps 5 and 10 of one run."""
  saved = opened(tmp_path / "ours", run=OURS)
  for step in (5, 10):
    saved.save(step, make(step), {})
  assert saved.wait()
  return tmp_path / "ours"


@pytest.mark.parametrize(
  "run", [Identity("b" * 16), Identity("", None), Identity("b" * 16, 100)]
)
def test_a_checkpoint_of_another_run_is_refused_and_left_alone(ours, run):
  saved = opened(ours, run=run, keep=1)
  with pytest.raises(
    BadConfig, match=f"10 is a checkpoint of another.*{'a' * 9}"
  ):
    saved.restore(abstract(make()))
  with pytest.raises(BadConfig, match="another run"):
    saved.restore_params(abstract(make())["params"])
  with pytest.raises(BadConfig, match="no whole checkpoint of step 5 of this"):
    saved.rewind(5)
  assert saved.latest() is None
  saved.save(15, make(15), {})
  saved.wait()
  assert saved.steps() == [5, 10, 15], "another run's are not ours to delete"


def test_checkpoints_without_an_identity_are_of_the_run_before_it_had_one(copy):
  assert opened(copy, run=Identity("")).restore(abstract(make()))
  assert opened(copy, run=Identity("a" * 16, 15)).restore(abstract(make()))
  for run in (OURS, Identity("a" * 16, 14)):
    with pytest.raises(BadConfig, match="15 is a checkpoint of another run"):
      opened(copy, run=run).restore(abstract(make()))


def test_a_step_that_is_not_there_is_refused_with_those_that_are(copy):
  with pytest.raises(BadConfig, match=r"no checkpoint of step 7.*5, 10, 15\)"):
    opened(copy).restore_params(abstract(make())["params"], 7)
