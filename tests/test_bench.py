"""The instrument measures the step of training; no switch changes the loss."""

import functools
import gc
import json
import math
import weakref

import jax
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as fused

from aigc_jax import bench, run, sharding, tree
from aigc_jax.layers.cpu import onednn
from aigc_jax.layers.lookup import GRADIENTS
from aigc_jax.timing import machine, program, stepping, switches
from configs import bench as configs
from tests.sweep import slow, sweep

# After 20 steps, against float32 with everything plain, as far apart as
# switches.TOLERANCE allows.
SWITCHES = {
  "blocks": {"compute.kernel": "blocks"},
  "chunked attention": {"compute.kernel": "chunked"},
  "chunked loss": {"objective.chunk": 24},
  "remat full": {"compute.remat": "full"},
  "remat dots": {"compute.remat": "dots"},
  "unrolled": {"compute.unroll": None},
  "steps in a call": {"compute.steps_per_call": 5},
  "microbatches": {"compute.microbatches": 2},
  "joined projections": {"compute.fuse_projections": True},
  "bfloat16": {"compute.dtype": "bfloat16"},
  "bfloat16, cast once": {
    "compute.dtype": "bfloat16", "compute.cast_once": True,
  },
  "bfloat16, all together": {
    "compute.dtype": "bfloat16", "compute.cast_once": True,
    "compute.microbatches": 2,
    "compute.remat": "full", "compute.kernel": "blocks", "objective.chunk": 24,
    "compute.fuse_projections": True,
  },
  "bfloat16, cast once, on a mesh": {
    "compute.dtype": "bfloat16", "compute.cast_once": True, "mesh.fsdp": 2,
    "mesh.tensor": 2,
  },
  "bf16 in float32": {"compute.products": "bf16"},
  "bf16 in float32, all together": {
    "compute.products": "bf16", "compute.cast_once": True,
    "compute.microbatches": 2,
    "compute.remat": "dots", "compute.unroll": None, "compute.kernel": "blocks",
    "objective.chunk": 24, "compute.fuse_projections": True,
  },
  "bf16 in float32, on a mesh": {
    "compute.products": "bf16", "compute.cast_once": True, "mesh.fsdp": 2,
    "mesh.tensor": 2,
  },
  "fp8": {"compute.products": "fp8"},
  "fp8, bfloat16, cast once": {
    "compute.products": "fp8", "compute.dtype": "bfloat16",
    "compute.cast_once": True,
  },
  "fp8, bfloat16": {"compute.products": "fp8", "compute.dtype": "bfloat16"},
  "fp8, all together": {
    "compute.products": "fp8", "compute.dtype": "bfloat16",
    "compute.cast_once": True,
    "compute.microbatches": 2, "compute.remat": "dots", "compute.unroll": None,
    "compute.kernel": "blocks", "objective.chunk": 24,
    "compute.fuse_projections": True,
  },
  "fp8, on a mesh": {
    "compute.products": "fp8", "mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2,
  },
  "embedding gradient: product": {"compute.embed_gradient": "product"},
  "embedding gradient: sorted": {"compute.embed_gradient": "sorted"},
  "embedding gradient: sorted, on a mesh": {
    "compute.embed_gradient": "sorted", "compute.microbatches": 2,
    "mesh.data": 2,
    "mesh.fsdp": 2, "mesh.tensor": 2,
  },
  "embedding gradient: sorted, bfloat16": {
    "compute.embed_gradient": "sorted", "compute.dtype": "bfloat16",
  },
  "logits: bfloat16": {"objective.logits": "bfloat16"},
  "logits: bfloat16, chunked, on a mesh": {
    "objective.logits": "bfloat16", "objective.chunk": 24, "mesh.fsdp": 2,
    "mesh.tensor": 2,
  },
  "first moment bfloat16": {"optim.mu_dtype": "bfloat16"},
  "library: onednn": {"compute.library": "onednn"},
  "library: onednn, blocks, joined": {
    "compute.library": "onednn", "compute.kernel": "blocks",
    "compute.unroll": None,
    "compute.fuse_projections": True, "objective.chunk": 32,
  },
  "library: onednn, products of bfloat16": {
    "compute.library": "onednn", "compute.kernel": "blocks",
    "compute.products": "bf16",
    "compute.cast_once": True, "compute.microbatches": 2,
  },
  "library: onednn, bfloat16": {
    "compute.library": "onednn", "compute.kernel": "blocks",
    "compute.dtype": "bfloat16",
    "compute.remat": "full",
  },
}  # fmt: skip


