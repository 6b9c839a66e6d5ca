"""Products in 8 bits: what rounding may do, and what it must never hide."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from aigc_jax import run, sharding
from aigc_jax.errors import BadConfig
from aigc_jax.hf.settings import canonical
from aigc_jax.layers import fp8, products
from configs import quickstart
from tests import tiny
from tests.sweep import sweep

# format: (largest, half a step relative to a value, half the smallest step)
FORMATS = {
  "E4M3": (fp8.FORWARD, 448.0, 2.0**-4, 2.0**-10),
  "E5M2": (fp8.GRADIENT, 57344.0, 2.0**-3, 2.0**-17),
}
EQUATIONS = {
  "BTD,DNH->BTNH": ((2, 7, 24), (24, 3, 4)),
  "BTNH,NHD->BTD": ((2, 7, 3, 8), (3, 8, 5)),
  "BTD,DF->BTF": ((2, 7, 24), (24, 11)),
  "EBD,EDF->EBF": ((3, 7, 24), (3, 24, 11)),  # E in all three
}


def draw(seed, shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


quantised = jax.jit(fp8.quantise, static_argnums=1)


def opened(scaled):
  """What it stands for."""
  return np.asarray(scaled.small, np.float32) * np.asarray(scaled.scale)


@pytest.mark.parametrize("name", list(FORMATS))
@pytest.mark.parametrize("size", [1e-20, 1e-3, 1.0, 1e6, 3e38])
def test_each_value_is_off_by_half_a_step_and_the_largest_by_none(name, size):
  kind, most, relative, absolute = FORMATS[name]
  x = np.asarray(draw(0, (64, 65))) ** 5  # of many magnitudes
  x = x / np.max(np.abs(x)) * np.float32(size)
  found = quantised(x, kind)
  assert found.small.dtype == kind
  assert np.max(np.abs(np.asarray(found.small, np.float32))) == most
  y = opened(found)
  top = np.argmax(np.abs(x))
  np.testing.assert_allclose(y.flat[top], x.flat[top], rtol=1e-6)
  bound = np.maximum(relative * np.abs(x), absolute * found.scale)
  assert np.all(np.abs(y - x) <= bound * (1 + 1e-5))


def test_a_gradient_may_be_of_more_magnitudes_than_a_weight():
  x = np.array([1.0, 2.0**-21], np.float32)
  assert opened(quantised(x, fp8.GRADIENT))[1] != 0
  assert opened(quantised(x, fp8.FORWARD))[1] == 0


def passes(equation, x, w):
  """The product and its gradients, the cotangent a function of it."""
  y, back = jax.vjp(functools.partial(products.product_fp8, equation), x, w)
  return y, *back(jnp.cos(y))


@functools.cache
def compiled(equation):
  """passes and those of einsum, whose cotangent is given: compiled once."""

  def einsum(x, w, dy):
    y, back = jax.vjp(functools.partial(jnp.einsum, equation), x, w)
    return y, *back(dy)

  return jax.jit(functools.partial(passes, equation)), jax.jit(einsum)


@pytest.mark.parametrize("equation", sweep(EQUATIONS, "BTD,DNH->BTNH"))
def test_a_product_is_that_of_the_rounded_operands_forward_and_back(equation):
  x, w = (draw(i, s) for i, s in enumerate(EQUATIONS[equation]))
  ours, einsum = compiled(equation)
  y, dx, dw = ours(x, w)
  small = [opened(quantised(v, fp8.FORWARD)) for v in (x, w)]
  dz = opened(quantised(np.cos(y), fp8.GRADIENT))
  for a, b in zip((y, dx, dw), einsum(*small, dz), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def off(a, b):
  """How far a is from b, of b's norm."""
  return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize(
  "equation", sweep(EQUATIONS, "BTD,DNH->BTNH", "EBD,EDF->EBF")
)
def test_a_product_and_its_gradients_are_near_those_in_float32(equation):
  x, w = (draw(i, s) for i, s in enumerate(EQUATIONS[equation]))
  ours, einsum = compiled(equation)
  y, dx, dw = ours(x, w)
  z, dx_32, dw_32 = einsum(x, w, np.cos(y))
  # Two operands of 2**-4, or one of 2**-4 and one of 2**-3, at the very most.
  assert 0 < off(y, z) < 2 * 2.0**-4
  assert 0 < off(dx, dx_32) < 2.0**-4 + 2.0**-3
  assert 0 < off(dw, dw_32) < 2.0**-4 + 2.0**-3


def test_what_is_kept_for_the_gradients_has_8_bits():
  equation = "BTD,DF->BTF"
  x, w = (draw(i, s) for i, s in enumerate(EQUATIONS[equation]))
  product = functools.partial(products.product_fp8, equation)
  back = jax.jit(lambda x, w: jax.vjp(product, x, w)[1])(x, w)
  kept = [v for v in jax.tree.leaves(back) if v.size > 1]
  assert sorted(v.shape for v in kept) == sorted((x.shape, w.shape))
  assert all(v.dtype == fp8.FORWARD for v in kept)


