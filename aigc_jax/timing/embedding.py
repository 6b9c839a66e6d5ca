"""The gradient of the embedding by itself, in each of its forms."""

import functools

import jax
import jax.numpy as jnp

from aigc_jax import run, sharding
from aigc_jax.layers.lookup import GRADIENTS, lookup, resolve
from aigc_jax.timing import machine
from aigc_jax.timing.stepping import zipf_batch


def gradient_form(r: run.Run) -> str:
  """The form that the step has."""
  form = r.config["compute"]["embed_gradient"]
  return resolve(r.config["model"]["vocab"]) if form == "auto" else form


def gradient_ms(r: run.Run) -> dict[str, float]:
  """{form: milliseconds}, for a batch's ids, whose frequencies are Zipf's.

  What adds in place can be slow by a factor of hundreds where many tokens are
  equal, so it is looked at by itself and not only within the step.
  """
  dim, dtype = r.config["model"]["dim"], r.model.dtype
  tokens = zipf_batch(r, 0)["tokens"]
  ids_BT = tokens[0] if tokens.ndim == 3 else tokens
  calls = 1 if sharding.platform() == "cpu" else 10

  @functools.partial(jax.jit, static_argnums=0)
  def gradient(form, table_VD, ids_BT, dy_BTD):
    def read(table_VD):
      return lookup(table_VD, ids_BT, dtype, form)

    (d_VD,) = jax.vjp(read, table_VD)[1](sharding.constrain(dy_BTD, "BTD"))
    return sharding.constrain(d_VD, "VD")

  shape = (*ids_BT.shape, dim)
  dy_BTD = jax.random.normal(jax.random.key(0), shape, dtype)
  # Only its shape is of use.
  table_VD = jnp.zeros((r.config["model"]["vocab"], dim))
  return {
    form: 1e3 * machine.seconds(
      functools.partial(gradient, form), table_VD, ids_BT, dy_BTD, calls=calls
    )
    for form in GRADIENTS
  }  # fmt: skip