def tiny(change):
  config = configs.get_config("tiny")
  config.model.update(layers=2, dim=24, heads=3, kv_heads=3, head_dim=8)
  config.model.update(mlp_dim=40, vocab=61, position_length=12)
  config.data.update(batch=8, length=12)
  config.optim.update(learning_rate=1e-2, warmup_steps=5)
  # A device by itself: what is decided for one device is decided here.
  config.mesh.update(fsdp=1)
  return switches.changed(
    switches.changed(run.read(config), switches.PLAIN), change
  )


def mesh_of_one():
  sizes = dict.fromkeys(sharding.AXES, 1)
  return sharding.make_mesh(**sizes, devices=jax.devices()[:1])


def loss_after(change: str, steps: int = 20) -> float:
  return losses(change)[steps - 1]


@functools.cache
def losses(change: str) -> list[float]:
  """Of 20 steps, compiled once for all who ask."""
  config = tiny(json.loads(change))
  count = math.prod(config["mesh"].values())
  mesh = sharding.make_mesh(**config["mesh"], devices=jax.devices()[:count])
  with jax.set_mesh(mesh):
    r = run.build(config, mesh)
    advance, state = r.advance(), r.init()
    one = run.build(tiny({}), mesh)
    batch, calls = (
      stepping.zipf_batch(one, 0),
      config["compute"]["steps_per_call"],
    )
    if calls > 1:
      batch = jax.tree.map(lambda x: np.stack([x] * calls), batch)
    found = []
    for _ in range(20 // calls):
      state, metrics = advance(state, batch)
      found.append(metrics["train/loss"])
  return np.ravel(found).tolist()


def lacks_onednn(change: dict) -> bool:
  low = {change.get("compute.dtype"), change.get("compute.products")}
  dtype = "bfloat16" if low & {"bfloat16", "bf16"} else "float32"
  return change.get("compute.library") == "onednn" and not onednn.usable(dtype)


@pytest.mark.slow
@pytest.mark.parametrize(
  "name",
  sweep(SWITCHES, "bfloat16, all together"),
)
def test_a_switch_gives_the_loss_of_the_plain_program(name):
  if lacks_onednn(SWITCHES[name]):
    pytest.skip("no oneDNN for these products on this CPU")
  plain = loss_after("{}")
  assert plain < 3.8 < np.log(61)
  change = json.dumps(SWITCHES[name])
  close = switches.tolerance(tiny(SWITCHES[name]))
  np.testing.assert_allclose(loss_after(change), plain, rtol=close)


FOR_A_GPU = {
  "embedding's gradient sorted": {"compute.embed_gradient": "sorted"},
  "projections joined, layers unrolled": {
    "compute.fuse_projections": True, "compute.unroll": None,
    "objective.chunk": 24,
  },
  "bfloat16": {"compute.dtype": "bfloat16", "objective.logits": "bfloat16"},
  "bfloat16, on a mesh": {
    "compute.dtype": "bfloat16", "objective.logits": "bfloat16",
    "compute.cast_once": True, "mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2,
  },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
  "name", sweep(FOR_A_GPU, "projections joined, layers unrolled")
)
def test_what_is_computed_otherwise_for_a_gpu_gives_the_same_loss(
  monkeypatch, name
):
  change, plain = FOR_A_GPU[name], loss_after("{}")
  monkeypatch.setattr(sharding, "platform", lambda: "gpu")
  found = losses.__wrapped__(json.dumps(change))[-1]
  close = switches.tolerance(tiny(change))
  np.testing.assert_allclose(found, plain, rtol=close)


@pytest.mark.slow
def test_weights_cast_once_give_the_bits_of_weights_cast_at_each_use():
  silu = {"model.activation": "silu"}
  each, once = (
    losses(json.dumps(SWITCHES[name] | silu))
    for name in ("bfloat16", "bfloat16, cast once")
  )
  assert each[:5] == once[:5]
  # The compiler may leave out that a number goes to bfloat16 and back. What of
  # the two programs it does so in depends on their other parts: a digest of the
  # batch that mixes more made the sixth loss differ in its last digits.
  np.testing.assert_allclose(each, once, rtol=1e-3)


@pytest.mark.slow
def test_weights_cast_once_with_gelu_give_the_loss_of_each_use():
  changes = [
    json.dumps(SWITCHES[name]) for name in ("bfloat16", "bfloat16, cast once")
  ]
  each, once = (loss_after(change, steps=1) for change in changes)
  assert each == once
  # From there on by as much as two programs round one sum differently.
  each, once = (loss_after(change, steps=3) for change in changes)
  np.testing.assert_allclose(each, once, rtol=1e-4)


def test_every_switch_of_the_instrument_is_among_these():
  tested = {key for change in SWITCHES.values() for key in change}
  flipped = {key for change in switches.SWITCHES.values() for key in change}
  assert flipped <= tested


@pytest.mark.slow
def test_what_is_measured(monkeypatch):
  small = dict(matmul=1e12, copy=1e10)
  monkeypatch.setattr(machine, "ceilings", lambda dtype: small)
  mesh = mesh_of_one()
  with jax.set_mesh(mesh):
    found = bench.measure(tiny({}), mesh, 5)
  json.dumps(found)
  assert found["ms"]["min"] <= found["ms"]["median"] <= found["ms"]["max"]
  assert found["loss"]["last"] < found["loss"]["first"]
  assert found["residual_bytes"] > 0 and found["temporary_bytes"] > 0
  assert "mfu" not in found  # of a CPU no peak is known
  assert "tokens/s" in bench.report(found)
  gradient = found["embedding_gradient"]
  assert gradient["form"] == "scatter"
  assert set(gradient["alone_ms"]) == set(GRADIENTS)
  assert "embedding gradient" in bench.report(found)


@pytest.mark.slow
def test_saved_bytes_fall_when_more_is_computed_again():
  mesh = mesh_of_one()
  with jax.set_mesh(mesh):
    kept = [
      program.residual_bytes(run.build(tiny({"compute.remat": remat}), mesh))
      for remat in ("full", "none")
    ]
  assert kept[0] < kept[1]


def test_each_switch_names_keys_that_a_config_has():
  config = run.read(configs.get_config("small"))
  for name, change in switches.SWITCHES.items():
    for key in change:
      part = config
      for word in key.split("."):
        assert word in part, (name, key)
        part = part[word]


def test_ids_follow_zipf():
  mesh = mesh_of_one()
  with jax.set_mesh(mesh):
    r = run.build(tiny({}), mesh)
    ids = np.asarray(stepping.zipf_batch(r, 0)["tokens"])
  counts = np.bincount(ids.ravel(), minlength=61)
  assert ids.max() < 61 and counts[:6].sum() > counts[-20:].sum()


@pytest.mark.parametrize(
  "size",
  sweep(
    (*configs.SIZES, *configs.FAMILIES),
    "gpt2_124m",
    "llama_8b_slice",
  ),
)
def test_every_benchmark_config_builds(size):
  config = run.read(configs.get_config(size))
  mesh = mesh_of_one()
  with jax.set_mesh(mesh):
    r = run.build(config, mesh)
    assert r.flops_per_step > 0
    # Whatever else a step reads: running moments, frozen parts.
    assert size in configs.SIZES or program.residual_bytes(r) > 0


def test_json_has_no_nan():
  found = {"loss": {"last": float("nan")}, "ms": [1.5, float("inf")], "n": 3}
  assert bench.without_nan(found) == {
    "loss": {"last": None}, "ms": [1.5, None], "n": 3,
  }  # fmt: skip


@pytest.mark.slow
def test_the_state_is_updated_in_place():
  mesh = mesh_of_one()
  with jax.set_mesh(mesh):
    timed = stepping.Timed(run.build(tiny({}), mesh))
  memory = timed.compiled.memory_analysis()
  assert memory.alias_size_in_bytes >= tree.nbytes(timed.run.state)


@pytest.mark.parametrize(
  "low",
  [
    slow({"compute.dtype": "bfloat16"}), {"compute.products": "bf16"},
    slow({"compute.dtype": "bfloat16", "compute.fuse_projections": True}),
  ],
)  # fmt: skip
def test_a_step_for_a_gpu_has_cudnns_attention_and_no_scores(monkeypatch, low):
  monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91_000)
  monkeypatch.setattr(fused, "check_compute_capability", lambda _: True)
  config = tiny({
    "compute.kernel": "auto", "compute.unroll": None, "data.length": 136,
    "model.position_length": 136, **low,
  })  # fmt: skip
  monkeypatch.setattr(sharding, "platform", lambda: "gpu")
  mesh = mesh_of_one()
  with jax.set_mesh(mesh):
    r = run.build(config, mesh)
    assert program.attention_kernels(r) == "cudnn"
    traced = r.advance().trace(r.state, r.batch)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
  layers = config["model"]["layers"]
  assert text.count("__cudnn$fmhaSoftmax(") == layers
  assert text.count("__cudnn$fmhaSoftmaxBackward(") == layers
  assert "136x136x" not in text
  donated = text.count("tf.aliasing_output") + text.count("jax.buffer_donor")
  assert donated == len(jax.tree.leaves(r.state))


