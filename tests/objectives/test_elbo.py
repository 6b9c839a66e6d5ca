"""The evidence lower bound: by its definition, and against what it bounds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import errors
from aigc_jax.layers.noise import normal
from aigc_jax.models.vae import Told
from aigc_jax.objectives.elbo import LIKELIHOODS, elbo, log_mass
from tests import diffusion
from tests.sweep import sweep

KINDS = sorted(LIKELIHOODS)


def cdf(kind, x):
  stats = pytest.importorskip("scipy.stats")
  theirs = dict(
    logistic=stats.logistic, gaussian=stats.norm, laplace=stats.laplace
  )
  return theirs[kind].cdf(x)


def grid(levels=256):
  return np.linspace(-1, 1, levels)


@functools.cache
def mass_of(kind):
  of = functools.partial(log_mass, width=2 / 255, low=-1.0, high=1.0)
  return jax.jit(functools.partial(of, LIKELIHOODS[kind]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("log_scale", [-6.5, -3.0, 0.0, 3.0])
def test_the_masses_of_all_levels_add_up_to_one(kind, log_scale):
  for mean in (-1.3, 0.1234, 0.9):
    logp = mass_of(kind)(grid().astype(np.float32), mean, log_scale)
    assert np.exp(logp).sum() == pytest.approx(1, abs=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_is_its_definition(kind):
  """Of levels, in float64, by differences of the distribution function."""
  levels, rows = 16, 8
  draw = np.random.default_rng(0)
  x = grid(levels)[draw.integers(0, levels, (rows, 2, 3, 1))]
  mean, log_var = draw.normal(size=(2, rows, 4))
  pixels = draw.normal(size=x.shape) * 0.3
  log_scale = draw.uniform(-0.7, 0.3, x.shape)  # float64 holds the tails
  told = Told(
    *(jnp.asarray(a, jnp.float32) for a in (mean, log_var, pixels, log_scale))
  )
  batch = diffusion.batch_of(rows) | dict(images=jnp.asarray(x, jnp.float32))
  means = elbo(lambda _: told, batch, likelihood=kind, levels=levels, beta=3.0)
  half = 1 / (levels - 1)
  low = np.where(x < -0.999, -np.inf, x - half)
  high = np.where(x > 0.999, np.inf, x + half)
  scale = np.exp(log_scale)
  mass = cdf(kind, (high - pixels) / scale) - cdf(kind, (low - pixels) / scale)
  nats = -np.log(mass).sum((1, 2, 3))[:-1]
  kl = 0.5 * (mean**2 + np.exp(log_var) - 1 - log_var).sum(1)[:-1]
  exact = {
    "distortion": nats.mean(),
    "kl": kl.mean(),
    "loss": (nats + 3 * kl).mean() / 6,
    "bits_per_dim": (nats + kl).mean() / 6 / np.log(2),
    "off_grid": 0.0,
  }
  for name, value in exact.items():
    assert float(means[name].value()) == pytest.approx(value, rel=1e-4), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_bits_are_no_fewer_than_the_true_length_and_equal_with_the_posterior(
  kind,
):
  """One pixel of two values, and a code of one number, so all can be summed."""
  rows = 20_000
  z = np.linspace(-8, 8, 4001)
  prior = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi) * (z[1] - z[0])
  true = -np.log2((prior * (1 - cdf(kind, (0.0 - z) / 0.7))).sum())
  draw = diffusion.keys_of(rows)
  ones = jnp.ones((rows, 1, 1, 1))
  batch = dict(images=ones, weights=jnp.ones(rows), draw=draw)

  def bits(mean, log_var):
    noise = normal(draw, "code", (1,))
    code = mean + np.exp(log_var / 2) * noise
    told = Told(
      jnp.full((rows, 1), mean), jnp.full((rows, 1), log_var),
      code.reshape(ones.shape), jnp.full(ones.shape, np.log(0.7)),
    )  # fmt: skip
    means = elbo(lambda _: told, batch, likelihood=kind, levels=2)
    return float(means["bits_per_dim"].value())

  assert bits(0.0, 0.0) > true + 0.1
  near = bits(0.6, -0.4)
  assert true - 0.02 < near < true + 0.1


@pytest.mark.slow
def test_pixels_between_the_levels_are_told():
  x = jnp.asarray([-1.0, 1.0, 1 / 255, 0.0, 1.1]).reshape(1, 5, 1, 1)
  told = Told(jnp.zeros((1, 1)), jnp.zeros((1, 1)), 0 * x, 0 * x)
  batch = dict(images=x, weights=jnp.ones(1))
  means = elbo(lambda _: told, batch)
  assert float(means["off_grid"].value()) == pytest.approx(0.4)


@pytest.mark.slow
def test_levels_that_are_rounded_to_bytes_are_levels():
  """17 greys in a file of bytes cost what 17 exact ones cost."""
  levels = np.arange(17)
  exact = levels / 8 - 1
  stored = np.round(levels * 255 / 16) / 127.5 - 1
  assert np.abs(exact - stored).max() > 0.003
  draw = np.random.default_rng(0)
  told = Told(
    jnp.zeros((1, 1)), jnp.zeros((1, 1)),
    jnp.asarray(draw.normal(size=(1, 17, 1, 1)), jnp.float32),
    jnp.asarray(draw.normal(size=(1, 17, 1, 1)), jnp.float32),
  )  # fmt: skip

  def means(x):
    images = jnp.asarray(x, jnp.float32).reshape(1, 17, 1, 1)
    batch = dict(images=images, weights=jnp.ones(1))
    return elbo(lambda _: told, batch, levels=17)

  a, b, other = means(exact), means(stored), means(stored + 0.01)
  assert float(a["off_grid"].value()) == float(b["off_grid"].value()) == 0
  assert float(other["off_grid"].value()) == 1
  np.testing.assert_allclose(a["distortion"].sum, b["distortion"].sum)


@pytest.mark.parametrize("own", sweep([True, False], False))
def test_pixels_have_scales_of_their_own_or_one_of_the_objective(own):
  x = np.linspace(-1, 1, 6, dtype=np.float32).reshape(1, 6, 1, 1)
  zero = np.zeros((1, 1), np.float32)
  told = Told(zero, zero, 0.3 * x, 0 * x - 1.5)
  none = told.replace(log_scale_BYXC=None)
  batch = dict(images=x, weights=np.ones(1, np.float32))

  def loss(told, **options):
    f = lambda t: elbo(lambda _: t, batch, **options)["loss"].value()  # noqa: E731
    return float(jax.jit(f)(told))

  assert loss(told) == pytest.approx(loss(none, log_scale=-1.5))
  given = dict(log_scale=-1.5) if own else {}
  with pytest.raises(errors.BadConfig, match=f"model.scales={own}"):
    elbo(lambda _: told if own else none, batch, **given)


@pytest.mark.parametrize(
  ("change", "word"),
  [(dict(likelihood="poisson"), "logistic"), (dict(beta=-1.0), "beta"),
   (dict(levels=1), "2 levels"), (dict(low=1.0), "low")],
)  # fmt: skip
def test_options_that_cannot_be_are_refused(change, word):
  told = Told(*(jnp.zeros((8, 1)),) * 2, *(jnp.zeros((8, 6, 6, 1)),) * 2)
  with pytest.raises(errors.BadConfig, match=word):
    elbo(lambda _: told, diffusion.batch_of(8), **change)
