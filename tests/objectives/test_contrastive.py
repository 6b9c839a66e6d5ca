"""Pairs told from all others: the loss, on one device and on many."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import sharding
from aigc_jax.errors import BadConfig
from aigc_jax.models.clip import Embedded
from aigc_jax.objectives import OBJECTIVES
from tests.sweep import slow, sweep

contrastive = OBJECTIVES["contrastive"]
LOSSES = ("softmax", "sigmoid")
B, Z = 16, 5


@functools.cache
def made(rows: int = B):
  """Embeddings, scale, bias and weights, two rows of which are padding."""
  draw = np.random.default_rng(0)
  images, texts = draw.normal(size=(2, rows, Z))
  images, texts = (
    x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts)
  )
  weights = np.ones(rows)
  weights[[3, -1]] = 0
  found = images, images + 0.7 * texts, np.log(7.0), -2.0, weights
  return tuple(jnp.asarray(x, jnp.float32) for x in found)


def of(loss: str, images, texts, log_scale, bias, weights):
  found = Embedded(images, texts, log_scale, bias)
  return contrastive(lambda batch: found, {"weights": weights}, loss=loss)


told = jax.jit(of, static_argnums=0)


def plain(loss: str, images, texts, log_scale, bias, weights):
  """The mean loss by its definition, of the rows that count alone."""
  real = np.flatnonzero(np.asarray(weights))
  images, texts = images[real], texts[real]
  z = jnp.exp(log_scale) * (images @ texts.T) + bias
  right = jnp.eye(len(z))
  if loss == "softmax":
    rows, columns = (
      -jnp.sum(jax.nn.log_softmax(z, axis) * right) / len(z) for axis in (1, 0)
    )
    return (rows + columns) / 2
  return -jnp.sum(jax.nn.log_sigmoid((2 * right - 1) * z)) / len(z)


def total(loss: str, *args):
  return of(loss, *args)["loss"].value()


@pytest.mark.slow
@pytest.mark.parametrize("loss", sweep(LOSSES, "sigmoid"))
def test_the_loss_and_its_gradients_are_those_of_the_definition(loss):
  which = (0, 1, 2, 3)
  a, da = jax.value_and_grad(functools.partial(total, loss), which)(*made())
  b, db = jax.value_and_grad(functools.partial(plain, loss), which)(*made())
  np.testing.assert_allclose(a, b, rtol=1e-6)
  for x, y in zip(da, db, strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
  assert np.any(da[1] != 0)  # of what other devices would hold too


MESHES = {
  2: dict(data=2), 4: dict(data=2, fsdp=2), 8: dict(fsdp=8),
  "8 with tensor": dict(data=2, fsdp=2, tensor=2),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", [2, slow(4), 8, slow("8 with tensor")])
def test_any_number_of_devices_gives_the_loss_and_gradients_of_one(loss, name):
  sizes = dict.fromkeys(sharding.AXES, 1) | MESHES[name]
  count = int(np.prod(list(sizes.values())))
  mesh = sharding.make_mesh(**sizes, devices=jax.devices()[:count])

  def f(*args):
    means = of(loss, *args)
    return means["loss"].value(), means

  take = jax.jit(jax.value_and_grad(f, (0, 1, 2, 3), has_aux=True))
  (one, told), slopes = take(*made())
  letters = ("BZ", "BZ", "", "", "B")
  cut = [
    jax.device_put(x, sharding.shardings(a, x.shape, mesh))
    for x, a in zip(made(), letters, strict=True)
  ]
  with jax.set_mesh(mesh):
    (many, told_many), slopes_many = jax.jit(take.__wrapped__)(*cut)
  np.testing.assert_allclose(one, many, rtol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    (told, slopes),
    jax.device_get((told_many, slopes_many)),
  )


@pytest.mark.parametrize("loss", LOSSES)
def test_a_device_holds_no_more_for_there_being_others(loss):
  """Eight devices of four rows each: no array of all rows, nor a stack."""
  mesh = sharding.make_mesh(**dict.fromkeys(sharding.AXES, 1) | dict(data=8))
  args = made(32)
  with jax.set_mesh(mesh):
    cut = [
      jax.device_put(x, sharding.shardings(a, x.shape, mesh))
      for x, a in zip(args, ("BZ", "BZ", "", "", "B"), strict=True)
    ]
    f = jax.jit(jax.grad(functools.partial(total, loss), (0, 1)))
    text = f.lower(*cut).compile().as_text()
  assert "collective-permute" in text and "all-gather" not in text
  assert "f32[4,5]" in text and "f32[4,4]" in text
  for shape in ("[32,5]", "[32,32]", "[4,32]", "[8,4,5]", "[7,4,5]"):
    assert f"f32{shape}" not in text, shape


def test_hits_are_counted_without_padding_and_ties_are_none():
  images, texts, log_scale, bias, weights = made()
  means = told("softmax", images, images, log_scale, bias, weights)
  assert means["image_to_text"].value() == means["text_to_image"].value() == 1
  assert means["scale"].value() == pytest.approx(7.0)
  assert means["bias"].value() == -2.0
  same = np.full_like(images, Z**-0.5)
  means = told("softmax", same, same, log_scale, None, weights)
  assert means["image_to_text"].value() == means["text_to_image"].value() == 0
  assert "bias" not in means
  real = np.flatnonzero(np.asarray(weights))
  z = (np.asarray(images) @ np.asarray(texts).T)[np.ix_(real, real)]
  means = told("sigmoid", images, texts, log_scale, bias, weights)
  for name, axis in (("image_to_text", 1), ("text_to_image", 0)):
    hits = np.mean(z.argmax(axis) == np.arange(len(z)))
    assert means[name].value() == pytest.approx(hits)


def test_embeddings_that_are_no_numbers_are_never_right():
  images, texts, log_scale, bias, weights = made()
  means = told(
    "softmax", np.full_like(images, np.nan), texts, log_scale, bias, weights
  )
  assert means["image_to_text"].value() == means["text_to_image"].value() == 0
  assert np.isnan(means["loss"].value())


def test_a_loss_that_there_is_not_is_refused():
  with pytest.raises(BadConfig, match="objective.loss.*sigmoid, softmax"):
    of("infonce", *made())
