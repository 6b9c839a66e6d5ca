"""GANs as whole runs: two players in a step, killed and resumed, drawn from."""

import json

import jax
import numpy as np
import pytest

from aigc_jax import run, sharding
from aigc_jax.errors import BadConfig
from aigc_jax.evaluators.drawn import variables_of
from aigc_jax.trainer import faults
from configs import gan
from tests import commands

CONFIG = """
from configs import gan

def get_config(folder):
  config = gan.get_config("tiny,digits")
  config.model.update(widths=(6, 8), latent=5)
  config.optim.average = 0.5
  config.optim.groups = (
    dict(patterns=["generator/*"], weight_decay=0.0, learning_rate_factor=1.0,
         every_steps=3),
  )
  config.steps = 8
  config.data.update(batch=16, root=f"{folder}/data")
  config.checkpoint.every_steps = 4
  config.evaluate.heldout.update(batches=1, every_steps=None)
  return config
"""


def config_of(objective=None, **compute):
  config = gan.get_config("tiny,digits")
  config.model.update(widths=(6, 8), latent=5, generator_norm="none")
  config.data.batch, config.steps = 16, 4
  config.mesh.fsdp = 1
  config.compute.update(compute)
  config.objective = objective or config.objective
  return run.read(config)


def batch_of(r: run.Run) -> dict:
  draw = np.random.default_rng(0)
  return dict(
    images=draw.uniform(-1, 1, r.batch["images"].shape).astype(np.float32),
    labels=np.zeros(16, np.int32),
    weights=np.ones(16, np.float32),
    draw=draw.integers(0, 2**32, (16, 2), np.uint32),
  )


def stepped(**changes):
  """(parameters after two steps, loss), on one device."""
  mesh = sharding.mesh_of(jax.devices()[0])
  r = run.build(config_of(**changes), mesh)
  batch = batch_of(r)
  with jax.set_mesh(mesh):
    state, step = r.init(), jax.jit(r.step)
    for _ in range(2):
      state, metrics = step(state, batch)
  return state.params, metrics["train/loss"]


@pytest.mark.slow
def test_parts_of_a_batch_move_both_players_as_the_whole_does():
  """There is no order of turns that parting a batch could change."""
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5),
    stepped(),
    stepped(microbatches=4),
  )


@pytest.mark.parametrize("player", ["generator_norm", "discriminator_norm"])
def test_parts_of_a_batch_are_refused_where_a_norm_couples_rows(player):
  config = config_of(microbatches=2)
  config["model"][player], config["objective"]["r1"] = "batch", 0.0
  mesh = sharding.mesh_of(jax.devices()[0])
  with pytest.raises(BadConfig, match="batch norm.*microbatches=1") as refusal:
    run.build(config, mesh)
  assert "remat" not in str(refusal.value)


def test_a_steps_flops_are_those_of_its_passes():
  """R1 asks for the slope, and for the gradient of the slope."""
  each = [
    run.build(
      config_of(objective=dict(kind="adversarial", r1=r1)),
      sharding.mesh_of(jax.devices()[0]),
    ).flops_per_step
    for r1 in (0.0, 1.0)
  ]
  # By hand, of one image: half0 and half1 and score; code, double1, double0.
  judge = 16 * 16 * 6 + 4 * 16 * 6 * 8 + 4 * 8
  draw = 5 * 4 * 8 + 4 * 16 * 8 * 6 + 16 * 16 * 6
  # The judge sees real and drawn images, with a gradient for its weights; and
  # drawn ones, with one for the images.
  first = 16 * 16 * 6  # of its first layer, whose images get no gradient
  passes = 2 * (3 * judge - first) + 2 * judge + 3 * draw - 5 * 4 * 8
  assert each[0] == 2 * 16 * passes
  assert 2 * 16 * 2 * judge < each[1] - each[0] < 2 * 16 * 5 * judge


@pytest.mark.slow
def test_the_average_has_moments_of_its_own():
  """Those of batch norm that a run with its parameters would have."""
  config = config_of()
  config["model"]["generator_norm"] = "batch"
  config["optim"]["average"] = 0.75
  mesh = sharding.mesh_of(jax.devices()[0])
  r = run.build(config, mesh)
  with jax.set_mesh(mesh):
    batch, step, state = batch_of(r), jax.jit(r.step), r.init()
    for _ in range(2):
      state, _ = step(state, batch)
    as_raw = state.replace(params=state.average, stats=state.average_stats)
    after, other = (step(s, batch)[0] for s in (state, as_raw))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    after.average_stats, other.stats,
  )  # fmt: skip
  raw, read = (variables_of(after, average) for average in (False, True))
  assert read["stats"] is after.average_stats and raw["stats"] is after.stats
  apart = jax.tree.map(
    lambda a, b: np.abs(a - b).max(), raw["stats"], read["stats"]
  )
  assert min(jax.tree.leaves(apart)) > 1e-5


@pytest.mark.slow
def test_a_game_is_killed_resumed_and_drawn_from(tmp_path):
  (tmp_path / "own.py").write_text(CONFIG)

  def train(workdir, **environ):
    return commands.run(
      "aigc_jax.train", f"--config={tmp_path}/own.py:{tmp_path}",
      f"--workdir={tmp_path / workdir}", environ=environ,
    )  # fmt: skip

  done = train("whole")
  assert done.returncode == 0, done.stderr
  (tmp_path / "parted").mkdir()
  (tmp_path / "parted" / faults.MARK).touch()
  plan = json.dumps({"die_at": [{"site": "step", "step": 6}]})
  assert train("parted", AIGC_JAX_FAULTS=plan).returncode != 0
  done = train("parted")
  assert done.returncode == 0, done.stderr
  one, two = (
    json.loads((tmp_path / name / "result.json").read_text())["digest"]
    for name in ("whole", "parted")
  )
  assert one == two
  # Both the parameters and their average are saved, and differ.
  images = {}
  for weights in ("raw", "average"):
    out = tmp_path / f"{weights}.png"
    done = commands.run(
      "aigc_jax.generate", f"--workdir={tmp_path}/whole", "--grid=2x3",
      f"--weights={weights}", f"--out={out}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    images[weights] = out.read_bytes()
  assert images["raw"] != images["average"]
