"""Sources and targets, from a config to a step."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from aigc_jax import run, sharding
from aigc_jax.errors import BadConfig
from aigc_jax.presets import skeleton, t5, transformer, tts
from tests import tiny

SMALL = dict(
  encoder_layers=1, decoder_layers=1, dim=16, heads=2, head_dim=8, mlp_dim=24,
  dtype="float32", remat="none",
)  # fmt: skip


def built(config):
  return run.build(run.read(config), sharding.mesh_of(jax.devices()[0]))


def denoising(**task):
  config = t5.get_config("small,stdlib")
  tiny.put(config, SMALL, vocab=300)
  config.data.update(tokenizer="bytes", batch=4, length=40)
  config.data.task.update(dict(first_sentinel=299) | task)
  config.steps = 20
  config.optim.warmup_steps = 2
  return config


def translating():
  config = transformer.get_config("base")
  tiny.put(config, SMALL, vocab=300)
  config.data.update(
    tokenizer="bytes", batch=4, source_length=12, target_length=10
  )
  config.steps = 20
  config.optim.warmup_steps = 2
  return config


@pytest.mark.slow
@pytest.mark.parametrize("config", [denoising, translating])
def test_a_step_learns_from_what_the_spec_says(config):
  made = built(config())
  draw = np.random.default_rng(0)

  def some(abstract):
    if abstract.dtype == np.float32:
      return np.ones(abstract.shape, np.float32)
    return draw.integers(1, 3, abstract.shape).astype(np.int32)

  batch = jax.tree.map(some, made.batch)
  state = made.init()
  losses = []
  with jax.set_mesh(made.mesh):
    step = jax.jit(made.step)
    for _ in range(8):
      state, metrics = step(state, batch)
      losses.append(float(metrics["train/loss"]))
  assert losses[-1] < losses[0]


@pytest.mark.parametrize(
  ("config", "words"),
  [
    (lambda: denoising(start_token=5), "start_token=0"),
    (lambda: denoising(first_sentinel=300), "model.vocab=301"),
    (lambda: mixed(skeleton().model, translating()), "would not read"),
    (lambda: mixed(translating().model, skeleton()), "takes encoder_tokens"),
    (
      lambda: speaking(times=1),
      "data.augment.times and bands .* set both to 0",
    ),
  ],
)
def test_a_model_and_data_that_do_not_belong_together_are_refused(
  config, words
):
  with pytest.raises(BadConfig, match=words):
    built(config())


def mixed(model: ConfigDict, config: ConfigDict) -> ConfigDict:
  """A config with the model of another."""
  config.model = model
  return config


def speaking(**augment) -> ConfigDict:
  """A model that makes spectrograms, of which data hides something."""
  config = tts.get_config("digits")
  config.data.augment.update(augment)
  return config
