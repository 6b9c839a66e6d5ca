"""The forms of a table's gradient: one sum, whatever adds it up."""

import functools
import itertools
import re

import hypothesis as hyp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.mesh import AbstractDevice
from jax.sharding import AbstractMesh, use_abstract_mesh

from aigc_jax import sharding
from aigc_jax.errors import BadConfig
from aigc_jax.layers import lookup as lookups
from aigc_jax.layers.lookup import GRADIENTS, lookup
from tests.sweep import sweep


@functools.partial(jax.jit, static_argnums=(2, 3))
def gradient(ids_BT, dy_BTD, V: int, form: str):
  """The table's gradient, (V, D), by way of the rule for `lookup`."""
  table_VD = jnp.zeros((V, dy_BTD.shape[-1]))
  _, backward = jax.vjp(
    lambda table: lookup(table, ids_BT, dy_BTD.dtype, form), table_VD
  )
  return backward(dy_BTD)[0]


def expected(ids_BT, dy_BTD, V: int):
  """In double precision: the sums, and those of the terms' sizes."""
  dy = np.asarray(dy_BTD, np.float64).reshape(-1, dy_BTD.shape[-1])
  total, sizes = np.zeros((2, V, dy.shape[-1]))
  np.add.at(total, np.ravel(ids_BT), dy)
  np.add.at(sizes, np.ravel(ids_BT), abs(dy))
  return total, sizes


def drawn(seed: int, shape, V: int, dtype=jnp.float32):
  """Ids with the frequencies of words, and gradients."""
  draw = np.random.default_rng(seed)
  shares = np.cumsum(1.0 / np.arange(1, V + 1))
  ids_BT = np.searchsorted(shares, draw.random(shape) * shares[-1])
  dy_BTD = draw.normal(size=(*shape, 6)).astype(dtype)
  return ids_BT.astype(np.int32), dy_BTD


# How many tokens share a row, and over how many tiles they lie.
IDS = {
  "of many rows": lambda n: np.random.default_rng(0).integers(0, 50, n),
  "of few rows": lambda n: np.random.default_rng(1).integers(0, 3, n),
  "of one row": lambda n: np.full(n, 7),
  "of the last row": lambda n: np.full(n, 49),
  "of each row once, turned round": lambda n: np.arange(n)[::-1] % 50,
  "of rows that fill tiles": lambda n: np.arange(n) // 8 % 50,
}


@pytest.mark.parametrize("form", GRADIENTS)
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint32, jnp.int8, jnp.uint8])
def test_ids_of_any_kind_add_where_there_is_a_row(form, dtype):
  ids = np.array([[1, 2, 2, 5, 9, 10, 100]], dtype)
  counts = [0, 1, 2, 0, 0, 1, 0, 0, 0, 1]
  ones_BTD = np.ones((1, 7, 1), np.float32)
  found = np.asarray(gradient(ids, ones_BTD, 10, form))
  assert found[:, 0].tolist() == counts
  if jnp.issubdtype(dtype, jnp.signedinteger):
    ids = np.array([[1, 2, 2, 5, 9, -1, -7]], dtype)
    found = np.asarray(gradient(ids, ones_BTD, 10, form))
    assert found[:, 0].tolist() == counts


@pytest.mark.parametrize(
  ("which", "n", "dtype"),
  sweep(
    itertools.product(IDS, [1, 7, 8, 48, 61], [jnp.float32, jnp.bfloat16]),
    ("of many rows", 61, jnp.bfloat16),
  ),
)
@pytest.mark.parametrize("form", list(GRADIENTS))
def test_every_form_gives_the_sums(monkeypatch, form, which, n, dtype):
  monkeypatch.setattr(lookups, "TILE", 8)
  monkeypatch.setattr(lookups, "ENTRIES", 16 * n)  # several pieces
  ids_BT = IDS[which](n).astype(np.int32)[None]
  dy_BTD = np.random.default_rng(n).normal(size=(1, n, 5)).astype(dtype)
  found = jax.jit(lambda *a: GRADIENTS[form](*a, 50))(ids_BT, dy_BTD)
  assert found.dtype == jnp.float32
  found = np.asarray(found)
  total, sizes = expected(ids_BT, dy_BTD, 50)
  assert np.all(abs(found - total) <= 1e-6 * sizes)


