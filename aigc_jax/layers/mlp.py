"""MLP: plain (up, activation, down) or gated (arXiv:2002.05202)."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax import errors
from aigc_jax.layers.einsum import Einsum, together
from aigc_jax.layers.forms import form
from aigc_jax.layers.rounding import rounded


def _gelu(x):
  """x times the normal distribution below x, arXiv:1606.08415.

  By erf: what erfc would add in the far negative tail, where the product is
  below 1e-6, costs twice the time.
  """
  return 0.5 * x * (1.0 + jax.lax.erf(x * (0.5**0.5)))


def _gelu_tanh(x):
  return jax.nn.gelu(x, approximate=True)


def _quick_gelu(x):
  """gelu with a sigmoid for the normal distribution (arXiv:1606.08415)."""
  return x * jax.nn.sigmoid(1.702 * x)


def _relu2(x):
  """Squared ReLU, arXiv:2109.08668."""
  return jnp.square(jax.nn.relu(x))


ACTIVATIONS = {
  "gelu": _gelu,
  "gelu_tanh": _gelu_tanh,
  "quick_gelu": _quick_gelu,
  "relu": jax.nn.relu,
  "relu2": _relu2,
  "silu": jax.nn.silu,
}


def activate(kind: str, x: jax.Array, gate: jax.Array | None = None):
  """activation(x), or activation(gate) * x; the backward pass keeps the inputs.

  Computed in float32: vector units have no fast bfloat16 exp or tanh.
  """
  f = errors.choose(kind, ACTIVATIONS, "model.activation")
  return form("activate", _recomputed)(kind, _formula, f, x, gate)


def _formula(f: Callable, x, gate):
  if gate is None:
    return rounded(f(x.astype(jnp.float32)), x.dtype)
  y = f(gate.astype(jnp.float32)) * x.astype(jnp.float32)
  return rounded(y, x.dtype)


def _recomputed(kind: str, formula: Callable, f: Callable, x, gate):
  run = functools.partial(formula, f)
  return jax.checkpoint(run, prevent_cse=False)(x, gate)


class Mlp(nn.Module):
  """down(activation(up x)), or down(activation(gate x) * up x)."""

  dim: int
  mlp_dim: int
  activation: str
  gated: bool
  dtype: jnp.dtype
  bias: bool = False
  std: float = 0.0
  out_factor: float = 1.0
  fused: bool = True  # whether gate and up are one product, on one device
  products: str = "plain"

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    D, F = self.dim, self.mlp_dim
    wide = dict(
      shape=(D, F), dtype=self.dtype, bias=self.bias, std=self.std,
      products=self.products,
    )  # fmt: skip
    ups = [Einsum("BTD,DF->BTF", name="up", **wide)]
    if self.gated:
      ups.append(Einsum("BTD,DF->BTF", name="gate", **wide))
    y_BTF = activate(self.activation, *together(ups, x_BTD, self.fused))
    return Einsum(
      "BTF,FD->BTD", (F, D), self.dtype, self.bias, self.std, self.out_factor,
      self.products, name="down",
    )(y_BTF)  # fmt: skip
