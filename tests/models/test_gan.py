"""GANs: published counts, the layers they are made of, what they draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from aigc_jax import errors, flops, optim, sharding
from aigc_jax.layers.convolution import Doubled, convolve, double
from aigc_jax.layers.report import REPORTS
from aigc_jax.models.stylegan import Modulated
from aigc_jax.sampling.images import Draws
from tests import adversary
from tests.golden import written
from tests.sweep import slow, sweep

PUBLISHED = {
  "dcgan": dict(generator=3_576_704, discriminator=2_765_568),
  "patchgan": dict(generator=3_576_704, discriminator=2_765_633),
}
STYLES = sorted(adversary.NAMES)


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_the_published_ones(name):
  for player, count in PUBLISHED[name].items():
    assert written.count_of(f"gan:{name}", f"{player}/") == count
  assert written.count_of(f"gan:{name}") == sum(PUBLISHED[name].values())


@pytest.mark.parametrize("style", STYLES + ["styled"])
def test_weights_of_products_decay_and_nothing_else(style):
  """Not what an image begins with, nor how strong its noise is."""
  model = adversary.build(style)
  found = jax.eval_shape(model.init, jax.random.key(0), model.example())
  params = nn.unbox(found)["params"]
  for name, treated in optim.treatments(params, (), 0.1).items():
    assert (treated.weight_decay > 0) == name.endswith("/w"), name


def test_what_doubles_adds_each_place_to_four_by_four_others():
  draw = np.random.default_rng(0)
  x, w = draw.normal(size=(2, 3, 5, 4)), draw.normal(size=(4, 4, 4, 7))
  y = np.zeros((2, 6 + 2, 10 + 2, 7))
  for i in range(3):
    for j in range(5):
      part = np.einsum("bc,hwcd->bhwd", x[:, i, j], w)
      y[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += part
  found = double(*(jnp.asarray(a, jnp.float32) for a in (x, w)))
  np.testing.assert_allclose(found, y[:, 1:-1, 1:-1], rtol=1e-4, atol=1e-5)


def test_what_doubles_keeps_the_scale_and_counts_its_products():
  layer = Doubled(16, 64, jnp.float32)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 16)), "f4")
  params = nn.unbox(layer.init(jax.random.key(0), x))
  # A ReLU before it leaves half of the square.
  assert np.std(layer.apply(params, jax.nn.relu(x))) == pytest.approx(
    1, rel=0.1
  )
  count = flops.count(lambda x: layer.apply(params, x), x)
  assert count == 2 * x.size * 16 * 64


@pytest.mark.parametrize("style", sweep(STYLES, "plain"))
def test_one_draws_what_the_other_judges(style):
  model, variables = adversary.build(style), adversary.variables_of(style)
  assert isinstance(model, Draws)
  batch = adversary.batch_of(4)
  play = jax.jit(lambda batch: model.apply(variables, batch))
  images, told = (play(batch)[name] for name in ("generator", "discriminator"))
  assert images.shape == (4, 12, 12, 3) and images.dtype == jnp.float32
  assert style == "styled" or np.abs(images).max() <= 1
  assert np.abs(images[0] - images[1]).max() > 0.1
  places = 2 * 2 if style == "patches" else 1
  assert told.scores_BS.shape[0] == 4
  assert told.scores_BS.shape[1] >= places
  assert told.coupled == (style not in ("plain", "styled"))
  with pytest.raises(errors.BadConfig, match="objective.kind=adversarial"):
    model.apply(variables, batch, role="teacher")


@pytest.mark.parametrize("style", sweep(STYLES, "plain"))
def test_an_image_is_drawn_of_its_own_noise_alone_when_training_is_over(style):
  model, variables = adversary.build(style), adversary.variables_of(style)
  draw = np.random.default_rng(0)
  noise = jnp.asarray(draw.normal(size=(4, *model.noise)), jnp.float32)
  draw = jax.jit(lambda z: model.apply(variables, z, None, None, method="draw"))
  np.testing.assert_allclose(draw(noise)[1:2], draw(noise[1:2]), atol=1e-5)


def test_an_image_of_training_is_a_function_of_its_rows_key():
  model, variables = adversary.build("plain"), adversary.variables_of("plain")
  batch = adversary.batch_of(6)
  play = jax.jit(lambda batch: model.apply(variables, batch, role="generator"))
  whole, part = (play(b) for b in (batch, {"draw": batch["draw"][3:5]}))
  np.testing.assert_allclose(whole[3:5], part, atol=1e-6)


def test_in_training_a_norm_hears_the_images_of_its_own_player_alone():
  model = adversary.build("batch norm")
  variables = adversary.variables_of("batch norm")
  _, new = jax.eval_shape(
    lambda batch: model.apply(
      variables, batch, role="generator", mutable=[REPORTS]
    ),
    adversary.batch_of(),
  )
  assert set(new[REPORTS]) == {"generator"}


@pytest.mark.parametrize(
  ("change", "word"),
  [
    (dict(widths=(4, 4, 4)), "a multiple of 8"),
    (dict(widths=()), "at least one stage"),
    (dict(latent=0), "latent"),
    (dict(generator_norm="layer"), "batch, none"),
    (dict(discriminator_norm="batched"), "did you mean 'batch'"),
    (dict(norm_momentum=0.0), "norm_momentum"),
    (dict(dtype="float16"), "bfloat16"),
  ],
)
def test_parts_that_cannot_go_together_are_refused(change, word):
  with pytest.raises(errors.BadConfig, match=word):
    adversary.build("batch norm", **change)


@pytest.mark.slow
@pytest.mark.parametrize("style", ["batch norm", "plain", slow("styled")])
def test_eight_devices_give_the_loss_and_gradients_of_one(style):
  options = {} if style == "batch norm" else dict(r1=0.7)
  batch, params = adversary.batch_of(), adversary.variables_of(style)["params"]
  mesh = sharding.make_mesh(
    data=4, fsdp=2, expert=1, tensor=1, sequence=1, pipeline=1
  )
  laid = {
    name: jax.device_put(
      x, sharding.shardings(adversary.LETTERS[name], x.shape, mesh)
    )
    for name, x in batch.items()
  }
  model = adversary.build(style)
  abstract = jax.eval_shape(model.init, jax.random.key(0), model.example())
  places = sharding.of_tree(abstract["params"], mesh)
  graded = adversary.gradient_of(style, **options)
  with jax.set_mesh(mesh):
    many = jax.jit(graded.__wrapped__)(jax.device_put(params, places), laid)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3),
    graded(params, batch),
    jax.device_get(many),
  )


def test_a_styled_layer_is_a_convolution_with_weights_of_its_row():
  """Weights scaled by the style, and each output's brought to length one."""
  layer = Modulated(3, 5, 7, 4, jnp.float32)
  draw = np.random.default_rng(0)
  x, style = draw.normal(size=(2, 6, 6, 5)), draw.normal(size=(2, 4))
  given = [jnp.asarray(a, jnp.float32) for a in (x, style)]
  params = nn.unbox(layer.init(jax.random.key(0), *given))["params"]
  scale = 1 + style @ params["style"]["w"] + params["style"]["bias"]
  found = layer.apply({"params": params}, *given)
  for row in range(2):
    w = np.asarray(params["w"]) * scale[row][:, None]
    w = w / np.sqrt((w**2).sum((0, 1, 2), keepdims=True))
    plain = convolve(given[0][row : row + 1], jnp.asarray(w, jnp.float32), 1)
    np.testing.assert_allclose(found[row], plain[0], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_styled_image_has_noise_in_every_layer():
  model, variables = adversary.build("styled"), adversary.variables_of("styled")
  assert model.noise == (4 + 6 * 6 + 2 * 12 * 12,)
  noise = np.random.default_rng(0).normal(size=(1, *model.noise))
  draw = jax.jit(lambda z: model.apply(variables, z, None, None, method="draw"))
  whole = draw(jnp.asarray(noise, jnp.float32))
  for at in (0, 4, 4 + 36, 4 + 36 + 144):
    other = noise.copy()
    other[0, at] += 1
    assert np.abs(draw(jnp.asarray(other, jnp.float32)) - whole).max() > 1e-4
