"""Tiny GANs, their sizes all different, and batches for them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from aigc_jax import run
from aigc_jax.models.gan import gan
from aigc_jax.models.stylegan import stylegan
from aigc_jax.objectives.adversarial import adversarial
from aigc_jax.trainer.state import Fixed
from tests import fresh
from tests.diffusion import keys_of
from tests.tiny import perturbed

GAN = dict(image_size=12, channels=3, widths=(5, 7), latent=4, init_std=None)
PLAIN = dict(generator_norm="none", discriminator_norm="none")
STYLES = {
  "batch norm": GAN,
  "plain": GAN | PLAIN,
  "patches": GAN | dict(patches=True),
}
STYLED = dict(
  image_size=12, channels=3, widths=(5, 7), latent=4, mapping_layers=2
)
NAMES = (*STYLES, "styled")
LETTERS = dict(images="BYXC", weights="B", draw="B.")


def build(style: str, **changes):
  if style == "styled":
    return stylegan(**STYLED | changes)
  return gan(**STYLES[style] | changes)


def batch_of(rows: int = 8, seed: int = 0) -> dict[str, jax.Array]:
  """Images and keys; all rows count, as in training."""
  images = np.random.default_rng(seed).uniform(-1, 1, (rows, 12, 12, 3))
  return dict(
    images=jnp.asarray(images, jnp.float32),
    weights=jnp.ones(rows),
    draw=keys_of(rows, seed),
  )


@functools.cache
def variables_of(style: str):
  """Parameters and stats of a style, none of them zero or one."""
  model = build(style)
  return jax.tree.map(perturbed, fresh.variables(model, model.example()))


def score_of(style: str, **options):
  """score(params, batch) -> {name: Mean}, as a training step has it."""
  stats = variables_of(style).get("stats")
  whole = run.scorer(build(style), functools.partial(adversarial, **options))

  def score(params, batch):
    return whole(params, batch, jax.random.key(0), fixed=Fixed(None, stats))

  return score


@functools.cache
def gradient_of(style: str, **options):
  """jitted (params, batch) -> ((loss sum, means), gradients)."""

  def loss(params, batch):
    means = score_of(style, **options)(params, batch)
    return means["loss"].sum, means

  return jax.jit(jax.value_and_grad(loss, has_aux=True))