@functools.cache
def by_sorting(tile: int):
  """jitted (ids, gradients) -> the sums, in tiles of this length."""

  @jax.jit
  def sums(ids_BT, dy_BTD):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(lookups, "TILE", tile)
      return lookups.by_sorting(ids_BT, dy_BTD, 10)

  return sums


@pytest.mark.parametrize(
  ("tile", "length"),
  sweep(
    itertools.product([1, 2, 3, 5, 8, 9], [1, 2, 9, 17, 40]),
    (3, 17),
    (9, 2),
  ),
)
@hyp.given(st.data())
@hyp.settings(max_examples=25, deadline=None)
def test_sums_of_whole_numbers_are_exact_wherever_tiles_end(tile, length, data):
  some = st.lists(st.integers(0, 9), min_size=length, max_size=length)
  ids = data.draw(some)
  ids_BT = np.array(ids, np.int32)[None]
  dy_BTD = 1.0 + np.arange(2.0 * len(ids), dtype=np.float32).reshape(1, -1, 2)
  found = by_sorting(tile)(ids_BT, dy_BTD)
  np.testing.assert_array_equal(found, expected(ids_BT, dy_BTD, 10)[0])


@pytest.mark.parametrize("form", list(GRADIENTS))
def test_the_rule_of_lookup_takes_the_form(form):
  ids_BT, dy_BTD = drawn(0, (4, 96), 300)
  total, sizes = expected(ids_BT, dy_BTD, 300)
  found = np.asarray(gradient(ids_BT, dy_BTD, 300, form))
  assert np.all(abs(found - total) <= 1e-6 * sizes)


# Axes of the mesh over which batch, positions and table are cut.
MESHES = {
  "rows": dict(data=2, fsdp=2),
  "rows and the table": dict(fsdp=2, tensor=2),
  "rows, the table and positions": dict(data=2, tensor=2, sequence=2),
}


@pytest.mark.parametrize("cut", sweep(MESHES, "rows, the table and positions"))
@pytest.mark.parametrize("form", list(GRADIENTS))
def test_every_form_gives_the_sums_on_a_mesh(form, cut):
  sizes = dict.fromkeys(sharding.AXES, 1) | MESHES[cut]
  count = int(np.prod(list(sizes.values())))
  mesh = sharding.make_mesh(**sizes, devices=jax.devices()[:count])
  ids_BT, dy_BTD = drawn(1, (8, 32), 40)
  with jax.set_mesh(mesh):
    ids, dy = (
      jax.device_put(x, sharding.shardings(letters, x.shape, mesh))
      for x, letters in ((ids_BT, "BT"), (dy_BTD, "BTD"))
    )
    found = np.asarray(gradient(ids, dy, 40, form))
  total, terms = expected(ids_BT, dy_BTD, 40)
  assert np.all(abs(found - total) <= 2e-6 * terms)


def program_for(platform: str, V: int, **axes) -> str:
  """The gradient of a step on devices that are not here, before compiling."""
  sizes = dict.fromkeys(sharding.AXES, 1) | axes
  mesh = AbstractMesh(
    tuple(sizes.values()), sharding.AXES,
    abstract_device=AbstractDevice("described", None, platform),
  )  # fmt: skip
  ids_BT = jax.ShapeDtypeStruct((8, 256), jnp.int32)
  dy_BTD = jax.ShapeDtypeStruct((8, 256, 16), jnp.bfloat16)
  with use_abstract_mesh(mesh):
    f = functools.partial(gradient.__wrapped__, V=V, form="auto")
    traced = jax.jit(f).trace(ids_BT, dy_BTD)
    names = {"gpu": "cuda", "tpu": "tpu", "cpu": "cpu"}
    return traced.lower(lowering_platforms=(names[platform],)).as_text()


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_on_an_accelerator_no_two_tokens_add_to_one_place(platform):
  large = program_for(platform, 50_304)
  unique = re.findall(r"unique_indices = (\w+)", large)
  assert unique == ["true"] and "stablehlo.sort" in large
  for few in (
    program_for(platform, 300),
    program_for(platform, 5000, sequence=2),
  ):
    assert "scatter" not in few and "sort" not in few


def test_on_a_cpu_tokens_add_in_place():
  assert "scatter" in program_for("cpu", 50_304)


def test_a_wrong_form_is_refused_by_name():
  ids_BT, dy_BTD = drawn(2, (1, 4), 10)
  with pytest.raises(BadConfig, match="compute.embed_gradient 'sort' .*sorted"):
    gradient(ids_BT, dy_BTD, 10, "sort")
