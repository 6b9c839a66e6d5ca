"""Einsum: a parameter declared by the equation that uses it."""

import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax import sharding
from aigc_jax.layers.products import Rounded, contract, parted
from aigc_jax.layers.rounding import rounded

# Standard deviation of a unit normal cut at two standard deviations.
_CUT = 0.87962566103423978


def drawn(
  letters: str, fan_in: int, std: float, factor: float = 1.0
) -> Callable:
  """Fresh weights named by `letters`: a truncated normal.

  Of deviation `std`, or fan_in**-0.5 where std is 0, times `factor`.
  """
  deviation = factor * (std or 1.0 / math.sqrt(fan_in))

  def init(key, shape, dtype=jnp.float32):
    draw = jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype)
    return draw * (deviation / _CUT)

  return sharding.named(init, letters, deviation)


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
    init = drawn(letters, fan_in, self.std, self.factor)
    w = self.param("w", init, self.shape)
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
  parts = parted(tuple(ends)[:-1], dtype if biased else result or dtype, y)
  found = [
    e.finish(part.reshape(*x.shape[:-1], *e.shape[1:]), bias)
    for e, part, bias in zip(einsums, parts, biases, strict=True)
  ]
  return [rounded(part, result or dtype) for part in found]
