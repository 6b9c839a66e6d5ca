"""Samplers against fields that are known, guidance, and grids."""

import functools
import io
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.errors import BadConfig
from aigc_jax.objectives.paths import PREDICTIONS, Path
from aigc_jax.sampling import images, png

SAMPLERS = sorted(images.SAMPLERS)


class Linear:
  """Draws; what it predicts is linear in all that it is told."""

  image, classes, gradual = (2, 3, 1), 4, True
  noise = (2, 3, 1)

  def draw(self, noise, time_B, labels_B):
    wide = lambda a: a.reshape(-1, 1, 1, 1)  # noqa: E731
    return 0.5 * noise + 0.1 * wide(time_B) + 0.2 * wide(labels_B)

  def apply(self, variables, *given, method):
    return variables["params"] * getattr(self, method)(*given)


class AtOnce(Linear):
  """Draws in no steps, an image of the noise itself."""

  gradual, classes = False, 0

  def draw(self, noise, time_B, labels_B):
    return noise


def walked(field, prediction, **how):
  z = np.random.default_rng(0).normal(size=(3, 2, 2, 1)).astype(np.float32)
  walk = functools.partial(images.walk, field, Path(prediction), **how)
  return z, np.asarray(jax.jit(walk)(z, np.zeros(3, np.int32)))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 7])
def test_a_straight_field_is_walked_exactly(sampler, steps):
  """A field that is the same everywhere is left nowhere, by any number."""
  z, x = walked(lambda z, t, _: 0 * z + 1.5, "velocity",
                sampler=sampler, steps=steps)  # fmt: skip
  np.testing.assert_allclose(x, z - 1.5, atol=1e-6)


def test_euler_of_a_linear_field_is_its_closed_form():
  """dz/dt = a z gives (1 - a / n)**n z after n steps back from 1 to 0."""
  z, x = walked(lambda z, t, _: 0.8 * z, "velocity", sampler="euler", steps=5)
  np.testing.assert_allclose(x, (1 - 0.8 / 5) ** 5 * z, rtol=1e-5)


def test_heun_of_a_linear_field_is_its_closed_form():
  z, x = walked(lambda z, t, _: 0.8 * z, "velocity", sampler="heun", steps=5)
  h = -0.8 / 5
  np.testing.assert_allclose(x, (1 + h + h**2 / 2) ** 5 * z, rtol=1e-5)


def test_heun_comes_nearer_than_euler_by_an_order():
  errors = {}
  for sampler in ("euler", "heun"):
    for steps in (8, 16):
      z, x = walked(lambda z, t, _: z, "velocity", sampler=sampler, steps=steps)
      errors[sampler, steps] = np.abs(x - np.exp(-1) * z).max()
  assert 1.8 < errors["euler", 8] / errors["euler", 16] < 2.3
  assert 3.5 < errors["heun", 8] / errors["heun", 16] < 4.7


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_of_what_is_known_gives_the_image_in_one_step(prediction):
  """A model that knows the image leads any noise to it."""
  path = Path(prediction)
  image = np.float32([0.3, -0.7]).reshape(1, 2, 1, 1)

  def knowing(z, t_B, _):
    alpha, sigma = path.parts(t_B.reshape(-1, 1, 1, 1))
    return path.target(image, (z - alpha * image) / sigma, t_B)

  z = np.random.default_rng(0).normal(size=(3, 2, 1, 1)).astype(np.float32)
  for steps in (1, 6):
    how = dict(sampler="ddim", steps=steps)
    walk = functools.partial(images.walk, knowing, path, **how)
    x = jax.jit(walk)(z, np.zeros(3, np.int32))
    # What is left of the noise at the end of the cosine path is 5e-4 of it.
    np.testing.assert_allclose(x, image + 0 * z, atol=3e-3)


def test_limits_cut_the_image_that_epsilon_says():
  limits = (np.float32([-1]), np.float32([1]))
  for sampler in SAMPLERS:
    how = dict(sampler=sampler, steps=3)
    _, cut = walked(lambda z, t, _: 0 * z, "epsilon", limits=limits, **how)
    assert np.abs(cut).max() < 10
  _, free = walked(lambda z, t, _: 0 * z, "epsilon", **how)
  assert np.abs(free).max() > 100


