"""Forms that are faster on a CPU give what their formulas say, and so do rules.

A rule for a gradient is right at second order, and left out under jax.jvp.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import sharding
from aigc_jax.layers import (
  convolution,
  forms,
  mlp,
  norm,
  products,
  rounding,
  sums,
)
from aigc_jax.layers.cpu import FORMS
from aigc_jax.layers.forms import plain_formulas
from aigc_jax.objectives import tokens
from tests import tiny


@pytest.fixture(autouse=True)
def one_cpu(monkeypatch):
  """A CPU by itself, though the tests have eight virtual devices."""
  monkeypatch.setattr(sharding, "platform", lambda: "cpu")
  monkeypatch.setattr(sharding, "alone", lambda: True)


def draw(seed, *shape):
  numbers = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(numbers, jnp.float32)


x, y, rate = draw(0, 3, 5, 48), draw(1, 3, 5, 48), draw(2, 3, 5, 1)
# name of a form -> what asks for it, as a function of arrays; its arguments
ASKED = {
  "activate": (functools.partial(mlp.activate, "gelu"), (x, y)),
  "column_sums": (
    lambda *a: forms.form("column_sums", norm._column_sums)(*a), (x, rate),
  ),
  "convolve": (
    lambda a, w: convolution.convolve(a, w, 2),
    (draw(4, 2, 6, 6, 3), draw(5, 3, 3, 3, 4)),
  ),
  "largest": (
    functools.partial(sums.largest, lambda a, b: a * b), (x, y),
  ),
  "largest_of_neighbours": (
    convolution.largest_of_neighbours, (draw(4, 2, 6, 6, 3),),
  ),
  "multiplied": (
    functools.partial(products.multiplied, "BTD,BSD->BTS"), (x, y),
  ),
  "over_places": (
    functools.partial(sums.over_places, lambda a, b: a * b),
    (draw(4, 2, 6, 5, 3), draw(5, 2, 1, 1, 3)),
  ),
  "over_rows": (sums.over_rows, (x,)),
  "packed": (lambda a: rounding.unpacked(rounding.packed(a), a.dtype), (x,)),
  "rounded": (
    lambda a: rounding.rounded(a, jnp.bfloat16).astype(jnp.float32), (x,),
  ),
  "row_sums": (
    lambda *a: forms.form("row_sums", norm._row_sums)(*a), (x, y[0, 0]),
  ),
  "total": (functools.partial(sums.total, lambda a, b: a * b), (x, y)),
  "weight_gradient": (
    functools.partial(products.weight_gradient, "BTD,DF->BTF"),
    (x, draw(3, 3, 5, 7)),
  ),
}  # fmt: skip


def test_every_form_is_held_against_its_formula():
  assert set(ASKED) == set(FORMS)


@pytest.mark.parametrize("name", sorted(FORMS))
def test_a_form_gives_what_its_formula_gives(name, monkeypatch):
  f, args = ASKED[name]
  taken = []
  own = FORMS[name]
  spy = own._replace(run=lambda *a, **k: taken.append(name) or own.run(*a, **k))
  monkeypatch.setitem(FORMS, name, spy)
  found = jax.jit(f)(*args)
  assert taken == [name]
  with plain_formulas():
    wanted = jax.jit(lambda *a: f(*a))(*args)
  assert taken == [name]
  np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=2e-5)


def scored(style: str, **changes):
  """loss(params, scale of the embedding) of a tiny decoder, and its parameters.

  A second argument that the loss is not linear in, as R1 has its images.
  """
  model = tiny.build(style, **changes)
  ids = jnp.arange(14).reshape(2, 7) % 37
  batch = dict(tokens=ids, targets=ids[:, ::-1], weights=jnp.ones((2, 7)))

  def loss(params, scale):
    table = params["embed"]["table"] * scale
    params = params | {"embed": {"table": table}}
    predict = lambda batch: model.apply({"params": params}, batch)  # noqa: E731
    return tokens(predict, batch, z_loss=1e-2, chunk=0)["loss"].sum

  return loss, tiny.params_of(style)


RULES = {
  "blocks, norms, products": ("llama", dict(kernel="blocks", unroll=0)),
  "gelu": ("none", dict(kernel="xla")),
  "learned positions, layer norm": ("gpt2", dict(kernel="xla")),
  "caps, windows, two norms": ("gemma", dict(kernel="chunked")),
}


SOME = [
  name if name == "gelu" else pytest.param(name, marks=pytest.mark.slow)
  for name in RULES
]


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_a_derivative_of_a_derivative_is_that_of_the_formulas(name):
  style, changes = RULES[name]
  loss, params = scored(style, **changes)

  def penalty(params, scale):
    return jax.grad(loss, argnums=1)(params, scale) ** 2

  scale = jnp.float32(0.7)
  found = jax.jit(jax.grad(penalty))(params, scale)
  with plain_formulas():
    wanted = jax.jit(jax.grad(lambda *a: penalty(*a)))(params, scale)
  largest = max(float(jnp.max(jnp.abs(w))) for w in jax.tree.leaves(wanted))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4 * largest),
    found, wanted,
  )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
def test_a_derivative_along_a_direction_is_that_of_the_gradient(name):
  style, changes = RULES[name]
  loss, params = scored(style, **changes)
  scale = jnp.float32(0.7)
  with plain_formulas():
    _, along = jax.jit(
      lambda s: jax.jvp(functools.partial(loss, params), (s,), (2.0,))
    )(scale)
  slope = jax.jit(jax.grad(loss, argnums=1))(params, scale)
  np.testing.assert_allclose(along, 2 * slope, rtol=1e-4)


def derivatives(f):
  """jitted functions of an array: the second and the third of a number's."""
  second = jax.grad(jax.grad(f))
  return jax.jit(jax.vmap(second)), jax.jit(jax.vmap(jax.grad(second)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", mlp.ACTIVATIONS)
def test_every_activation_has_its_second_and_third_derivative(kind):
  at = jnp.linspace(-4, 4, 81) + 0.013
  f = lambda x: mlp.activate(kind, x)  # noqa: E731
  second, third = derivatives(lambda x: f(x[None])[0])
  with jax.enable_x64(True):
    twice, thrice = derivatives(mlp.ACTIVATIONS[kind])
    high = np.asarray(at, np.float64)
    wanted = np.asarray(twice(high)), np.asarray(thrice(high))
  np.testing.assert_allclose(second(at), wanted[0], atol=2e-5)
  np.testing.assert_allclose(third(at), wanted[1], atol=1e-4)


def test_weights_cast_once_get_their_second_derivatives_among_plain_formulas():
  x, w = draw(0, 2, 3, 5), draw(1, 5, 7)

  def penalty(w, copy=None):
    with plain_formulas():
      weight = w if copy is None else products.Rounded(w, copy)
      loss = lambda x: jnp.sum(  # noqa: E731
        jnp.cos(products.contract("BTD,DF->BTF", x, weight))
      )
      return jnp.sum(jax.grad(loss)(x) ** 2)

  found = jax.grad(penalty)(w, w.astype(jnp.bfloat16))
  np.testing.assert_allclose(found, jax.grad(penalty)(w), rtol=1e-6)
