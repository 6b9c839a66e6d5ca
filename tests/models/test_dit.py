"""DiT: published counts, the null class, the identity that it begins as."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from aigc_jax import errors, tree
from aigc_jax.models.condition import TIMES, WAVES, waves_of
from aigc_jax.models.dit import dit
from aigc_jax.presets import dit as presets
from tests import diffusion
from tests.sweep import sweep

PUBLISHED = {
  "s2": 32_865_056,
  "b2": 130_315_808,
  "l2": 457_840_672,
  "xl2": 674_834_720,
}


@functools.cache
def fresh():
  """Variables as a run begins with them."""
  model = dit(**diffusion.DIT)
  example = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), model.example())
  return nn.unbox(jax.jit(model.init)(jax.random.key(0), example))


@functools.cache
def predictor():
  model = dit(**diffusion.DIT)
  return jax.jit(lambda params, batch: model.apply({"params": params}, batch))


def given(rows: int, labels=None, time=0.5):
  batch = diffusion.batch_of(rows) | dict(time=jnp.full(rows, time))
  return batch | ({} if labels is None else dict(labels=jnp.asarray(labels)))


@pytest.mark.parametrize("name", sweep(PUBLISHED, "s2"))
def test_counts_are_the_published_ones(name):
  """For latents of 32 x 32 x 4, 1,001 labels, and a variance that is learnt."""
  keys = presets.get_config(name).model.to_dict()
  assert keys.pop("kind") == "dit"
  model = dit(**keys | dict(classes=1000, channels=4, sigma=True))
  shapes = jax.eval_shape(model.init, jax.random.key(0), model.example())
  assert tree.count(nn.unbox(shapes["params"])) == PUBLISHED[name]


@pytest.mark.slow
def test_it_begins_with_predicting_nothing():
  assert not np.any(predictor()(fresh()["params"], given(1)))


@pytest.mark.slow
def test_a_fresh_block_is_the_identity():
  params = fresh()["params"]["stack"]
  for name in ("w", "bias"):
    assert not np.any(params["modulation"]["projection"][name])


def predicted(label: int, time=0.5):
  params = diffusion.dit_params()
  return np.asarray(predictor()(params, given(1, [label], time)))[0]


@pytest.mark.slow
def test_the_null_class_is_the_one_behind_the_labels():
  """Not the thousandth: a table of 5 labels has its null class at 5."""
  assert diffusion.dit_params()["condition"]["embed_label"]["table"].shape == (
    6,
    24,
  )
  none, other, last = (predicted(k) for k in (5, 2**31 - 1, 4))
  np.testing.assert_array_equal(none, other)
  assert np.abs(none - last).max() > 1e-3


@pytest.mark.slow
def test_labels_and_times_matter():
  a, b = predicted(0), predicted(1)
  assert np.abs(a - b).max() > 1e-3
  assert np.abs(a - predicted(0, time=0.51)).max() > 1e-4


def test_waves_are_those_of_the_published_code():
  t = np.array([0.0, 0.25, 0.999])
  half = WAVES // 2
  rates = np.exp(-np.log(10_000) * np.arange(half) / half)
  exact = TIMES * t[:, None] * rates
  exact = np.concatenate([np.cos(exact), np.sin(exact)], axis=1)
  np.testing.assert_allclose(waves_of(jnp.asarray(t)), exact, atol=2e-4)


@pytest.mark.slow
def test_pixels_come_back_where_they_were_read():
  """A prediction's patch lies where the patch lies that it is of."""

  def by_itself(path, x):
    return 0 * x if "attention/out" in tree.name_of(path) else x

  params = jax.tree_util.tree_map_with_path(by_itself, diffusion.dit_params())
  batch = given(1)
  other = batch | dict(images=batch["images"].at[0, 3, 4].add(1.0))
  a, b = (predictor()(params, some) for some in (batch, other))
  moved = np.abs(np.asarray(a - b))[0, :, :, 0]
  assert moved[2:4, 4:6].min() > 0
  moved[2:4, 4:6] = 0
  assert moved.max() < 1e-6


@pytest.mark.parametrize(
  ("change", "word"),
  [
    (dict(patch=4), "4 and 8"),
    (dict(heads=5), "divisible by model.heads"),
    (dict(dim=18, heads=3), "by 4"),
    (dict(classes=-1), "classes"),
    (dict(dtype="float16"), "bfloat16"),
    (dict(products="fp4"), "products"),
  ],
)
def test_parts_that_cannot_go_together_are_refused(change, word):
  with pytest.raises(errors.BadConfig, match=word):
    dit(**diffusion.DIT | change)
