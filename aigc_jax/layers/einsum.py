"""Einsum: a parameter declared by the equation that uses it."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax import sharding, tree
from aigc_jax.layers import fp8, onednn
from aigc_jax.layers.rounding import packed, rounded, unpacked

# Standard deviation of a unit normal cut at two standard deviations.
_CUT = 0.87962566103423978


# What products multiply: operands of the dtype that a model computes in; of
# bfloat16, whatever that is; or, the blocks' with weights, of 8 bits.
PRODUCTS = {"plain": None, "bf16": jnp.bfloat16, "fp8": None}


def operand_dtype(dtype, products: str) -> jnp.dtype:
  """Of what products multiply in a model that computes in `dtype`."""
  return jnp.dtype(PRODUCTS[products] or dtype)


def scaled_init(fan_in: int, std: float, factor: float = 1.0) -> Callable:
  """A truncated normal of deviation `std`, or fan_in**-0.5 where std is 0."""
  deviation = factor * (std or 1.0 / math.sqrt(fan_in))

  def init(key, shape, dtype=jnp.float32):
    draw = jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype)
    return draw * (deviation / _CUT)

  return init


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
  z = onednn.einsum(equation, x, y) if onednn.chosen() else None
  if z is not None:
    return z
  if sharding.platform() == "cpu" or result != x.dtype:
    result = jnp.float32
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
  return _product(equation, dtype or x.dtype, result, x, w)


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
  """The gradient of `product` for w, float32; its form goes by the platform."""
  (a, b), out = sharding.split(equation)
  batched = any(c in a and c in out for c in b)
  alone_on_cpu = sharding.platform() == "cpu" and sharding.alone()
  if alone_on_cpu and not batched and not onednn.chosen():
    return weight_gradient_on_cpu(equation, x, dy)
  return multiplied(f"{a},{out}->{b}", x, dy)


def weight_gradient_on_cpu(
  equation: str, x: jax.Array, dy: jax.Array
) -> jax.Array:
  """The same as one product of two matrices, the left one copied transposed.

  The compiler's library takes no left operand that lies transposed. It would
  then either do without it, or fuse the transposition with whatever made the
  operand and compute that again at the pace of scattered writes. So the
  smaller of the two is the left one, and a copy of it is made here: a reshape
  to one dimension is what the compiler cannot take back.
  """
  (a, b), out = sharding.split(equation)
  rows = [c for c in a if c in out]
  sizes = dict(zip(a, x.shape, strict=True)) | dict(
    zip(out, dy.shape, strict=True)
  )
  count = math.prod(sizes[c] for c in rows)
  sides = []
  for letters, value in ((a, x), (out, dy)):
    own = [c for c in letters if c not in rows]
    sides.append((own, value, letters))
  sides.sort(key=lambda side: side[1].size)
  (left, x, letters), (right, y, others) = sides
  # Whatever makes the operand is not made again at scattered places.
  x = jax.lax.optimization_barrier(x)
  x = jnp.einsum(f"{letters}->{''.join(left + rows)}", x).reshape(-1)
  x = jax.lax.optimization_barrier(x).reshape(-1, count)
  y = jnp.einsum(f"{others}->{''.join(rows + right)}", y).reshape(count, -1)
  dw = jnp.matmul(x, y, preferred_element_type=jnp.float32).reshape(-1)
  dw = jax.lax.optimization_barrier(dw)
  dw = dw.reshape([sizes[c] for c in left + right])
  return jnp.einsum(f"{''.join(left + right)}->{b}", dw)


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
  """The product, rounded to x's dtype; `products` is a key of PRODUCTS."""
  if products == "fp8":
    y = product_fp8(equation, x, w)
  else:
    operands = operand_dtype(x.dtype, products)
    y = product(equation, x, w, operands, x.dtype)
  return rounded(y, x.dtype)


