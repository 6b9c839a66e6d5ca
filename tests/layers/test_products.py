"""Products, norms and activations by platform are the plain formulas."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from aigc_jax import sharding
from aigc_jax.layers import cpu, einsum, mlp, norm, products
from tests import fresh
from tests.sweep import sweep
from tests.test_bench import mesh_of_one

EQUATIONS = {
  "BTD,DNH->BTNH": ((2, 7, 5), (5, 3, 4)),
  "BTNH,NHD->BTD": ((2, 7, 3, 4), (3, 4, 5)),
  "BTD,DF->BTF": ((2, 7, 5), (5, 11)),
  "BTF,FD->BTD": ((2, 7, 11), (11, 5)),
  "BTD,VD->BTV": ((2, 7, 5), (13, 5)),
  "EBD,EDF->EBF": ((3, 7, 5), (3, 5, 11)),  # E in all three
}


def draw(seed, shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("equation", list(EQUATIONS))
def test_the_gradient_of_a_product_is_that_of_einsum(equation):
  x, w = (draw(i, s) for i, s in enumerate(EQUATIONS[equation]))

  def both(x, w):
    y, back = jax.vjp(lambda x, w: products.product(equation, x, w), x, w)
    z, again = jax.vjp(lambda x, w: jnp.einsum(equation, x, w), x, w)
    dy = jnp.cos(y)
    return (y, *back(dy)), (z, *again(dy))

  for a, b in zip(*jax.jit(both)(x, w), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_the_transposed_copy_for_a_weight_gradient_survives_the_compiler():
  f = jax.jit(lambda x, dy: cpu.products.weight_gradient("BTD,DF->BTF", x, dy))
  x, dy = draw(0, (2, 64, 32)), draw(1, (2, 64, 128))
  text = f.lower(x, dy).compile().as_text()
  assert "lhs_contracting_dims={0}" not in text


@pytest.mark.parametrize("equation", sweep(EQUATIONS, "BTD,DNH->BTNH"))
def test_products_of_bfloat16_in_float32_round_operands_and_nothing_else(
  equation,
):
  x, w = (draw(i, s) for i, s in enumerate(EQUATIONS[equation]))

  def low(x):
    return x.astype(jnp.bfloat16).astype(jnp.float32)

  def ours(x, w, dy):
    y, back = jax.vjp(
      lambda x, w: products.contract(equation, x, w, "bf16"), x, w
    )
    return y, *back(dy)

  def rounded(x, w, dy):
    f = functools.partial(jnp.einsum, equation)
    return f(low(x), low(w)), *jax.vjp(f, low(x), low(w))[1](low(dy))

  args = x, w, np.cos(np.einsum(equation, x, w))
  lowered = jax.jit(ours).lower(*args)
  lines = lowered.as_text().splitlines()
  operands = [
    x[x.index(" : (") : x.index(" -> ")]
    for x in lines
    if "stablehlo.dot_general" in x
  ]
  assert [x.count("bf16") for x in operands] == [2, 2, 2]
  found = lowered.compile()(*args)
  for a, b in zip(found, jax.jit(rounded)(*args), strict=True):
    assert a.dtype == jnp.float32
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


class Two(nn.Module):
  """Two products of one x, joined or apart."""

  joined: bool
  dtype: jnp.dtype = jnp.float32
  products: str = "plain"
  bias: bool = True
  result: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x):
    kind = dict(dtype=self.dtype, bias=self.bias, products=self.products)
    parts = [
      einsum.Einsum("BTD,DNH->BTNH", (5, 3, 4), name="a", **kind),
      einsum.Einsum("BTD,DKH->BTKH", (5, 1, 4), name="b", **kind),
    ]
    return einsum.together(parts, x, self.joined, self.result)


@functools.cache
def params_of_two():
  x = draw(0, (2, 7, 5))
  params = fresh.variables(Two(True), x)["params"]
  return jax.tree.map(lambda p: np.asarray(p) + np.float32(0.1), params)


@pytest.mark.parametrize("bias", sweep([False, True], True))
def test_rounding_results_where_they_are_parted_changes_no_bit_nor_gradient(
  bias,
):
  x = draw(0, (2, 7, 5))
  dys = [
    draw(i, (2, 7, n, 4)).astype(jnp.bfloat16) for i, n in ((1, 3), (2, 1))
  ]
  params = fresh.variables(Two(True, bias=bias), x)

  def found(result, params):
    model = Two(True, products="bf16", bias=bias, result=result)
    ys, back = jax.vjp(
      lambda p, x: [y.astype(jnp.bfloat16) for y in model.apply(p, x)],
      params,
      x,
    )
    return ys, back(dys)

  with jax.set_mesh(mesh_of_one()):
    there, after = (
      jax.jit(functools.partial(found, r))(params) for r in (jnp.bfloat16, None)
    )
  for a, b in zip(*map(jax.tree.leaves, (there, after)), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(
      np.asarray(a, np.float32), np.asarray(b, np.float32)
    )


def test_products_together_are_the_products_apart():
  x = draw(0, (2, 7, 5))
  params = {"params": params_of_two()}
  both = jax.jit(
    lambda p: [Two(joined).apply(p, x) for joined in (True, False)]
  )
  for a, b in zip(*both(params), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
  "joined, kind",
  sweep(
    itertools.product([False, True], products.PRODUCTS),
    (False, "plain"),
    (True, "bf16"),
    (True, "fp8"),
  ),
)
def test_weights_cast_once_have_the_same_gradient_and_it_is_float32(
  joined, kind
):
  x = draw(0, (2, 7, 5))
  params = params_of_two()

  @jax.jit
  def gradient(params, copies):
    def loss(params):
      params = products.with_copies(params, copies)
      parts = Two(joined, jnp.bfloat16, kind).apply({"params": params}, x)
      return sum(jnp.sum(jnp.cos(y.astype(jnp.float32))) for y in parts)

    return jax.grad(loss)(params)

  copies = products.copies(params, jnp.bfloat16)
  assert sorted(copies) == ["a/w", "b/w"]
  each, once = gradient(params, {}), gradient(params, copies)
  for name in "ab":
    dw = np.asarray(each[name]["w"])
    np.testing.assert_array_equal(once[name]["w"], dw)
    assert dw.dtype == jnp.float32
    assert np.any(dw != dw.astype(jnp.bfloat16).astype(jnp.float32))


def test_a_model_in_float32_needs_no_copies():
  params = params_of_two()
  assert products.copies(params, jnp.float32) == {}


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("bias", sweep([False, True], True))
@pytest.mark.parametrize("offset", sweep([0.0, 1.0], 1.0))
@pytest.mark.parametrize("centre", [False, True])
def test_the_gradient_of_a_norm_is_that_of_its_formula(
  monkeypatch, centre, offset, bias, platform
):
  monkeypatch.setattr(sharding, "platform", lambda: platform)
  x, dy = 2 * draw(0, (2, 7, 24)) + 1, draw(1, (2, 7, 24))
  args = (x, draw(2, (24,)), draw(3, (24,)) if bias else None)
  how = norm.How(1e-5, centre, offset)

  def both(*args):
    y, back = jax.vjp(lambda *a: norm._normalised(how, *a), *args)
    z, again = jax.vjp(lambda *a: norm._formula(how, *a)[0], *args)
    return jax.tree.leaves((y, back(dy))), jax.tree.leaves((z, again(dy)))

  for a, b in zip(*jax.jit(both)(*args), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_gelu_is_exact_to_a_millionth():
  x = np.linspace(-8, 8, 4001, dtype=np.float32)
  erf = np.vectorize(math.erf)(x.astype(np.float64) / math.sqrt(2))
  found = jax.jit(functools.partial(mlp.activate, "gelu"))(x)
  np.testing.assert_allclose(found, x * (1 + erf) / 2, atol=1e-6)


def test_the_slope_of_gelu_is_exact_to_a_third_of_a_millionth():
  x = np.linspace(-14, 14, 100_001, dtype=np.float32)
  wide = x.astype(np.float64)
  erf = np.vectorize(math.erf)(wide / math.sqrt(2))
  density = np.exp(-(wide**2) / 2) / math.sqrt(2 * math.pi)
  exact = (1 + erf) / 2 + wide * density
  dy = np.cos(x)
  with jax.set_mesh(mesh_of_one()):
    gelu = functools.partial(mlp.activate, "gelu")
    found = jax.jit(lambda x, dy: jax.vjp(gelu, x)[1](dy)[0])(x, dy)
  np.testing.assert_allclose(found, exact * dy, atol=3.3e-7)
  assert np.isnan(jax.jit(cpu.activations._gelu_slope)(np.float32(np.nan)))
