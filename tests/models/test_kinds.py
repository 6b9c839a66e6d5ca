"""Laws that the models of every kind obey."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from aigc_jax import optim, sharding, tree
from aigc_jax.objectives import OBJECTIVES
from tests import kinds, tiny
from tests.sweep import sweep

NAMES = sorted(kinds.KINDS)
# Of these what is said of a row depends on the others of its batch.
COUPLED = [
  name
  for name, kind in kinds.KINDS.items()
  if hasattr(OBJECTIVES[kind.objective["kind"]], "couples_rows")
]
# Each of these differs from another in its own small part.
LONG = {
  "vq by gradient", "vq of blocks", "fsq", "unet", "unet of captions",
}  # fmt: skip
FEW = [name for name in NAMES if name not in LONG]
# Laws that cost a program each are held for these; for all of them with the
# slow tests. What every kind is held to by default costs it two programs.
SOME = ["vq"]
STACKED = [  # layers, which may be computed in several ways
  name for name in NAMES if "unroll" in kinds.part_of(name)
]
SMOOTH = [name for name in NAMES if kinds.KINDS[name].smooth]
CLOSE = dict(rtol=2e-4, atol=2e-5)


def assert_close(a, b, **close):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, **close or CLOSE), a, b
  )


@pytest.mark.parametrize("name", sweep(NAMES, "encoder of pairs"))
def test_its_example_is_enough_to_initialise_it(name):
  model, batch = kinds.build(name), kinds.KINDS[name].batch(2, 6)
  shapes = [
    jax.tree.map(
      lambda x: (x.shape, x.dtype),
      nn.unbox(jax.eval_shape(model.init, jax.random.key(0), some))["params"],
    )
    for some in (model.example(), batch)
  ]
  assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", sweep(NAMES, "vq by gradient"))
def test_weights_of_products_and_heads_decay_and_nothing_else(name):
  model = kinds.build(name)
  found = jax.eval_shape(model.init, jax.random.key(0), model.example())
  params = nn.unbox(found)["params"]
  for path, treated in optim.treatments(params, (), 0.1).items():
    decays = path.endswith(("/w", "head/table"))
    assert (treated.weight_decay > 0) == decays, path


EACH = [dict(unroll=None), dict(remat="full"), dict(kernel="chunked")]
ALL = dict(unroll=None, remat="dots", kernel="chunked")


@pytest.mark.slow
@pytest.mark.parametrize("change", [ALL, *EACH])
@pytest.mark.parametrize("name", STACKED)
def test_how_it_is_computed_changes_neither_value_nor_gradient(name, change):
  params, batch = kinds.params_of(name), kinds.KINDS[name].batch(2, 7)
  (a, da), (b, db) = (
    kinds.gradient_of(name, **change)(params, batch) for change in ({}, change)
  )
  np.testing.assert_allclose(a, b, rtol=1e-5)
  assert_close(da, db)


@pytest.mark.parametrize(
  "name", sweep([n for n in NAMES if n not in COUPLED], *SOME)
)
def test_parts_of_a_batch_add_up_to_the_whole(name):
  params, batch = kinds.params_of(name), kinds.KINDS[name].batch(4, 7)
  score = jax.jit(kinds.score_of(name))
  parts = [
    score(params, {key: x[i : i + 2] for key, x in batch.items()})
    for i in (0, 2)
  ]
  assert_close(score(params, batch), jax.tree.map(jnp.add, *parts), rtol=1e-5)


@pytest.mark.parametrize("name", sweep(NAMES, *SOME))
def test_every_parameter_has_a_finite_gradient_that_is_not_zero(name):
  params, batch = kinds.params_of(name), kinds.KINDS[name].batch(8, 6)
  found = kinds.gradient_of(name)(params, batch)[1]
  trained, still = tree.split(found, kinds.KINDS[name].frozen)
  for x in jax.tree.leaves(trained):
    assert np.isfinite(x).all() and np.any(x != 0)
  assert not any(np.any(x) for x in jax.tree.leaves(still))


@pytest.mark.slow  # a decoder is held to it in test_laws.py
@pytest.mark.parametrize("name", SMOOTH)
def test_bfloat16_stays_near_float32(name):
  params, batch = kinds.params_of(name), kinds.KINDS[name].batch(4, 7)
  a, b = (
    jax.jit(kinds.score_of(name, **change))(params, batch)["loss"].value()
    for change in ({}, dict(dtype="bfloat16"))
  )
  assert b.dtype == jnp.float32
  assert abs(a - b) < 0.05 * abs(a)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in FEW if n in STACKED])
def test_eight_devices_and_another_way_give_the_loss_and_gradient_of_one(name):
  assert_same_on((2, 2, 2), name, ALL)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 4, 2)])
@pytest.mark.parametrize("name", NAMES)
def test_eight_devices_give_the_loss_and_gradient_of_one(name, shape):
  assert_same_on(shape, name, {})


def assert_same_on(shape, name, change):
  data, fsdp, tensor = shape
  mesh = sharding.make_mesh(
    data=data, fsdp=fsdp, expert=1, tensor=tensor, sequence=1, pipeline=1
  )
  params, batch = kinds.params_of(name), kinds.KINDS[name].batch(8, 6)
  one, d_one = kinds.gradient_of(name)(params, batch)
  abstract = jax.eval_shape(kinds.build(name).init, jax.random.key(0), batch)
  laid = sharding.of_tree(abstract["params"], mesh)
  letters = kinds.KINDS[name].letters
  cut = {
    k: jax.device_put(
      x, sharding.shardings(letters.get(k, "BT"), x.shape, mesh)
    )
    for k, x in batch.items()
  }
  with jax.set_mesh(mesh):
    f = jax.jit(kinds.gradient_of(name, **change).__wrapped__)
    many, d_many = f(jax.device_put(params, laid), cut)
  np.testing.assert_allclose(one, many, rtol=1e-5)
  assert_close(d_one, jax.device_get(d_many), rtol=1e-3, atol=1e-4)


def test_all_sizes_of_a_tiny_model_differ():
  keys = ("vocab", "layers", "dim", "heads", "mlp_dim", "position_length")
  keys += tuple(f"image_{key}" for key in keys)
  keys += tuple(f"text_{key}" for key in keys) + ("text_length",)
  for name in NAMES:
    model = kinds.part_of(name)
    sizes = [model[key] for key in keys if model.get(key)]
    assert len(set(sizes)) == len(sizes), name
  assert tiny.LLAMA["kv_heads"] != tiny.LLAMA["heads"]
