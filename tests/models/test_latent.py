"""Latent diffusion: codes, the scale that one step measures, refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.errors import BadConfig
from aigc_jax.layers.noise import normal
from aigc_jax.layers.report import REPORTS, moved
from aigc_jax.models import MODELS
from aigc_jax.objectives.flow import flow
from aigc_jax.objectives.paths import Path
from aigc_jax.run.build import scorer
from aigc_jax.sampling.images import Draws, Finishes, Sampler, noise_of
from aigc_jax.trainer.state import Fixed
from tests import kinds

VAE, DENOISER = kinds.VAE, kinds.DENOISER
PARTS = dict(vae=VAE, denoiser=DENOISER)


def fresh_stats():
  return dict(scale=jnp.ones(1), measured=jnp.zeros(1))


@functools.cache
def asked(**changes):
  keys = dict(kinds.KINDS["latent"].model) | changes
  model = MODELS[keys.pop("kind")](**keys)
  params = kinds.params_of("latent")
  return jax.jit(
    lambda stats, batch: model.apply(
      {"params": params, "stats": stats}, batch, role="latents",
      mutable=[REPORTS],
    )
  )  # fmt: skip


def by_definition(batch):
  """Codes before they are scaled."""
  vae = MODELS["vae"](**{k: v for k, v in VAE.items() if k != "kind"})
  mean, deviation = vae.apply(
    {"params": kinds.params_of("latent")["vae"]}, batch["images"],
    method="moments",
  )  # fmt: skip
  return mean, mean + deviation * normal(batch["draw"], "code", (3, 3, 2))


@pytest.mark.slow
def test_codes_are_drawn_of_what_the_vae_says_and_scaled():
  batch = kinds.noised_batch(4, 6)
  stats = dict(scale=jnp.full(1, 0.3), measured=jnp.ones(1))
  mean, drawn = by_definition(batch)
  for change, exact in (
    ({}, 0.3 * drawn),
    (dict(sample=False), 0.3 * mean),
    (dict(scale=0.7), 0.7 * drawn),
    (dict(scale=0.7, shift=0.2), 0.7 * (drawn - 0.2)),
  ):
    found, _ = asked(**change)(stats, batch)
    assert found.shape == (4, 3, 3, 2)
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_first_step_measures_the_deviation_and_later_ones_keep_it():
  """However it is parted; a row that does not count is not measured."""
  batch = kinds.noised_batch(8, 6)
  _, new = asked()(fresh_stats(), batch)
  parts = [
    asked()(fresh_stats(), {k: x[rows] for k, x in batch.items()})[1]
    for rows in (slice(0, 4), slice(4, 8))
  ]
  found = moved(fresh_stats(), new[REPORTS])
  again = moved(
    fresh_stats(), jax.tree.map(jnp.add, *(p[REPORTS] for p in parts))
  )
  assert batch["weights"][-1] == 0
  _, drawn = by_definition(batch)
  np.testing.assert_allclose(found["scale"], 1 / np.std(drawn[:-1]), rtol=1e-4)
  np.testing.assert_allclose(found["scale"], again["scale"], rtol=1e-5)
  scaled, later = asked()(found, batch)
  assert np.std(scaled[:-1]) == pytest.approx(1, rel=1e-4)
  assert float(moved(found, later[REPORTS])["scale"][0]) == found["scale"][0]


@pytest.mark.slow
def test_the_loss_is_of_codes_and_what_is_frozen_reports_its_measure():
  model, variables = kinds.build("latent"), kinds.variables_of("latent")
  score = jax.jit(scorer(model, flow, ["vae"]))
  means = score(
    variables["params"], kinds.noised_batch(4, 6), jax.random.key(0),
    fixed=Fixed(None, variables["stats"]),
  )  # fmt: skip
  assert set(means[REPORTS]) == {"latents"}
  assert np.isfinite(means["loss"].value())


@pytest.mark.slow
def test_what_is_drawn_is_decoded_and_follows_from_its_number_alone():
  model, variables = kinds.build("latent"), kinds.variables_of("latent")
  assert isinstance(model, Draws) and isinstance(model, Finishes)
  assert model.noise == (3, 3, 2) and model.image == (6, 6, 1)
  how = dict(mean=[0.5], std=[0.5], sampler="euler", guidance=1.0, seed=0)
  draw = Sampler(model, variables, Path("velocity"), steps=2, **how)
  labels = np.asarray([0, 1, 2])
  whole = draw(np.arange(3), labels, 3)
  assert whole.shape == (3, 6, 6, 1)
  np.testing.assert_array_equal(draw(np.arange(1, 3), labels[1:], 2), whole[1:])
  codes = noise_of(0, jnp.arange(3, dtype=jnp.uint32), (3, 3, 2))
  scale = variables["stats"]["scale"]
  finished = model.apply(variables, codes * scale, method="finish")
  shifted = model.clone(shift=0.2)
  again = shifted.apply(variables, (codes - 0.2) * scale, method="finish")
  np.testing.assert_allclose(again, finished, rtol=1e-4, atol=1e-5)
  vae = MODELS["vae"](**{k: v for k, v in VAE.items() if k != "kind"})
  exact = vae.apply(
    {"params": variables["params"]["vae"]}, codes, method="decode"
  )
  np.testing.assert_allclose(finished, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ("change", "word"),
  [
    (dict(parts=dict(vae=VAE)), "expected vae and denoiser"),
    (dict(parts=PARTS | dict(vae=VAE | dict(places=False))), "places=True"),
    (dict(parts=PARTS | dict(vae=kinds.VQ)), "take a vae"),
    (dict(parts=PARTS | dict(denoiser=VAE)), "take a dit or a unet"),
    (
      dict(parts=PARTS | dict(denoiser=DENOISER | dict(image_size=6))),
      "6x6x2.*denoiser.image_size=3",
    ),
    (dict(classes=4), "--config.model.classes=5"),
    (dict(scale=0.0), "None to measure"),
  ],
)
def test_parts_that_do_not_fit_are_refused_with_the_way_out(change, word):
  keys = dict(classes=5, parts=PARTS) | change
  with pytest.raises(BadConfig, match=word):
    MODELS["latent"](**keys)


def test_an_objective_that_asks_for_other_parts_is_refused():
  model = kinds.build("latent")
  batch, key = kinds.noised_batch(1, 6), jax.random.key(0)
  with pytest.raises(BadConfig, match="'teacher'.*kind=flow"):
    jax.eval_shape(lambda batch: model.init(key, batch, "teacher"), batch)
