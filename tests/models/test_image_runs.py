"""Models with running statistics as whole runs: the step, the state, the FLOPs.

What a run does with them is the same for every model; here it is done to one.
"""

import jax
import numpy as np
import pytest

from aigc_jax import run, sharding
from aigc_jax.errors import BadConfig
from configs import digits
from tests import images

TINY = dict(
  blocks=(1, 1), widths=(8, 12), stem_dim=6, bottleneck=False, stem="small",
)  # fmt: skip


def config_of(**mesh):
  config = digits.get_config("resnet")
  config.model.update(TINY)
  config.data.batch, config.steps = 16, 4
  config.optim.warmup_steps = 1
  config.mesh.update(mesh)
  return run.read(config)


def batch_of(r) -> dict:
  draw = np.random.default_rng(0)
  made = dict(
    images=draw.normal(size=r.batch["images"].shape).astype(np.float32),
    labels=draw.integers(0, 10, r.batch["labels"].shape).astype(np.int32),
    weights=np.ones(r.batch["weights"].shape, np.float32),
  )
  return {k: jax.device_put(x, r.batch[k].sharding) for k, x in made.items()}


def stepped(devices: int, **mesh):
  """(stats before, after two steps, after one of nan, loss)."""
  config = config_of(**mesh)
  alone = sharding.mesh_of(jax.devices()[0]) if devices == 1 else None
  r = run.build(config, alone)
  with jax.set_mesh(r.mesh):
    state, step, batch = r.init(), jax.jit(r.step), batch_of(r)
    before = jax.tree.map(np.asarray, state.stats)
    for _ in range(2):
      state, metrics = step(state, batch)
    poisoned = batch | {"images": batch["images"] * np.nan}
    still, _ = step(state, poisoned)
  after, held = (jax.tree.map(np.asarray, s.stats) for s in (state, still))
  return before, after, held, float(metrics["train/loss"])


@pytest.mark.slow
def test_running_statistics_are_the_same_on_one_and_eight_devices():
  one, eight = stepped(1, data=8, fsdp=1), stepped(8, data=2, fsdp=2, tensor=2)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    one[1],
    eight[1],
  )
  assert one[3] == pytest.approx(eight[3], rel=1e-4)
  before, after, held, _ = eight
  moved = [
    not np.array_equal(a, b)
    for a, b in zip(
      jax.tree.leaves(before), jax.tree.leaves(after), strict=True
    )
  ]
  assert all(moved)
  # A step of what is no number moves none of them.
  jax.tree.map(np.testing.assert_array_equal, after, held)


def test_parts_of_a_batch_are_refused_where_a_norm_couples_rows():
  config = config_of(data=8, fsdp=1) | {"compute": {"microbatches": 2}}
  with pytest.raises(
    BadConfig, match="batch norm.*--config.compute.microbatches=1"
  ):
    run.build(config, run.make_mesh(config))


def test_a_step_of_images_counts_examples_and_has_its_flops():
  r = run.build(config_of(data=8, fsdp=1))
  assert r.unit == "examples" and r.units_per_step == 16
  assert r.flops_per_step > 0
  stats = jax.tree.leaves(r.state.stats)
  assert sum(x.size for x in stats) == 2 * (6 + 8 * 3 + 12 * 3)
  assert set(images.batch_of("vit")) == set(r.batch)