def test_nothing_times_something_is_nothing():
  equation = "BTD,DF->BTF"
  x, w = (draw(i, s) for i, s in enumerate(EQUATIONS[equation]))
  y, dx, dw = jax.device_get(compiled(equation)[0](np.zeros_like(x), w))
  assert np.all(y == 0) and np.all(dw == 0)
  assert np.all(np.isfinite(dx)) and np.any(dx != 0)


@functools.cache
def with_cotangent(equation):
  def f(x, w, dy):
    product = functools.partial(products.product_fp8, equation)
    y, back = jax.vjp(product, x, w)
    return y, *back(dy)

  return jax.jit(f)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_in_all_of_a_product(bad):
  equation = "BTD,DF->BTF"
  x, w = (draw(i, s) for i, s in enumerate(EQUATIONS[equation]))
  y, *_ = with_cotangent(equation)(x, w, np.zeros((2, 7, 11), np.float32))
  spoilt, dy = [x.copy(), w.copy()], np.array(y)
  spoilt[0][1, 2, 3] = spoilt[1][1, 2] = dy[1, 2, 3] = bad
  for operands in ((spoilt[0], w), (x, spoilt[1])):
    assert not np.any(np.isfinite(with_cotangent(equation)(*operands, y)[0]))
  for gradient in with_cotangent(equation)(x, w, dy)[1:]:
    assert not np.any(np.isfinite(gradient))


def test_eight_devices_have_one_scale():
  equation = "BTD,DF->BTF"
  x, w = np.float32(3) * draw(0, (8, 4, 16)), draw(1, (16, 24))
  mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  place = functools.partial(NamedSharding, mesh)
  cut = (
    jax.device_put(x, place(PartitionSpec("x"))),
    jax.device_put(w, place(PartitionSpec(None, "x"))),
  )
  f, _ = compiled(equation)
  for a, b in zip(f(*cut), f(x, w), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  for a, b in zip(
    quantised(cut[0], fp8.FORWARD), quantised(x, fp8.FORWARD), strict=True
  ):
    np.testing.assert_array_equal(
      np.asarray(a, np.float32), np.asarray(b, np.float32)
    )


def small(**how):
  config = quickstart.get_config()
  config.data.update(batch=4, length=16)
  tiny.put(config, tiny.LLAMA, layers=2, unroll=None, **how)
  config.optim.kind = "adamw"  # Muon has products of its own
  config.mesh.fsdp = 1
  return run.read(config)


def mesh_of_one():
  sizes = dict.fromkeys(sharding.AXES, 1)
  return sharding.make_mesh(**sizes, devices=jax.devices()[:1])


@pytest.mark.slow
@pytest.mark.parametrize(
  "fused, in_a_layer", sweep([(True, 4), (False, 7)], (True, 4))
)
def test_products_with_weights_of_the_blocks_are_in_8_bits_and_no_others(
  fused, in_a_layer
):
  mesh = mesh_of_one()
  counts = {}
  for kind in ("plain", "fp8"):
    config = small(products=kind, fuse_projections=fused)
    with jax.set_mesh(mesh):
      r = run.build(config, mesh)
      text = r.advance().lower(r.state, r.batch).as_text()
    lines = [x for x in text.splitlines() if "stablehlo.dot_general" in x]
    counts[kind] = len(lines), sum("xf8E" in x for x in lines)
  assert counts["plain"][1] == 0
  assert counts["fp8"] == (counts["plain"][0], 3 * 2 * in_a_layer)


@pytest.mark.slow
def test_with_products_of_bfloat16_every_product_of_a_step_is_one():
  mesh = mesh_of_one()
  with jax.set_mesh(mesh):
    r = run.build(small(products="bf16", kernel="blocks"), mesh)
    text = r.advance().lower(r.state, r.batch).as_text()
  lines = [x for x in text.splitlines() if "stablehlo.dot_general" in x]
  operands = [x[x.index(" : (") : x.index(" -> ")] for x in lines]
  # Sums of norms and attention are taken as products with a vector.
  vector = re.compile(r"tensor<\d+xf32>\)|\(tensor<1x\d+xf32>")
  products = [x for x in operands if not vector.search(x + ")")]
  assert all(x.count("bf16") == 2 for x in products)
  # Weights of 2 layers, their attention, the head.
  assert len(products) == 3 * (2 * 4) + 2 * (2 + 5) + 3


@pytest.mark.slow
def test_a_weight_that_is_not_finite_reaches_the_gate_of_the_step():
  mesh = mesh_of_one()
  with jax.set_mesh(mesh):
    r = run.build(small(products="fp8"), mesh)
    state = r.init()
    up = state.params["stack"]["mlp"]["up"]
    up["w"] = up["w"].at[1, 2, 3].set(np.nan)
    batch = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), r.batch)
    after, metrics = r.advance()(state, batch)
  assert not np.isfinite(metrics["train/loss"])
  assert int(after.skipped) == 1


def test_an_unknown_kind_of_products_is_refused_by_name():
  with pytest.raises(
    BadConfig, match=r"compute\.products 'fp9' is unknown; did you mean 'fp8'\?"
  ):
    run.model_of(small(products="fp9"))


def test_how_products_are_made_is_not_what_a_model_is():
  a, b = (small(products=p)["model"] for p in ("plain", "fp8"))
  assert canonical(a) == canonical(b)
