"""Flow matching and diffusion: the loss by its definition, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import errors, sharding
from aigc_jax.layers.noise import normal, uniform
from aigc_jax.models.dit import dit
from aigc_jax.objectives.flow import STEPS, flow
from aigc_jax.objectives.paths import PREDICTIONS, Path
from tests import diffusion
from tests.sweep import sweep


def linear(batch):
  """A prediction that depends on all that it is given."""
  t_B = batch["time"].reshape(-1, 1, 1, 1)
  labels_B = jnp.minimum(batch["labels"], 5).reshape(-1, 1, 1, 1)
  return 0.3 * batch["images"] + 0.2 * t_B + 0.1 * labels_B


def trained(predict):
  @functools.wraps(predict)
  def training(batch):
    return predict(batch)

  training.trains = True
  return training


@jax.jit
def drawn(batch):
  draw = batch["draw"]
  return uniform(draw, "time"), normal(draw, "noise", (6, 6, 1))


def definition(prediction, batch):
  """(squared error, time) of each row, in float64."""
  t, e = (np.asarray(x, np.float64) for x in drawn(batch))
  x = np.asarray(batch["images"], np.float64)
  if prediction == "velocity":
    alpha, sigma, target = 1 - t, t, e - x
  else:
    first = np.arctan(np.exp(-7.5))
    angle = first + (np.pi / 2 - 2 * first) * t
    alpha, sigma = np.cos(angle), np.sin(angle)
  wide = lambda a: a[:, None, None, None]  # noqa: E731
  if prediction == "epsilon":
    target = e
  if prediction == "v":
    target = wide(alpha) * e - wide(sigma) * x
  z = wide(alpha) * x + wide(sigma) * e
  labels = np.asarray(batch["labels"])
  found = 0.3 * z + 0.2 * wide(t) + 0.1 * wide(labels)
  return ((found - target) ** 2).mean((1, 2, 3)), t


def measured(predict, **options):
  return jax.jit(functools.partial(flow, predict, **options))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_loss_is_its_definition(prediction):
  batch = diffusion.batch_of(32)
  means = measured(linear, prediction=prediction)(batch)
  exact, t = definition(prediction, batch)
  assert float(means["loss"].weight) == 31
  np.testing.assert_allclose(
    means["loss"].value(), exact[:-1].mean(), rtol=1e-5
  )
  for q in range(4):
    inside = (t[:-1] >= q / 4) & (t[:-1] < (q + 1) / 4)
    mean = means[f"loss_quarter{q + 1}"]
    assert float(mean.weight) == inside.sum() > 0
    np.testing.assert_allclose(
      mean.value(), exact[:-1][inside].mean(), rtol=1e-5
    )


def test_a_model_that_says_nothing_has_the_variance_of_the_target():
  batch = diffusion.batch_of(512)
  means = measured(lambda b: jnp.zeros_like(b["images"]))(batch)
  of_images = float(jnp.mean(batch["images"][:-1] ** 2))
  assert float(means["loss"].value()) == pytest.approx(1 + of_images, rel=0.02)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ends_and_velocity_follow_from_what_is_predicted(prediction):
  path = Path(prediction)
  x, e = np.random.default_rng(0).normal(size=(2, 4, 3))
  t = jnp.array([0.1, 0.4, 0.5, 0.9])

  @jax.jit
  def said(x, e, t):
    z, slope = jax.jvp(lambda t: path.between(x, e, t), (t,), (jnp.ones(4),))
    return path.ends(path.target(x, e, t), z, t), path.velocity(x, e, t), slope

  found, velocity, slope = said(x, e, t)
  for a, b in zip(found, (x, e), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)
  np.testing.assert_allclose(velocity, slope, atol=1e-5)


def test_labels_are_dropped_in_training_alone_by_the_keys():
  batch = {k: np.asarray(x) for k, x in diffusion.batch_of(512).items()}

  @functools.partial(jax.jit, static_argnames=("label_dropout", "training"))
  def labels(batch, label_dropout, training=True):
    seen = []

    def predict(given):
      seen.append(given["labels"])
      return given["images"]

    predict = trained(predict) if training else predict
    flow(predict, batch, label_dropout=label_dropout)
    return seen[0]

  np.testing.assert_array_equal(labels(batch, 0.25, False), batch["labels"])
  whole, half = (
    np.asarray(labels({k: x[rows] for k, x in batch.items()}, 0.25))
    for rows in (slice(None), slice(0, 512, 2))
  )
  assert 0.18 < (whole > 4).mean() < 0.32
  np.testing.assert_array_equal(whole[::2], half)
  assert (labels(batch, 1.0) > 4).all()


def bound_by_definition(batch, prediction="epsilon"):
  """STEPS times the divergence of two Gaussians, in float64, by row."""
  first = np.arctan(np.exp(-7.5))
  t = np.asarray(uniform(batch["draw"], "time"), np.float64)
  t = np.maximum(t, 1 / STEPS)[:, None, None, None]
  e = np.asarray(normal(batch["draw"], "noise", (6, 6, 1)), np.float64)
  x = np.asarray(batch["images"], np.float64)

  def parts(t):
    angle = first + (np.pi / 2 - 2 * first) * t
    return np.cos(angle), np.sin(angle)

  (a_t, s_t), (a_s, s_s) = parts(t), parts(t - 1 / STEPS)
  z = a_t * x + s_t * e
  ratio = a_t / a_s
  var = s_t**2 - ratio**2 * s_s**2
  mean = lambda x: ratio * s_s**2 / s_t**2 * z + a_s * var / s_t**2 * x  # noqa: E731
  found, share = 0.5 * z, (0.1 * z + 1) / 2
  guess = (z - s_t * found) / a_t
  var_q = var * s_s**2 / s_t**2
  var_p = np.exp(share * np.log(var) + (1 - share) * np.log(var_q))
  kl = np.log(var_p / var_q) - 1
  kl += (var_q + (mean(x) - mean(guess)) ** 2) / var_p
  return STEPS * (kl / 2).mean((1, 2, 3))


@pytest.mark.slow
def test_the_bound_on_the_variance_is_a_divergence_of_gaussians():
  batch = diffusion.batch_of(64)

  def predict(given):
    z = given["images"]
    return jnp.concatenate([0.5 * z, 0.1 * z], axis=-1)

  means = flow(predict, batch, prediction="epsilon", variance=1e-3)
  exact = bound_by_definition(batch)[:-1].mean()
  np.testing.assert_allclose(means["bound"].value(), exact, rtol=2e-3)
  np.testing.assert_allclose(
    means["loss"].value(),
    means["mse"].value() + 1e-3 * means["bound"].value(), rtol=1e-5,
  )  # fmt: skip


def score(params, batch, sigma=False):
  predict = functools.partial(
    dit(**diffusion.DIT | dict(sigma=sigma)).apply, {"params": params}
  )
  how = dict(prediction="v", variance=1e-3) if sigma else {}
  return flow(trained(predict), batch, **how)


@pytest.mark.slow
def test_parts_of_a_batch_add_up_to_the_whole():
  params, batch = diffusion.dit_params(), diffusion.batch_of(8)
  run = jax.jit(score)
  parts = [
    run(params, {name: x[rows] for name, x in batch.items()})
    for rows in (slice(0, 4), slice(4, 8))
  ]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
    run(params, batch),
    jax.tree.map(jnp.add, *parts),
  )


@pytest.mark.slow
@pytest.mark.parametrize("sigma", sweep([False, True], True))
def test_eight_devices_give_the_loss_and_gradient_of_one(sigma):
  """The variance's too; every parameter has a gradient."""
  params, batch = diffusion.dit_params(sigma), diffusion.batch_of(16)
  mesh = sharding.make_mesh(
    data=2, fsdp=2, expert=1, tensor=2, sequence=1, pipeline=1
  )
  laid = {
    name: jax.device_put(
      x, sharding.shardings(diffusion.LETTERS[name], x.shape, mesh)
    )
    for name, x in batch.items()
  }
  model = dit(**diffusion.DIT | dict(sigma=sigma))
  abstract = jax.eval_shape(model.init, jax.random.key(0), model.example())
  places = sharding.of_tree(abstract["params"], mesh)
  loss = lambda p, b: score(p, b, sigma=sigma)["loss"].sum  # noqa: E731
  one = jax.jit(jax.value_and_grad(loss))(params, batch)
  for x in jax.tree.leaves(one[1]):
    assert np.isfinite(x).all() and np.any(x != 0)
  with jax.set_mesh(mesh):
    many = jax.jit(jax.value_and_grad(loss))(
      jax.device_put(params, places), laid
    )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
    one,
    jax.device_get(many),
  )


def test_data_without_keys_is_told_which_key_gives_them():
  batch = diffusion.batch_of(2)
  del batch["draw"]
  with pytest.raises(errors.BadConfig, match="data.draw=True"):
    flow(linear, batch)


@pytest.mark.parametrize(
  ("change", "word"),
  [
    (dict(prediction="noise"), "epsilon"),
    (dict(label_dropout=1.5), "label_dropout"),
    (dict(variance=0.1), "epsilon"),
    (dict(variance=0.1, prediction="v"), "sigma=True"),
  ],
)
def test_options_that_cannot_be_are_refused(change, word):
  with pytest.raises(errors.BadConfig, match=word):
    jax.eval_shape(
      functools.partial(flow, linear, **change), diffusion.batch_of(2)
    )
