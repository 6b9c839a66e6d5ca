"""Means, and what is measured beside a loss."""

import jax
import jax.numpy as jnp
import pytest

from aigc_jax.metrics import measured


def both(x):
  return jnp.sum(x * x), {"size": measured(jnp.sum(jnp.abs(x)))}


def test_what_is_measured_beside_a_loss_is_what_it_is():
  x = jnp.arange(3.0)
  for gradient in (
    jax.grad(both, has_aux=True),
    jax.jit(jax.grad(both, has_aux=True)),
    jax.grad(jax.jit(both), has_aux=True),
    jax.grad(jax.checkpoint(both), has_aux=True),
  ):
    found, beside = gradient(x)
    assert jnp.array_equal(found, 2 * x) and beside["size"] == 3
  found, beside = jax.vmap(jax.grad(both, has_aux=True))(jnp.stack([x, -x]))
  assert jnp.array_equal(found, jnp.stack([2 * x, -2 * x]))
  assert beside["size"].tolist() == [3, 3]


def test_a_gradient_of_a_measurement_is_refused_and_never_zero():
  def summed(x):
    loss, beside = both(x)
    return loss + 2 * beside["size"]

  for make in (jax.grad, lambda f: jax.jit(jax.grad(f)), jax.value_and_grad):
    with pytest.raises(TypeError, match="asked of a measurement"):
      make(summed)(jnp.arange(3.0))