@pytest.mark.slow
@pytest.mark.parametrize(
  "kernel, platform",
  sweep(
    [("cudnn", "gpu"), ("auto", "gpu"), ("splash", "tpu"), ("auto", "tpu")],
    ("cudnn", "gpu"),
    ("splash", "tpu"),
  ),
)
@pytest.mark.parametrize("fused", sweep([True, False], True))
def test_fresh_weights_need_no_kernel_of_attention(
  monkeypatch, kernel, platform, fused
):
  plain = fresh("xla", fused)
  monkeypatch.setattr(sharding, "platform", lambda: platform)
  jax.tree.map(
    np.testing.assert_array_equal, fresh.__wrapped__(kernel, fused), plain
  )


@functools.cache
def fresh(kernel: str, fused: bool):
  """The state at step 0; that of "xla" is made before a platform is told."""
  config = tiny({
    "compute.kernel": kernel, "compute.dtype": "bfloat16",
    "compute.fuse_projections": fused,
  })  # fmt: skip
  mesh = mesh_of_one()
  with jax.set_mesh(mesh):
    return run.build(config, mesh).init()


WINDOWS = {
  "blocks": {},
  "blocks, windowed": {"model.windows": [4]},
  "blocks, windowed, in 2 of 3 layers; blocks, in 1 of 3 layers": {
    "model.windows": [4, 4, None], "model.layers": 3,
  },
  # A trip of the loop over layers holds the whole pattern.
  "blocks, windowed, in 1 of 2 layers; blocks, in 1 of 2 layers": {
    "model.windows": [4, None], "compute.unroll": 1,
  },
  "chunked": {"compute.kernel": "chunked"},
}  # fmt: skip


