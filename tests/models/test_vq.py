"""VQ-VAE: images to codes and back, what beta weighs, what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from aigc_jax import errors, tree
from aigc_jax.models.vae import vae
from aigc_jax.models.vq import Codes, vq
from aigc_jax.objectives.vq import vq as objective
from tests import diffusion, kinds
from tests.golden import written

MODEL = {k: v for k, v in kinds.VQ.items() if k != "kind"}
# VQ-GAN's f16 nets with as many codes, and its judge of 70 x 70 pixels.
PUBLISHED = {"vq:vqgan": 72_141_699, "vq:vqgan_16384": 76_073_859}
JUDGE = 2_765_633
BOOK = dict(codes=12, dim=4)
GRID = dict(quantizer="fsq", levels=(3, 4, 5), codes=None, dim=None)


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_the_published_ones(name):
  assert written.count_of(name, "generator/") == PUBLISHED[name]
  assert written.count_of(name, "discriminator/") == JUDGE


@functools.cache
def gradients(beta: float):
  """(losses, gradients) of a VQ whose codebook its loss moves."""
  name = "vq by gradient"
  model, params = kinds.build(name), kinds.params_of(name)
  others = kinds.variables_of(name)["stats"]

  def loss(params):
    predict = functools.partial(
      model.apply, {"params": params, "stats": others}
    )
    means = objective(predict, diffusion.batch_of(), beta=beta)
    return means["loss"].value(), means

  (_, means), grads = jax.value_and_grad(loss, has_aux=True)(params)
  return {k: float(m.value()) for k, m in means.items()}, grads


@pytest.mark.slow
def test_beta_weighs_what_moves_the_encoder_and_nothing_else():
  """Of the gradients of three betas: linear for the encoder, else constant."""
  (zero, none), (one, once), (_, twice) = map(gradients, (0.0, 1.0, 2.0))
  for part in ("book", "decoder"):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
      none[part], once[part],
    )  # fmt: skip
  for a, b, c in zip(
    *(jax.tree.leaves(x["encoder"]) for x in (none, once, twice)), strict=True
  ):
    np.testing.assert_allclose(b - a, c - b, rtol=1e-3, atol=1e-5)
    assert np.any(np.abs(b - a) > 1e-7)
  assert one["loss"] == pytest.approx(zero["loss"] + one["commitment"])
  assert np.any(none["book"]["table"])  # the codebook's own term has no beta


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vq", "vq by gradient", "fsq"])
def test_codes_go_to_pixels_and_images_to_codes_as_in_training(name):
  model, batch = kinds.build(name), diffusion.batch_of()
  assert isinstance(model, Codes)
  variables = kinds.variables_of(name)
  run = lambda *given, **how: model.apply(variables, *given, **how)  # noqa: E731
  coded = run(batch)
  codes = run(batch["images"], method="encode")
  np.testing.assert_array_equal(codes, coded.codes_BT)
  assert codes.shape == (8, 9) and model.places == (3, 3)
  assert 0 <= int(codes.min()) and int(codes.max()) < model.codes
  pixels = run(codes, method="decode")
  np.testing.assert_allclose(pixels, coded.pixels_BYXC, atol=1e-6)
  other = run(codes.at[0, 4].set((codes[0, 4] + 1) % 12), method="decode")
  assert np.any(other[0] != pixels[0])
  np.testing.assert_array_equal(other[1:], pixels[1:])


def test_its_stages_are_those_of_the_vae_under_the_same_names():
  shapes = []
  for model in (vae(image_size=6, channels=1, widths=(10,), latent=4),
                vq(**MODEL)):  # fmt: skip
    found = jax.eval_shape(model.init, jax.random.key(0), model.example())
    shapes.append(tree.flat(nn.unbox(found["params"])))
  shared = {"encoder/half0/conv/w", "encoder/more0/bias", "decoder/pixels/bias"}
  for found in shapes:
    assert shared <= set(found)


def test_keys_are_asked_for_by_what_draws_new_codes_alone():
  assert "draw" in vq(**MODEL).example()
  for change in (dict(revive=0.0), dict(quantizer="gradient"), GRID):
    assert "draw" not in vq(**MODEL | change).example()


@pytest.mark.parametrize(
  ("change", "word"),
  [
    (dict(widths=(4, 4)), "a multiple of 4"),
    (dict(quantizer="emma"), "did you mean 'ema'"),
    (dict(codes=None), "--config.model.codes=512"),
    (dict(codes=0), "codes=0"),
    (dict(decay=1.0), "below 1"),
    (dict(revive=-0.1), "revive=-0.1"),
    (dict(levels=(4, 4)), "quantizer='fsq'"),
    (GRID | dict(levels=(4, 2)), "from 3"),
    (GRID | dict(levels=()), "8, 5, 5, 5"),
    (GRID | dict(codes=61), "codes=None follows"),
    (dict(dtype="float16"), "bfloat16"),
  ],
)
def test_parts_that_cannot_go_together_are_refused(change, word):
  with pytest.raises(errors.BadConfig, match=word):
    vq(**MODEL | change)


@pytest.mark.parametrize(
  ("change", "word"), [(dict(beta=-1.0), "beta"), (dict(distance="l1"), "abs")]
)
def test_options_out_of_range_are_refused(change, word):
  with pytest.raises(errors.BadConfig, match=word):
    objective(lambda batch: None, diffusion.batch_of(), **change)
