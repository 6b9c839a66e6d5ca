"""Models of images learn a batch of plain ones: what they lose falls."""

import importlib

import jax
import numpy as np
import pytest

from aigc_jax import run, sharding
from aigc_jax.timing import stepping, switches
from tests.sweep import sweep

NARROW = {"model.layers": 1, "model.dim": 16, "model.heads": 2}
# A preset, what makes it small, and the metric that has to fall.
SMALL = {
  "unet:tiny,digits": (
    {"model.widths": (8, 16), "model.groups": 4, "model.head_dim": 8},
    "train/loss",
  ),
  "prompted:digits": (
    NARROW | {"model.text_layers": 1, "model.text_dim": 16,
              "model.text_heads": 2},
    "train/loss",
  ),
  "latent:tiny,digits": (
    {
      "model.parts.vae.widths": (6,), "model.parts.denoiser.layers": 1,
      "model.parts.denoiser.dim": 16, "model.parts.denoiser.heads": 2,
    },
    "train/loss",
  ),
  "vq:tiny_gan,digits": (
    {
      "model.widths": (8,), "model.codes": 9, "model.dim": 4,
      "model.judge_widths": (5,), "objective.start_step": 20,
    },
    "train/mse",
  ),
}  # fmt: skip
STEPS = 25


@pytest.mark.slow
@pytest.mark.parametrize("name", sweep(list(SMALL), "vq:tiny_gan,digits"))
def test_what_it_loses_of_a_batch_falls(name):
  change, metric = SMALL[name]
  family, _, preset = name.partition(":")
  module = importlib.import_module(f"configs.{family}")
  config = run.read(module.get_config(preset))
  change = change | {
    "data.batch": 8, "optim.warmup_steps": 1, "optim.learning_rate": 3e-3,
  }  # fmt: skip
  config = switches.changed(config, change)
  mesh = sharding.mesh_of(jax.devices()[0])
  with jax.set_mesh(mesh):
    r = run.build(config, mesh)
    step, state, found = jax.jit(r.step), r.init(), []
    batch = stepping.zipf_batch(r, 0)
    bright = np.linspace(-1, 1, 8, dtype=np.float32)[:, None, None, None]
    batch["images"] = jax.device_put(
      np.broadcast_to(bright, batch["images"].shape), batch["images"].sharding
    )
    for _ in range(STEPS):
      state, metrics = step(state, batch)
      found.append(float(np.ravel(metrics[metric])[-1]))
  assert np.isfinite(found).all()
  assert np.mean(found[-3:]) < 0.9 * np.mean(found[:3])