@pytest.mark.parametrize("told", list(WINDOWS))
def test_the_kernels_of_attention_are_told_by_layer(told):
  plain = {"compute.kernel": "auto", "compute.unroll": None}
  mesh = mesh_of_one()
  with jax.set_mesh(mesh):
    r = run.build(tiny(plain | WINDOWS[told]), mesh)
    assert program.attention_kernels(r) == told


class Fake:
  """What has been timed, as far as `faster` asks."""

  def __init__(self, ms):
    self.ms = ms


def line(name, key, ms):
  return switches.Line(name, {key: name} if key else {}, {}, Fake(ms))


def test_flips_faster_than_the_noise_are_found_the_fastest_first():
  base = [100.0, 100, 120, 100, 100]
  found = switches.faster([
    line("as it is", "", base),
    line("slower", "a", [101.0, 101, 121, 101, 101]),
    line("faster, in the noise", "b", [80.0, 80, 130, 101, 99]),
    line("faster", "c", [90.0, 90, 110, 90, 90]),
    line("fastest of one key", "c", [80.0, 80, 100, 80, 80]),
    line("less than that", "d", [95.0, 95, 115, 95, 105]),
    line("by too little", "e", [99.5, 99.5, 119, 99.5, 99.5]),
    line("other numbers", "compute.dtype", [50.0, 50, 60, 50, 50]),
  ])  # fmt: skip
  assert [x.name for x in found] == [
    "fastest of one key", "faster", "less than that",
  ]  # fmt: skip