class Einsum(nn.Module):
  """einsum(equation, x, w) [+ bias]: w's axes are its letters.

  Its sharding comes from the letters and its scale from those summed over, so
  neither can disagree with its use. The bias has the letters of w that remain.
  """

  equation: str
  shape: tuple[int, ...]
  dtype: jnp.dtype
  bias: bool = False
  std: float = 0.0
  factor: float = 1.0
  products: str = "plain"

  @nn.compact
  def weights(self) -> tuple[jax.Array | Rounded, jax.Array | None]:
    """(w, bias or None)."""
    (_, letters), out = sharding.split(self.equation)
    sizes = dict(zip(letters, self.shape, strict=True))
    fan_in = math.prod(n for a, n in sizes.items() if a not in out)
    init = scaled_init(fan_in, self.std, self.factor)
    w = self.param("w", sharding.named(init, letters), self.shape)
    if not self.bias:
      return w, None
    kept = "".join(a for a in letters if a in out)
    shape = tuple(sizes[a] for a in kept)
    zeros = sharding.named(nn.initializers.zeros, kept)
    return w, self.param("bias", zeros, shape)

  def __call__(self, x: jax.Array) -> jax.Array:
    w, bias = self.weights()
    y = contract(self.equation, x.astype(self.dtype), w, self.products)
    return self.finish(y, bias)

  def finish(self, y: jax.Array, bias: jax.Array | None) -> jax.Array:
    """y with its bias, laid out by its letters."""
    if bias is not None:
      y = y + bias.astype(self.dtype)
    return sharding.constrain(y, sharding.split(self.equation)[1])


def together(
  einsums: Sequence[Einsum], x: jax.Array, fused: bool = True, result=None
) -> list[jax.Array]:
  """Each of the einsums of one x, whose last axis is all they sum over.

  fused: on a single device as one product, wider and so nearer to the speed
  that the matrix unit has. Over several devices, where each is cut by its own
  letters, always apart.
  result: the dtype that they are rounded to, if not the model's.
  """
  if not fused or not sharding.alone() or len(einsums) == 1:
    return [rounded(e(x), result or e.dtype) for e in einsums]
  dtype, D = einsums[0].dtype, x.shape[-1]
  weights, biases = zip(*(e.weights() for e in einsums), strict=True)
  # Joined as they are, rounded in the product: the gradient stays float32.
  w_DF = jax.tree.map(
    lambda *ws: jnp.concatenate([w.reshape(D, -1) for w in ws], axis=1),
    *weights,
  )
  y = contract("BTD,DF->BTF", x.astype(dtype), w_DF, einsums[0].products)
  ends = itertools.accumulate(math.prod(e.shape[1:]) for e in einsums)
  biased = any(bias is not None for bias in biases)
  parts = _parted(tuple(ends)[:-1], dtype if biased else result or dtype, y)
  found = [
    e.finish(part.reshape(*x.shape[:-1], *e.shape[1:]), bias)
    for e, part, bias in zip(einsums, parts, biases, strict=True)
  ]
  return [rounded(part, result or dtype) for part in found]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _parted(ends: tuple[int, ...], dtype, y: jax.Array) -> list[jax.Array]:
  """y cut before each of `ends` of its last axis, rounded to `dtype`.

  So are their gradients when they are joined: half of the bytes to move.
  """
  return [rounded(part, dtype) for part in jnp.split(y, ends, axis=-1)]


def _parted_forward(ends, dtype, y):
  return _parted(ends, dtype, y), jnp.zeros((0,), y.dtype)


def _parted_backward(ends, dtype, like, dparts):
  dy = jnp.concatenate([packed(d) for d in dparts], axis=-1)
  dy = unpacked(dy, dtype).astype(like.dtype)
  if sharding.platform() == "gpu":
    # Held, or it is joined once for each of the two products that read it.
    dy = jax.lax.optimization_barrier(dy)
  return (dy,)


_parted.defvjp(_parted_forward, _parted_backward)
