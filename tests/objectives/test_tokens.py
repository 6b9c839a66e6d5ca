"""The cross entropy in pieces, against what optax makes of all the logits."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aigc_jax.errors import BadConfig
from aigc_jax.layers.readout import Readout
from aigc_jax.objectives import masked, tokens
from tests.sweep import slow


@pytest.mark.parametrize("by_index", [True, False])
@pytest.mark.parametrize("softcap", [slow(0.0), 2.0])
def test_smoothed_labels_are_those_of_the_dense_loss(
  monkeypatch, by_index, softcap
):
  module = importlib.import_module("aigc_jax.objectives.tokens")
  monkeypatch.setattr(module, "_by_index", lambda: by_index)
  draw = np.random.default_rng(0)
  x, table, bias = (
    draw.normal(size=shape).astype(np.float32)
    for shape in ((2, 7, 5), (11, 5), (11,))
  )
  batch = {
    "targets": draw.integers(0, 11, (2, 7)),
    "weights": np.arange(14, dtype=np.float32).reshape(2, 7) % 3,
  }

  def readout(x, table, bias):
    return Readout(x, table, softcap, bias)

  def chunked(*args):
    means = tokens(
      lambda _: readout(*args), batch, z_loss=0.0, chunk=4, label_smoothing=0.1
    )
    return means["loss"].sum, means["nll"].sum

  def dense(*args):
    labels = jax.nn.one_hot(batch["targets"], 11)
    logits = readout(*args).logits()
    loss = optax.softmax_cross_entropy(logits, optax.smooth_labels(labels, 0.1))
    nll = optax.softmax_cross_entropy(logits, labels)
    return tuple(jnp.sum(y * batch["weights"]) for y in (loss, nll))

  every = dict(argnums=(0, 1, 2), has_aux=True)
  a, b = (
    jax.jit(jax.value_and_grad(f, **every))(x, table, bias)
    for f in (chunked, dense)
  )
  for one, other in zip(*map(jax.tree.leaves, (a, b)), strict=True):
    np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)
  # Without its gradient the value comes from another code path.
  np.testing.assert_allclose(jax.jit(chunked)(x, table, bias), b[0], rtol=1e-5)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_what_is_no_probability_is_refused(smoothing):
  with pytest.raises(BadConfig, match="label_smoothing"):
    tokens(None, {}, z_loss=0.0, chunk=None, label_smoothing=smoothing)


def measured(readout, batch, **how):
  return jax.jit(lambda r, b: masked(lambda _: r, b, **how))(readout, batch)


@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_guess_among_equals_is_the_first_of_them(value, chunk):
  """Else a model that says nothing is always right; nan is right nowhere."""
  readout = Readout(jnp.full((2, 2, 1), value), jnp.ones((7, 1)))
  batch = dict(
    targets=jnp.array([[1, 0], [6, 0]]), weights=jnp.array([[1, 1.0], [1, 1]])
  )
  found = measured(readout, batch, chunk=chunk)
  assert float(found["accuracy"].value()) == (0.5 if value == 0 else 0.0)


def test_rounded_logits_make_no_guess_right():
  """256 and 257 are one number in bfloat16."""
  readout = Readout(jnp.ones((1, 2, 1)), jnp.array([[1.0], [257.0], [256.0]]))
  batch = dict(targets=jnp.array([[1, 2]]), weights=jnp.ones((1, 2)))
  found = measured(readout, batch, logits="bfloat16")
  assert float(found["accuracy"].value()) == 0.5
