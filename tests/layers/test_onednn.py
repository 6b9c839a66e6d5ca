"""What oneDNN multiplies is what the compiler multiplies."""

import functools
import math
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import run, sharding
from aigc_jax.errors import BadConfig
from aigc_jax.layers import products
from aigc_jax.layers.cpu import blocks, onednn
from aigc_jax.layers.visible import Visible
from tests.sweep import sweep
from tests.test_bench import mesh_of_one, tiny

pytestmark = pytest.mark.skipif(
  not onednn.usable("float32"), reason="this JAX or CPU has no oneDNN"
)
EQUATIONS = {
  "BTD,DNH->BTNH": ((2, 7, 5), (5, 3, 4)),
  "BTNH,NHD->BTD": ((2, 7, 3, 4), (3, 4, 5)),
  "BTD,VD->BTV": ((2, 7, 5), (13, 5)),
  "BTD,DF->BTF": ((2, 7, 5), (5, 11)),
  "EBD,EDF->EBF": ((3, 7, 5), (3, 5, 11)),  # E in all three
}
LYING = [
  f"{a},{b}->{out}"
  for a in ("bemk", "bekm", "bmek", "bkem")
  for b in ("bekn", "benk", "bken", "bnek")
  for out in ("bemn", "bmen", "bnem")
]


@pytest.fixture(autouse=True)
def read_for_this_cpu(monkeypatch):
  """Laws are of the CPUs that oneDNN's rule was read for, wherever they run."""
  monkeypatch.setattr(onednn, "WIDER", "")
  monkeypatch.setattr(onednn, "_cache", lambda: onednn.CACHE)


