"""MLP: plain (up, activation, down) or gated (arXiv:2002.05202)."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax import errors, sharding
from aigc_jax.layers.einsum import Einsum, together
from aigc_jax.layers.rounding import rounded


def _gelu(x):
  """x times the normal distribution below x, arXiv:1606.08415.

  By erf: what erfc would add in the far negative tail, where the product is
  below 1e-6, costs twice the time.
  """
  return 0.5 * x * (1.0 + jax.lax.erf(x * (0.5**0.5)))


def _gelu_slope(x):
  """The derivative of `_gelu`, within 3e-7; a third of the compiler's time.

  Both the normal density and the distribution come of one exp(-x**2 / 2), the
  latter by formula 7.1.26 of Abramowitz and Stegun,
  https://personal.math.ubc.ca/~cbm/aands/page_299.htm.
  """
  bell = _two_to_minus(x * x * (0.5 / math.log(2)))
  t = 1 / (1 + jnp.abs(x) * (0.3275911 * 0.5**0.5))
  tail = _polynomial(
    t, 0, 0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429
  )
  tail = 0.5 * tail * bell
  density = bell * (2 * math.pi) ** -0.5
  return jnp.where(x < 0, tail, 1 - tail) + x * density


def _two_to_minus(x):
  """2**-x for x >= 0, as 2**-126 beyond 126; relative error 2e-7.

  The nearest whole number goes to the exponent's bits, the rest to a series. It
  comes out of an addition to a number so large that its last digit is one.
  """
  x = jnp.minimum(x, 126.0)
  large = 1.5 * 2**23 + 127
  whole = large - x
  rest = (large - whole) - x  # within a half
  bits = jax.lax.bitcast_convert_type(whole, jnp.int32) << 23
  powers = [math.log(2) ** n / math.factorial(n) for n in range(7)]
  return jax.lax.bitcast_convert_type(bits, jnp.float32) * _polynomial(
    rest, *powers
  )


def _polynomial(x, *factors):
  """Sum of factors[n] * x**n."""
  y = factors[-1]
  for factor in factors[-2::-1]:
    y = y * x + factor
  return y


def _gelu_tanh(x):
  return jax.nn.gelu(x, approximate=True)


def _relu2(x):
  """Squared ReLU, arXiv:2109.08668."""
  return jnp.square(jax.nn.relu(x))


ACTIVATIONS = {
  "gelu": _gelu,
  "gelu_tanh": _gelu_tanh,
  "relu": jax.nn.relu,
  "relu2": _relu2,
  "silu": jax.nn.silu,
}
# Derivatives that take less time on a CPU than those the compiler is given.
SLOPES = {_gelu: _gelu_slope}


def activate(kind: str, x: jax.Array, gate: jax.Array | None = None):
  """activation(x), or activation(gate) * x; the backward pass keeps the inputs.

  Computed in float32: vector units have no fast bfloat16 exp or tanh. On a CPU
  the product behind it keeps its value too: making that again is what takes
  time there, and memory is what there is.
  """
  f = errors.choose(kind, ACTIVATIONS, "model.activation")
  if sharding.platform() == "cpu" and sharding.alone():
    return _once(f, x, gate)
  formula = functools.partial(_formula, f)
  return jax.checkpoint(formula, prevent_cse=False)(x, gate)


def _formula(f: Callable, x, gate):
  if gate is None:
    return rounded(f(x.astype(jnp.float32)), x.dtype)
  y = f(gate.astype(jnp.float32)) * x.astype(jnp.float32)
  return rounded(y, x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _once(f: Callable, x, gate):
  """The formula, made once: the backward pass makes its derivative alone."""
  return _formula(f, x, gate)


def _once_forward(f, x, gate):
  return _formula(f, x, gate), (x, gate)


def _once_backward(f, kept, dy):
  if f in SLOPES:
    f = _with_slope(f, SLOPES[f])
  return jax.vjp(functools.partial(_formula, f), *kept)[1](dy)


def _with_slope(f: Callable, slope: Callable) -> Callable:
  g = jax.custom_jvp(f)
  g.defjvp(lambda x, dx: (f(x[0]), slope(x[0]) * dx[0]))
  return g


_once.defvjp(_once_forward, _once_backward)


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
