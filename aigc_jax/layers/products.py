"""Products of activations with weights, and their gradients."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from aigc_jax import sharding, tree
from aigc_jax.layers import fp8
from aigc_jax.layers.forms import are_plain, form
from aigc_jax.layers.rounding import packed, rounded, unpacked

# What products multiply: operands of the dtype that a model computes in; of
# bfloat16, whatever that is; or, the blocks' with weights, of 8 bits.
PRODUCTS = {"plain": None, "bf16": jnp.bfloat16, "fp8": None}


def beside_blocks(products: str) -> str:
  """Of products outside the blocks of a model: eight bits are for those."""
  return "plain" if products == "fp8" else products


def operand_dtype(dtype, products: str) -> jnp.dtype:
  """Of what products multiply in a model that computes in `dtype`."""
  return jnp.dtype(PRODUCTS[products] or dtype)


class Rounded(NamedTuple):
  """A weight and its copy in the dtype of products, made once for many uses.

  Products read the copy; their gradient is for `full`, and of its dtype.
  """

  full: jax.Array | None
  copy: jax.Array


def copies(params: tree.Tree, dtype) -> dict[str, jax.Array]:
  """{path: copy in `dtype`} of the weights of all `Einsum`s in `params`."""
  return {
    name: w.astype(dtype)
    for name, w in tree.flat(params).items()
    if name.endswith("/w") and w.dtype != dtype
  }


def with_copies(params: tree.Tree, copies: Mapping[str, jax.Array]):
  """`params` with `Rounded` in place of the weights that have a copy."""

  def one(path, w):
    name = tree.name_of(path)
    return Rounded(w, copies[name]) if name in copies else w

  return jax.tree_util.tree_map_with_path(one, params)


def multiplied(
  equation: str, x: jax.Array, y: jax.Array, result=jnp.float32
) -> jax.Array:
  """einsum(equation, x, y) in float32; no rule for its gradient.

  result: what it will be rounded to. On an accelerator it is so already, terms
  still added in float32 on each device: what devices add up together, in that
  dtype, is half of the bytes.
  """
  return form("multiplied", _multiplied)(equation, x, y, result)


def _multiplied(equation, x, y, result):
  result = result if result == x.dtype else jnp.float32
  return jnp.einsum(equation, x, y, preferred_element_type=result)


def product(
  equation: str,
  x: jax.Array,
  w: jax.Array | Rounded,
  dtype=None,
  result=jnp.float32,
) -> jax.Array:
  """einsum(equation, x, w) in float32, of operands of `dtype`, if not x's.

  result: as `multiplied` has it.

  The backward products too have operands of that dtype and a float32
  accumulator. Automatic differentiation would multiply a float32 cotangent by
  a bfloat16 operand, which no matrix unit takes.
  """
  dtype = dtype or x.dtype
  if are_plain():
    w = w.full if isinstance(w, Rounded) else w
    return _multiplied(equation, x.astype(dtype), w.astype(dtype), None)
  return _product(equation, dtype, result, x, w)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _product(equation, dtype, result, x, w):
  return _product_forward(equation, dtype, result, x, w)[0]


def _product_forward(equation, dtype, result, x, w):
  kept = Rounded(None, w.copy) if isinstance(w, Rounded) else w
  operand = rounded(x, dtype)
  y = multiplied(equation, operand, _operand(w, dtype), result)
  return y, (operand, kept, jnp.zeros((0,), x.dtype))


def _operand(w: jax.Array | Rounded, dtype) -> jax.Array:
  return rounded(w.copy if isinstance(w, Rounded) else w, dtype)


def _product_backward(equation, dtype, result, kept, dy):
  x, w, like = kept
  (a, b), out = sharding.split(equation)
  dy = rounded(dy, dtype)
  dx = multiplied(f"{out},{b}->{a}", dy, _operand(w, dtype), like.dtype)
  dw = weight_gradient(equation, x, dy)
  dw = Rounded(dw, None) if isinstance(w, Rounded) else dw.astype(w.dtype)
  return rounded(dx, like.dtype), dw


def weight_gradient(equation: str, x: jax.Array, dy: jax.Array) -> jax.Array:
  """The gradient of `product` for w, float32."""
  return form("weight_gradient", _weight_gradient)(equation, x, dy)


def _weight_gradient(equation, x, dy):
  (a, b), out = sharding.split(equation)
  return multiplied(f"{a},{out}->{b}", x, dy)


_product.defvjp(_product_forward, _product_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def product_fp8(
  equation: str, x: jax.Array, w: jax.Array | Rounded
) -> jax.Array:
  """einsum(equation, x, w) with operands of 8 bits, in float32.

  So have the backward products; what they need is kept in 8 bits.
  """
  return _product_fp8_forward(equation, x, w)[0]


def _product_fp8_forward(equation, x, w):
  copy = w.copy if isinstance(w, Rounded) else w
  # By way of x's dtype, so that weights cast once give the same bits.
  small = [fp8.quantise(v, fp8.FORWARD) for v in (x, copy.astype(x.dtype))]
  # Nothing of x and w but their dtypes, and whether w is twofold.
  kinds = jax.tree.map(lambda v: jnp.zeros((0,), v.dtype), (x, w))
  return fp8.dot(equation, *small), (*small, *kinds)


def _product_fp8_backward(equation, kept, dy):
  x, w, x_kind, w_kind = kept
  (a, b), out = sharding.split(equation)
  dy = fp8.quantise(dy, fp8.GRADIENT)
  dx = fp8.dot(f"{out},{b}->{a}", dy, w).astype(x_kind.dtype)
  dw = fp8.dot(f"{a},{out}->{b}", x, dy)
  if isinstance(w_kind, Rounded):
    return dx, Rounded(dw, None)
  return dx, dw.astype(w_kind.dtype)


product_fp8.defvjp(_product_fp8_forward, _product_fp8_backward)


def contract(
  equation: str,
  x: jax.Array,
  w: jax.Array | Rounded,
  products: str = "plain",
) -> jax.Array:
  """The product, rounded to x's dtype; `products` is a key of PRODUCTS.

  Among plain formulas fp8 is left out: what it rounds has no derivative.
  """
  if products == "fp8" and not are_plain():
    y = product_fp8(equation, x, w)
  else:
    operands = operand_dtype(x.dtype, products)
    y = product(equation, x, w, operands, x.dtype)
  return rounded(y, x.dtype)


def parted(ends: tuple[int, ...], dtype, y: jax.Array) -> list[jax.Array]:
  """y cut before each of `ends` of its last axis, rounded to `dtype`.

  So are their gradients when they are joined: half of the bytes to move.
  """
  cut = _parted.__wrapped__ if are_plain() else _parted
  return cut(ends, dtype, y)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _parted(ends: tuple[int, ...], dtype, y: jax.Array) -> list[jax.Array]:
  return [rounded(part, dtype) for part in jnp.split(y, ends, axis=-1)]


def _parted_forward(ends, dtype, y):
  return _parted(ends, dtype, y), jnp.zeros((0,), y.dtype)


def _parted_backward(ends, dtype, like, dparts):
  dy = jnp.concatenate([packed(d) for d in dparts], axis=-1)
  dy = unpacked(dy, dtype).astype(like.dtype)
  if sharding.platform() == "gpu":
    # Without the barrier XLA joins it once for each of the two products that
    # read it (experiments/speed).
    dy = jax.lax.optimization_barrier(dy)
  return (dy,)


_parted.defvjp(_parted_forward, _parted_backward)