def test_guidance_of_one_is_the_model_itself():
  seen = []

  def predict(z, t_B, labels_B):
    seen.append(np.asarray(labels_B))
    return np.asarray(z) * labels_B.reshape(-1, 1)

  z, t, labels = jnp.ones((2, 3)), jnp.zeros(2), jnp.array([1, 2])
  assert images.guided(predict, 4, 1.0) is predict
  found = images.guided(predict, 4, 3.0)(z, t, labels)
  np.testing.assert_array_equal(seen[0], [1, 2, 4, 4])
  np.testing.assert_allclose(found[:, 0], [4 + 3 * (1 - 4), 4 + 3 * (2 - 4)])
  none = images.guided(predict, 4, 0.0)(z, t, labels)
  np.testing.assert_allclose(none, 4.0)


def sampler(model, seed=0, **how):
  how = dict(sampler="euler", steps=3, guidance=2.0) | how
  path = Path("velocity") if model.gradual else None
  return images.Sampler(
    model, {"params": jnp.float32(1)}, path, mean=[0.5], std=[0.5], seed=seed,
    **how,
  )  # fmt: skip


def test_a_sample_follows_from_its_seed_number_and_label_alone():
  numbers, labels = np.arange(6), np.array([0, 0, 1, 1, 3, 4])
  whole = sampler(Linear())(numbers, labels, 4)
  assert whole.shape == (6, 2, 3, 1) and whole.dtype == np.uint8
  # Of another sampler, other company, and a batch that is not full.
  rows = [5, 1, 2]
  part = sampler(Linear())(numbers[rows], labels[rows], 2)
  np.testing.assert_array_equal(part, whole[rows])
  assert len({image.tobytes() for image in whole}) == 6
  other = sampler(Linear(), seed=1)(numbers, labels, 4)
  assert (other != whole).any()


def test_a_model_that_draws_at_once_takes_no_steps():
  found = sampler(AtOnce(), guidance=1.0)(np.arange(3), np.zeros(3), 3)
  noise_of = jax.jit(images.noise_of, static_argnums=2)
  noise = noise_of(0, np.arange(3, dtype=np.uint32), (2, 3, 1))
  exact = np.round(np.clip(np.asarray(noise) * 0.5 + 0.5, 0, 1) * 255)
  np.testing.assert_array_equal(found, exact)


def test_images_that_are_not_finite_are_refused():
  model = Linear()
  broken = images.Sampler(
    model, {"params": jnp.float32(np.nan)}, Path("velocity"), mean=[0.5],
    std=[0.5], sampler="euler", steps=2, guidance=1.0, seed=0,
  )  # fmt: skip
  with pytest.raises(BadConfig, match="not finite"):
    broken(np.arange(2), np.zeros(2), 2)


def test_a_model_that_does_not_draw_is_refused_by_name():
  with pytest.raises(
    BadConfig, match="SimpleNamespace does not.*dit, a unet, a vae, a gan"
  ):
    images.check_draws(types.SimpleNamespace(image=(1, 1, 1)), "--grid")


@pytest.mark.parametrize(
  ("given", "rows", "classes", "found"),
  [
    ([], 3, 5, [0, 1, 2]),
    ([], 3, 2, [0, 1, 0]),
    ([], 2, 0, [0, 0]),
    (["4", "none"], 3, 5, [4, 5, 4]),
  ],
)
def test_labels_go_to_rows_in_turn(given, rows, classes, found):
  assert images.labels_of(given, rows, classes).tolist() == found


@pytest.mark.parametrize(
  ("given", "classes", "word"),
  [(["5"], 5, "0 to 4"), (["-1"], 5, "none"), (["x"], 5, "x"),
   (["0"], 0, "no labels")],
)  # fmt: skip
def test_labels_that_a_model_has_not_are_refused(given, classes, word):
  with pytest.raises(BadConfig, match=word):
    images.labels_of(given, 2, classes)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_holds_every_pixel_of_every_image(channels):
  pil = pytest.importorskip("PIL.Image")
  draw = np.random.default_rng(0)
  some = draw.integers(0, 256, (6, 30, 20, channels)).astype(np.uint8)
  data = png.png(png.grid(some, 2, 3))
  assert data == png.png(png.grid(some, 2, 3))
  read = np.asarray(pil.open(io.BytesIO(data)))
  read = read.reshape(*read.shape[:2], channels)
  height, width = 60 + png.GAP, 40 + png.GAP  # twice as large
  for i, image in enumerate(some):
    y, x = i // 3 * height, i % 3 * width
    np.testing.assert_array_equal(read[y : y + 60 : 2, x : x + 40 : 2], image)
  assert (read[60:62] == 255).all()


def test_four_channels_are_no_png():
  with pytest.raises(BadConfig, match="1 or 3"):
    png.png(np.zeros((2, 2, 4), np.uint8))