def draw(seed, shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def calls(f, *args) -> int:
  return jax.jit(f).lower(*args).as_text().count(onednn.CALL)


@pytest.mark.parametrize(
  "equation",
  sweep(LYING, *(x for i, x in enumerate(LYING) if i % 14 == 0)),
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_operands_are_multiplied_as_they_lie(equation, dtype):
  if not onednn.usable(dtype):
    pytest.skip("not on this CPU")
  sizes = {"e": 3, "b": 2, "m": 5, "k": 7, "n": 4}
  (a, b), _ = sharding.split(equation)
  x, y = (
    draw(i, (6, *(sizes[c] for c in s))).astype(dtype)
    for i, s in enumerate((a, b))
  )
  want = np.stack(
    [
      np.einsum(equation, *(np.asarray(v[i], np.float64) for v in (x, y)))
      for i in range(len(x))
    ]
  )
  each = functools.partial(onednn.einsum, equation)
  for f in (
    jax.vmap(each),
    lambda x, y: jax.lax.map(lambda a: each(*a), (x, y)),
    lambda x, y: jnp.stack([each(*a) for a in zip(x, y, strict=True)]),
  ):
    lowered = jax.jit(f).lower(x, y)
    assert lowered.as_text().count(onednn.CALL) > 0
    found = lowered.compile()(x, y)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  "equation", sweep(EQUATIONS, "BTD,DNH->BTNH", "EBD,EDF->EBF")
)
def test_a_product_and_its_gradients_are_three_calls(equation):
  x, w = (draw(i, s) for i, s in enumerate(EQUATIONS[equation]))

  def both(x, w):
    y, back = jax.vjp(lambda x, w: products.product(equation, x, w), x, w)
    return y, *back(jnp.cos(y))

  def preferred(x, w):
    with onednn.preferred():
      return both(x, w)

  mesh = mesh_of_one()
  with jax.set_mesh(mesh):
    assert calls(preferred, x, w) == 3
    assert calls(both, x, w) == 0
    for a, b in zip(jax.jit(preferred)(x, w), jax.jit(both)(x, w), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def attention(B, T, N, H):
  """(its value and gradients by blocks, what they are taken of)."""

  def value(q, k, v, dy):
    visible = Visible(causal=False)
    y = blocks.attend(q, k, v, visible, scale=H**-0.5, softcap=0.0)
    return jnp.vdot(y, dy)

  def both(*x):
    with onednn.preferred():
      return jax.value_and_grad(value, argnums=(0, 1, 2))(*x)

  return both, [draw(i, (B, T, N, H)) for i in range(4)]


@pytest.mark.parametrize("sizes", [(2, 128, 3, 16), (2, 512, 3, 16)])
def test_attention_by_it_is_in_blocks_that_threads_do_not_share(sizes):
  f, x = attention(*sizes)
  with jax.set_mesh(mesh_of_one()):
    text = jax.jit(f).lower(*x).as_text()
  found = [
    [math.prod(map(int, n.split("x")[2:])) for n in shapes]
    for line in text.splitlines()
    if onednn.CALL in line and (shapes := re.findall("<([0-9x]+)xf32>", line))
  ]
  assert found
  assert all(4 * sum(numbers) <= 2**19 for numbers in found)


def test_products_that_threads_would_share_are_not_several_in_one_call():
  x, y = draw(0, (2, 512, 16)), draw(1, (2, 16, 512))
  assert onednn.einsum("BTD,BDF->BTF", x, y) is None
  # Whatever makes several of one, as `jax.vmap`, calls for them one by one.
  found = jax.jit(jax.vmap(functools.partial(onednn.einsum, "TD,DF->TF")))
  text = found.lower(x, y).as_text()
  (call,) = (line for line in text.splitlines() if onednn.CALL in line)
  assert call.endswith("-> tensor<512x512xf32>")
  np.testing.assert_allclose(found(x, y), x @ y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("T, H", [(512, 128), (2048, 64), (3, 16), (64, 2)])
def test_attention_that_threads_would_share_is_left_to_the_compiler(T, H):
  f, x = attention(2, T, 3, H)
  with jax.set_mesh(mesh_of_one()):
    assert calls(f, *x) == 0


ATTENDS = """
import jax
from tests.layers.test_onednn import attention, mesh_of_one
f, x = attention(4, 512, 4, 32)
with jax.set_mesh(mesh_of_one()):
  f = jax.jit(f)
  for _ in range(100):
    jax.block_until_ready(f(*x))
"""


@pytest.mark.slow
def test_attention_to_many_positions_never_stands_still():
  # As users run it, not compiled as tests are: it stood still after some ten.
  environ = dict(os.environ, XLA_FLAGS="")
  script = [sys.executable, "-c", ATTENDS]
  subprocess.run(script, env=environ, timeout=300, check=True)


@pytest.mark.parametrize(
  "change", [{"WIDER": "fpu"}, {"_cache": lambda: 0}], ids=["wider", "unknown"]
)
def test_on_another_cpu_no_product_is_one_of_several(change, monkeypatch):
  monkeypatch.setattr(onednn, "_instructions", lambda: {"fpu"})
  for name, value in change.items():
    monkeypatch.setattr(onednn, name, value)
  x, y = draw(0, (2, 8, 16)), draw(1, (2, 16, 8))
  assert onednn.einsum("BTD,BDF->BTF", x, y) is None
  assert onednn.einsum("TD,DF->TF", x[0], y[0]) is not None
  f, given = attention(2, 128, 3, 16)
  with jax.set_mesh(mesh_of_one()):
    assert calls(f, *given) == 0


def test_what_is_no_product_of_two_matrices_is_left_to_the_compiler():
  x = draw(0, (3, 7, 5))
  assert onednn.einsum("BDE,EDF->BFE", x, draw(2, (5, 7, 2))) is None
  assert onednn.einsum("BTD,DBF->TF", x, draw(2, (5, 3, 2))) is None
  assert onednn.einsum("BTD,DF->TBF", x, draw(2, (5, 2))) is None
  assert onednn.einsum("BTD,DF->TF", x, draw(2, (5, 2))) is None


@pytest.mark.slow
@pytest.mark.parametrize("kv_heads", sweep([1, 2, 4], 2))
@pytest.mark.parametrize(
  ("causal", "window"),
  sweep([(True, None), (True, 9), (False, None)], (True, 9), (False, None)),
)
@pytest.mark.parametrize("called", [1, blocks.CALLED])  # by rows, at once
@pytest.mark.parametrize(
  "softcap, kept",
  sweep([(0.0, blocks.KEPT), (0.0, 0), (5.0, blocks.KEPT)], (5.0, blocks.KEPT)),
)
def test_attention_and_its_gradients_are_those_of_the_compiler(
  kv_heads, causal, window, called, softcap, kept, monkeypatch
):
  monkeypatch.setattr(blocks, "CALLED", called)
  monkeypatch.setattr(blocks, "KEPT", kept)
  segments = jnp.repeat(jnp.array([[0, 1], [0, 0], [3, 3], [1, 2]]), 12, axis=1)
  q = draw(0, (4, 24, 4, 8))
  k, v = (draw(i, (4, 24, kv_heads, 8)) for i in (1, 2))

  def grads(q, k, v):
    def loss(q, k, v):
      visible = Visible(
        causal, window, segments_BT=segments, segments_BS=segments
      )
      y = blocks.attend(q, k, v, visible, scale=0.3, softcap=softcap, size=7)
      return jnp.sum(jnp.sin(y)), y

    (_, y), found = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
    return y, *found

  def preferred(q, k, v):
    with onednn.preferred():
      return grads(q, k, v)

  with jax.set_mesh(mesh_of_one()):
    assert calls(preferred, q, k, v) > 0
    for a, b in zip(
      jax.jit(preferred)(q, k, v), jax.jit(grads)(q, k, v), strict=True
    ):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_step_twice_from_one_state_gives_the_same_bits():
  mesh = mesh_of_one()
  with jax.set_mesh(mesh):
    r = run.build(
      tiny({"compute.library": "onednn", "compute.kernel": "blocks"}), mesh
    )
    advance, found = r.advance(), []
    batch = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), r.batch)
    for _ in range(2):
      state, metrics = advance(r.init(), batch)
      found.append(jax.tree.map(np.asarray, (state.params, metrics)))
  jax.tree.map(np.testing.assert_array_equal, *found)


def test_it_is_refused_where_it_cannot_be(monkeypatch):
  config = tiny({"compute.library": "onednn", "mesh.fsdp": 2})
  mesh = sharding.make_mesh(**config["mesh"], devices=jax.devices()[:2])
  with jax.set_mesh(mesh):
    r = run.build(config, mesh)
    with pytest.raises(BadConfig, match="single CPU device.*library=xla"):
      r.advance()
  monkeypatch.setattr(onednn, "usable", lambda dtype: False)
  mesh = mesh_of_one()
  with jax.set_mesh(mesh):
    r = run.build(tiny({"compute.library": "onednn"}), mesh)
    with pytest.raises(BadConfig, match="no oneDNN.*float32.*library=xla"):
      r.advance()


def test_a_build_without_it_is_told_apart(monkeypatch):
  monkeypatch.setattr(onednn, "CALL", "__onednn$nothing")
  assert not onednn.usable.__wrapped__("float32")


def test_bfloat16_is_not_tried_on_a_cpu_that_lacks_it(monkeypatch):
  """The process would end: there is no error to catch."""
  monkeypatch.setattr(onednn, "_instructions", lambda: {"avx2", "fma"})

  def tried(*args):
    raise SystemExit("it was tried")

  monkeypatch.setattr(onednn, "einsum", tried)
  assert not onednn.usable.__wrapped__("bfloat16")
