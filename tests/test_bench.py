"""The instrument measures the step of training; no switch changes the loss."""

import functools
import json

import jax
import numpy as np
import pytest

from aigc_jax import bench, run, sharding
from configs import bench as configs

# After 20 steps, against float32 with everything plain, as far apart as
# bench.TOLERANCE allows.
SWITCHES = {
  "blocks": {"model.kernel": "blocks"},
  "chunked attention": {"model.kernel": "chunked"},
  "chunked loss": {"objective.chunk": 24},
  "remat full": {"model.remat": "full"},
  "remat dots": {"model.remat": "dots"},
  "unrolled": {"model.unroll": 0},
  "steps in a call": {"steps_per_call": 5},
  "microbatches": {"microbatches": 2},
  "joined projections": {"model.fuse_projections": True},
  "bfloat16": {"model.dtype": "bfloat16"},
  "bfloat16, cast once": {"model.dtype": "bfloat16", "cast_once": True},
  "bfloat16, all together": {
    "model.dtype": "bfloat16", "cast_once": True, "microbatches": 2,
    "model.remat": "full", "model.kernel": "blocks", "objective.chunk": 24,
    "model.fuse_projections": True,
  },
  "first moment bfloat16": {"optim.mu_dtype": "bfloat16"},
}  # fmt: skip


def tiny(change):
  config = configs.get_config("tiny")
  config.model.update(layers=2, dim=24, heads=3, kv_heads=3, head_dim=8)
  config.model.update(mlp_dim=40, vocab=61, position_length=12)
  config.data.update(batch=8, length=12)
  config.optim.update(learning_rate=1e-2, warmup_steps=5)
  # A device by itself: what is decided for one device is decided here.
  config.mesh.update(fsdp=1)
  return bench.changed(bench.changed(run.read(config), bench.PLAIN), change)


def mesh_of_one():
  sizes = dict.fromkeys(sharding.AXES, 1)
  return sharding.make_mesh(**sizes, devices=jax.devices()[:1])


@functools.cache
def loss_after_20_steps(change: str) -> float:
  config = tiny(json.loads(change))
  mesh = mesh_of_one()
  with jax.set_mesh(mesh):
    r = run.build(config, mesh)
    advance, state = r.advance(), r.init()
    one = run.build(tiny({}), mesh)
    batch, calls = bench.zipf_batch(one, 0), config["steps_per_call"]
    if calls > 1:
      batch = jax.tree.map(lambda x: np.stack([x] * calls), batch)
    for _ in range(20 // calls):
      state, metrics = advance(state, batch)
  return float(np.ravel(metrics["train/loss"])[-1])


@pytest.mark.parametrize("name", list(SWITCHES))
def test_a_switch_gives_the_loss_of_the_plain_program(name):
  plain = loss_after_20_steps("{}")
  assert plain < 3.8 < np.log(61)
  change = json.dumps(SWITCHES[name])
  close = bench.tolerance(tiny(SWITCHES[name]))
  np.testing.assert_allclose(loss_after_20_steps(change), plain, rtol=close)


def test_weights_cast_once_give_the_bits_of_weights_cast_at_each_use():
  each, once = (
    loss_after_20_steps(json.dumps(SWITCHES[name]))
    for name in ("bfloat16", "bfloat16, cast once")
  )
  assert each == once


def test_every_switch_of_the_instrument_is_among_these():
  tested = {key for change in SWITCHES.values() for key in change}
  flipped = {key for change in bench.SWITCHES.values() for key in change}
  assert flipped <= tested


def test_what_is_measured(monkeypatch):
  small = dict(matmul=1e12, copy=1e10)
  monkeypatch.setattr(bench, "ceilings", lambda dtype: small)
  mesh = mesh_of_one()
  with jax.set_mesh(mesh):
    found = bench.measure(tiny({}), mesh, 5)
  json.dumps(found)
  assert found["ms"]["min"] <= found["ms"]["median"] <= found["ms"]["max"]
  assert found["loss"]["last"] < found["loss"]["first"]
  assert found["residual_bytes"] > 0 and found["temporary_bytes"] > 0
  assert "mfu" not in found  # of a CPU no peak is known
  assert "tokens/s" in bench.report(found)


def test_saved_bytes_fall_when_more_is_computed_again():
  mesh = mesh_of_one()
  with jax.set_mesh(mesh):
    kept = [
      bench.residual_bytes(run.build(tiny({"model.remat": remat}), mesh))
      for remat in ("full", "none")
    ]
  assert kept[0] < kept[1]


def test_each_switch_names_keys_that_a_config_has():
  config = run.read(configs.get_config("small"))
  for name, change in bench.SWITCHES.items():
    for key in change:
      part = config
      for word in key.split("."):
        assert word in part, (name, key)
        part = part[word]


def test_ids_follow_zipf():
  mesh = mesh_of_one()
  with jax.set_mesh(mesh):
    r = run.build(tiny({}), mesh)
    ids = np.asarray(bench.zipf_batch(r, 0)["tokens"])
  counts = np.bincount(ids.ravel(), minlength=61)
  assert ids.max() < 61 and counts[:6].sum() > counts[-20:].sum()


@pytest.mark.parametrize("size", list(configs.SIZES))
def test_every_benchmark_config_builds(size):
  config = run.read(configs.get_config(size))
  mesh = mesh_of_one()
  with jax.set_mesh(mesh):
    assert run.build(config, mesh).flops_per_step > 0


def test_json_has_no_nan():
  found = {"loss": {"last": float("nan")}, "ms": [1.5, float("inf")], "n": 3}
  assert bench.without_nan(found) == {
    "loss": {"last": None}, "ms": [1.5, None], "n": 3,
  }  # fmt: skip
