"""U-Net: published counts, another library's numbers, what is refused."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from aigc_jax import errors
from aigc_jax.models.unet import unet
from aigc_jax.sampling.images import Draws
from tests.golden import written
from tests.models import unets
from tests.sweep import sweep

GOLDEN = pathlib.Path(__file__).parent / "golden" / "unets.json"
# Of google/ddpm-cifar10-32; and that of the 64 x 64 model of arXiv:2105.05233,
# table 11 (296M), as diffusers builds it with a null class.
PUBLISHED = {"ddpm": 35_746_307, "adm64": 295_905_222}


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_the_published_ones(name):
  assert written.count_of(f"unet:{name}") == PUBLISHED[name]


def given(**changes) -> dict:
  return dict(
    images=jnp.asarray(unets.images()),
    time=jnp.asarray(unets.TIMES),
    labels=jnp.asarray(unets.LABELS),
  ) | {k: jnp.asarray(v) for k, v in changes.items()}


@functools.cache
def predictor(style: str):
  model, params = unet(**unets.STYLES[style]), unets.params_of(style)
  return jax.jit(lambda batch: model.apply({"params": params}, batch))


@pytest.mark.slow
@pytest.mark.parametrize("style", sweep(unets.STYLES, "ddpm"))
def test_predictions_are_those_of_diffusers(style):
  """With the same weights: tests/models/make_unet_golden.py."""
  exact = json.loads(GOLDEN.read_text())[style]
  np.testing.assert_allclose(predictor(style)(given()), exact, atol=5e-6)


@pytest.mark.slow
def test_it_begins_with_predicting_nothing():
  model = unet(**unets.STYLES["adm"])
  assert isinstance(model, Draws) and model.noise == (8, 8, 1)
  example = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), model.example())
  fresh = jax.jit(model.init)(jax.random.key(0), example)
  assert not np.any(jax.jit(model.apply)(nn.unbox(fresh), given()))


@pytest.mark.slow
def test_whatever_is_beyond_the_labels_is_none_and_a_label_is_something():
  said = predictor("adm")
  none, other = (said(given(labels=[1, k])) for k in (3, 2**31 - 1))
  np.testing.assert_array_equal(none, other)
  assert np.abs(none - said(given(labels=[1, 2])))[1].max() > 1e-3


def test_a_model_without_labels_reads_none():
  model = unet(**unets.STYLES["ddpm"])
  assert set(model.example()) == {"images", "time"}


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_no_gradient(remat):
  params, found = unets.params_of("adm"), []
  for change in ({}, dict(remat=remat)):
    model = unet(**unets.STYLES["adm"] | change)
    loss = lambda p, m=model: jnp.sum(m.apply({"params": p}, given()) ** 2)  # noqa: E731
    found.append(jax.jit(jax.grad(loss))(params))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), *found
  )


@pytest.mark.parametrize(
  ("change", "word"),
  [
    (dict(widths=(8, 10)), r"model.widths\[1\]=10.*groups=4"),
    (dict(widths=()), "at least one stage"),
    (dict(image_size=9, attention=()), "a multiple of 2"),
    (dict(attention=(3,)), r"3 rows; they have 8, 4: such as attention=\(4,\)"),
    (dict(head_dim=5), "head_dim=5"),
    (dict(classes=-1), "classes"),
    (dict(resample="pool"), "convolution"),
    (dict(remat="some"), "full"),
    (dict(dropout=1.0), "dropout"),
    (dict(text_dim=8), "model.vocab is None"),
    (dict(vocab=9, text_length=4, text_layers=1, text_dim=8, text_heads=2),
     "text_end=None"),
    (dict(vocab=9, text_end=8), "text_length"),
    (dict(vocab=9, classes=3), "model.classes=3 and model.vocab=9"),
  ],
)  # fmt: skip
def test_parts_that_cannot_go_together_are_refused(change, word):
  with pytest.raises(errors.BadConfig, match=word):
    unet(**unets.STYLES["ddpm"] | change)
