"""Tiny models that draw, their sizes all different, and batches for them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from aigc_jax.data.draw import Draw
from aigc_jax.models.dit import dit
from tests import fresh
from tests.tiny import perturbed

DIT = dict(
  classes=5, image_size=6, channels=1, patch=2, layers=3, dim=24, heads=4,
  mlp_dim=44, sigma=False, kernel="xla",
)  # fmt: skip


def keys_of(rows: int, seed: int = 0) -> jax.Array:
  """The entry "draw" of a batch, as the data makes it."""
  places = np.arange(rows)
  return jnp.asarray(Draw(seed, places, places).keys("draw"))


def batch_of(rows: int = 8, seed: int = 0) -> dict[str, jax.Array]:
  """Images, labels, keys, and weights that leave the last row out."""
  draw = np.random.default_rng(seed)
  images = draw.uniform(-1, 1, (rows, 6, 6, 1))
  return dict(
    images=jnp.asarray(images, jnp.float32),
    labels=jnp.asarray(draw.integers(0, 5, rows), jnp.int32),
    weights=jnp.asarray(np.arange(rows) < rows - 1, jnp.float32),
    draw=keys_of(rows, seed),
  )


LETTERS = dict(images="BYXC", labels="B", weights="B", draw="B.")


@functools.cache
def dit_params(sigma: bool = False):
  """Parameters, none of them 0."""
  model = dit(**DIT | dict(sigma=sigma))
  found = fresh.variables(model, model.example())
  return jax.tree.map(perturbed, found["params"])
