"""What a CPU convolves, and its gradients, are what the formulas say."""

import contextlib

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest

from aigc_jax import sharding
from aigc_jax.layers import convolution
from aigc_jax.layers.cpu import convolutions, onednn
from aigc_jax.layers.forms import plain_formulas
from tests.sweep import slow, sweep

# (B, Y, X, C), width, D, stride, zeros around if not half of the width. Of few
# places for each channel and of many.
SHAPES = {
  "many places": ((2, 8, 6, 3), 3, 4, 1),
  "few places": ((1, 4, 4, 33), 3, 5, 1),
  "a stride": ((2, 8, 8, 17), 3, 4, 2),
  "a stride, odd sizes": ((2, 7, 9, 3), 3, 5, 2),
  "a stem": ((1, 14, 15, 3), 7, 4, 2),
  "single places": ((2, 8, 6, 5), 1, 4, 1),
  "single places, a stride": ((2, 8, 7, 5), 1, 4, 2),
  "an even width": ((1, 8, 8, 5), 4, 3, 2),
  "an even width, few places": ((1, 5, 4, 17), 2, 3, 1),
  "a stride over the width": ((1, 9, 9, 2), 2, 3, 3),
  "zeros behind alone": ((2, 8, 6, 17), 3, 4, 2, (0, 1)),
  "zeros before alone": ((2, 4, 4, 33), 3, 5, 1, (2, 0)),
}
LIBRARIES = {
  "xla": contextlib.nullcontext,
  "onednn": onednn.preferred,
}


@pytest.fixture(autouse=True)
def one_cpu(monkeypatch):
  """A CPU by itself, though the tests have eight virtual devices."""
  monkeypatch.setattr(sharding, "platform", lambda: "cpu")
  monkeypatch.setattr(sharding, "alone", lambda: True)


def draw(seed, shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def with_gradients(f, *args):
  """f and its gradients for a fixed dy, traced anew at each call."""

  @jax.jit
  def both(*args):
    y, gradients = jax.vjp(f, *args)
    return y, *gradients(draw(9, y.shape).astype(y.dtype))

  return both(*args)


def assert_near(found, wanted):
  for a, b in zip(found, wanted, strict=True):
    atol = 1e-5 * float(np.max(np.abs(b)))
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
  "name",
  sweep(SHAPES, "few places", "a stride", "zeros behind alone"),
)
def test_a_convolution_and_its_gradients_are_those_of_the_formula(
  name, library
):
  if library == "onednn" and not onednn.usable("float32"):
    pytest.skip("this JAX or CPU has no oneDNN")
  shape, width, D, *how = SHAPES[name]
  args = draw(0, shape), draw(1, (width, width, shape[-1], D))

  def f(x, w):
    return convolution.convolve(x, w, *how)

  with plain_formulas():
    wanted = with_gradients(f, *args)
  with LIBRARIES[library]():
    assert_near(with_gradients(f, *args), wanted)


@pytest.mark.parametrize(
  "name", [slow("many places"), "few places", "a stride"]
)
def test_a_derivative_of_a_convolutions_derivative_is_that_of_the_formula(name):
  shape, width, D, stride = SHAPES[name]
  args = draw(0, shape), draw(1, (width, width, shape[-1], D))

  def f(x, w):
    def loss(x):
      return jnp.sum(jnp.sin(convolution.convolve(x, w, stride)))

    return jax.grad(loss)(x)

  with plain_formulas():
    wanted = with_gradients(f, *args)
  assert_near(with_gradients(f, *args), wanted)


def test_onednn_convolves_where_its_settings_are_known_and_not_elsewhere(
  monkeypatch,
):
  if not onednn.usable("float32"):
    pytest.skip("this JAX or CPU has no oneDNN")
  x, w = draw(0, (1, 6, 6, 3)), draw(1, (3, 3, 3, 4))

  def calls() -> int:
    def f(x, w):
      return convolution.convolve(x, w, 1)

    return jax.jit(f).lower(x, w).as_text().count(convolutions.CALL)

  assert calls() == 0
  with onednn.preferred():
    known = jaxlib.__version__.startswith(convolutions.VERSIONS)
    assert calls() == int(known)
    monkeypatch.setattr(convolutions, "VERSIONS", ())
    assert calls() == 0


def test_what_is_not_float32_is_convolved_by_the_formula():
  x, w = draw(0, (1, 6, 6, 3)), draw(1, (3, 3, 3, 4))
  args = [a.astype(jnp.bfloat16) for a in (x, w)]
  with plain_formulas():
    wanted = with_gradients(lambda *a: convolution.convolve(*a, 2), *args)
  found = with_gradients(lambda *a: convolution.convolve(*a, 2), *args)
  for a, b in zip(found, wanted, strict=True):
    assert a.dtype == jnp.bfloat16
    np.testing.assert_array_equal(
      np.asarray(a, np.float32), np.asarray(b, np.float32)
    )


@pytest.mark.parametrize(
  "shape", [slow(((2, 6, 8, 3),)), (2, 7, 5, 3), slow(((1, 1, 2, 2),))]
)
@pytest.mark.parametrize("dtype", ["float32", slow("bfloat16")])
def test_of_equal_neighbours_the_first_has_the_gradient(shape, dtype):
  x = np.maximum(np.round(2 * draw(0, shape)), 0)  # many ties
  x = x.astype(jnp.dtype(dtype))
  pool = convolution.largest_of_neighbours
  with plain_formulas():
    wanted = with_gradients(lambda x: pool(x), x)
  found = with_gradients(lambda x: pool(x), x)
  for a, b in zip(found, wanted, strict=True):
    a, b = (np.asarray(v, np.float32) for v in (a, b))
    np.testing.assert_allclose(a, b, atol=0.03 if dtype != "float32" else 1e-6)