def test_a_flip_that_is_not_faster_a_second_time_is_not_adopted():
  class Later(Fake):
    state, later = 0, 0.0

    def window(self, steps):
      self.ms.append(self.later)

  first, flip = Later([100.0] * 5), Later([80.0] * 5)
  lines = [
    switches.Line("", {}, {}, first),
    switches.Line("x", {"a": 1}, {}, flip),
  ]
  assert switches.faster(lines) == lines[1:]
  first.later, flip.later = 100.0, 99.5
  assert not switches.again(lines[1], lines[0], True, 5)
  flip.later = 98.0
  assert switches.again(lines[1], lines[0], True, 5)
  assert first.ms[0] == 100 and flip.ms[0] == 80  # as the table tells them


@pytest.mark.slow
@pytest.mark.parametrize("room", [1 << 60, 0])
def test_switches_take_turns_and_the_best_comes_first(
  monkeypatch, room, capsys
):
  few = ("layers: unrolled", "float32", "4 steps in a call")
  flips = {name: switches.SWITCHES[name] for name in few}
  flips["attention: cudnn"] = {"compute.kernel": "cudnn"}
  flips["embedding: auto"] = {"compute.embed_gradient": "auto"}
  monkeypatch.setattr(switches, "SWITCHES", flips)
  monkeypatch.setattr(machine, "free_bytes", lambda device: room)
  # The first pass finds a flip, the second none.
  adopted = [few[0], ""]
  programs = []

  class Counted(stepping.Timed):
    def __init__(self, *args):
      super().__init__(*args)
      programs.append(weakref.ref(self))

  def faster(lines):
    gc.collect()  # what left the table took its program with it
    alive = sum(program() is not None for program in programs)
    assert alive == sum(line.timed is not None for line in lines)
    name = adopted.pop(0)
    return [line for line in lines if line.name == name]

  monkeypatch.setattr(switches, "Timed", Counted)
  monkeypatch.setattr(switches, "faster", faster)
  monkeypatch.setattr(switches, "again", lambda *_: True)
  mesh = mesh_of_one()
  with jax.set_mesh(mesh):
    found = switches.ablate(tiny({"compute.dtype": "bfloat16"}), mesh, 5)
  json.dumps(found, allow_nan=False)
  assert found["states_side_by_side"] == bool(room)
  assert found["best"]["compute"]["unroll"] is None  # all of them
  lines = {x["switch"]: x for x in found["switches"]}
  assert list(lines) == ["best", "as configured", *list(flips)[1:]]
  assert "GPU" in lines.pop("attention: cudnn")["refused"]
  auto = lines.pop("embedding: auto")  # which is "scatter" on a CPU
  assert auto["same_as"] == "best" and "ms" not in auto
  assert all(x["within"] and len(x["ratios"]) == 10 for x in lines.values())
  assert lines["float32"]["tolerance"] < lines["best"]["tolerance"]
  assert lines["4 steps in a call"]["loss"] == pytest.approx(
    lines["best"]["loss"], rel=1e-3
  )
  assert ("do not fit" in capsys.readouterr().out) != bool(room)


@pytest.mark.slow
def test_a_program_too_many_for_the_memory_map_is_refused_not_fatal(
  monkeypatch,
):
  few = ("layers: unrolled", "attention: blocks")
  flips = {name: switches.SWITCHES[name] for name in few}
  monkeypatch.setattr(switches, "SWITCHES", flips)
  left = [7_000, 6_500, 6_000, 5_999]  # the reference, as configured, the flips
  monkeypatch.setattr(machine, "mappings_left", lambda: left.pop(0))
  monkeypatch.setattr(switches, "faster", lambda lines: [])
  mesh = mesh_of_one()
  with jax.set_mesh(mesh):
    found = switches.ablate(tiny({}), mesh, 5)
  lines = {x["switch"]: x for x in found["switches"]}
  assert not lines["layers: unrolled"]["refused"]
  assert "vm.max_map_count" in lines["attention: blocks"]["refused"]


def test_a_call_is_waited_for_once_the_next_is_under_way():
  events = []

  class Loss(float):
    def block_until_ready(self):
      events.append(f"wait {self:.0f}")
      return self

  def compiled(n, batch):
    events.append(f"call {n}")
    return n + 1, {"train/loss": Loss(n)}

  timed = stepping.Timed.__new__(stepping.Timed)
  timed.per_call, timed._pool, timed.compiled = 1, [None], compiled
  timed.state, timed.calls, timed.losses = 0, 0, []
  timed.step(3)
  assert events[:5] == ["call 0", "call 1", "wait 0", "call 2", "wait 1"]
  assert timed.losses == [0, 1, 2]
