"""Laws of the VAE, through its objective."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from aigc_jax import errors, sharding
from aigc_jax.models.vae import vae
from aigc_jax.objectives.elbo import elbo
from aigc_jax.sampling.images import Draws
from tests import diffusion, fresh
from tests.golden import written
from tests.tiny import perturbed

# Stable Diffusion's autoencoder, without the loss's own networks.
PUBLISHED = {"": 83_653_863, "encoder/": 34_163_664, "decoder/": 49_490_199}
LATER = 83_819_683  # of Stable Diffusion 3 and of Flux
VAE = dict(image_size=6, channels=1, widths=(5,), latent=4)


@pytest.mark.parametrize("part", PUBLISHED)
def test_counts_are_the_published_ones(part):
  """As diffusers counts its parts, with what makes the code in each."""
  assert written.count_of("vae:sd", part) == PUBLISHED[part]
  assert written.count_of("latent:sd", f"vae/{part}") == PUBLISHED[part]


def test_that_of_stable_diffusion_3_has_the_published_count():
  assert written.count_of("vae:sd3") == LATER


@functools.cache
def params():
  model = vae(**VAE)
  found = fresh.variables(model, model.example())
  return jax.tree.map(perturbed, found["params"])


def score(params, batch):
  predict = functools.partial(vae(**VAE).apply, {"params": params})
  return elbo(predict, batch)


@functools.cache
def graded():
  return jax.jit(jax.value_and_grad(lambda p, b: score(p, b)["loss"].sum))


@pytest.mark.slow
def test_parts_of_a_batch_add_up_to_the_whole():
  batch = diffusion.batch_of(8)
  whole = graded()(params(), batch)
  parts = [
    graded()(params(), {name: x[rows] for name, x in batch.items()})
    for rows in (slice(0, 4), slice(4, 8))
  ]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
    whole,
    jax.tree.map(jnp.add, *parts),
  )
  for x in jax.tree.leaves(whole[1]):
    assert np.isfinite(x).all() and np.any(x != 0)


@pytest.mark.slow
def test_eight_devices_give_the_loss_and_gradient_of_one():
  batch = diffusion.batch_of(8)
  mesh = sharding.make_mesh(
    data=4, fsdp=2, expert=1, tensor=1, sequence=1, pipeline=1
  )
  laid = {
    name: jax.device_put(
      x, sharding.shardings(diffusion.LETTERS[name], x.shape, mesh)
    )
    for name, x in batch.items()
  }
  model = vae(**VAE)
  abstract = jax.eval_shape(model.init, jax.random.key(0), model.example())
  places = sharding.of_tree(abstract["params"], mesh)
  with jax.set_mesh(mesh):
    many = jax.jit(graded().__wrapped__)(jax.device_put(params(), places), laid)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
    graded()(params(), batch),
    jax.device_get(many),
  )


def test_what_it_draws_are_the_pixels_of_a_code():
  model = vae(**VAE)
  assert isinstance(model, Draws)
  code = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4)), jnp.float32)
  draw = jax.jit(
    lambda z: model.apply(
      {"params": params()}, z, jnp.zeros(2), jnp.zeros(2, int), method="draw"
    )
  )
  found = draw(code)
  assert found.shape == (2, 6, 6, 1)
  assert np.abs(found[0] - found[1]).max() > 1e-3


@pytest.mark.parametrize(
  ("change", "word"),
  [
    (dict(widths=(4, 4)), "a multiple of 4"),
    (dict(widths=()), "at least one stage"),
    (dict(widths=(0,)), r"widths\[0\]"),
    (dict(latent=0), "latent"),
    (dict(dtype="float16"), "bfloat16"),
    (dict(attention=(6,)), "model.blocks=2"),
    (dict(blocks=1, groups=3), r"widths\[0\]=5.*groups=3"),
    (dict(blocks=1, groups=2, widths=(4, 4, 4)), "a multiple of 4"),
    (dict(blocks=1, groups=2, widths=(4,), attention=(3,)), "no stage has 3"),
    (dict(blocks=1, groups=2, widths=(4,), activation="relu"), "have silu"),
    (dict(remat="some"), "full"),
    (dict(projects=False), "model.blocks=2 --config.model.places=True"),
    (dict(projects=False, blocks=1, groups=5), "model.places=True"),
  ],
)
def test_parts_that_cannot_go_together_are_refused(change, word):
  with pytest.raises(errors.BadConfig, match=word):
    vae(**VAE | change)
