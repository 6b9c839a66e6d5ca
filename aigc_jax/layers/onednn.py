"""Products of matrices by oneDNN, a library that JAX for CPUs contains.

The compiler does not take it of its own accord. It multiplies either way round,
so nothing is transposed for it first, and it is ahead of the compiler's choice
most of all in small products, as those of attention are (experiments/speed).
"""

import contextlib
import contextvars
import functools
import json
import math

import jax
import jax.numpy as jnp

from aigc_jax import sharding

CALL = "__onednn$matmul"  # the compiler's own name for it
_chosen = contextvars.ContextVar("onednn", default=False)


@contextlib.contextmanager
def preferred():
  """What is traced in here multiplies by oneDNN; on one CPU, where `usable`."""
  token = _chosen.set(True)
  try:
    yield
  finally:
    _chosen.reset(token)


def chosen() -> bool:
  return _chosen.get()


@functools.cache
def usable(dtype: str) -> bool:
  """Whether oneDNN is there and multiplies operands of `dtype`: it is tried."""
  x = jnp.arange(6).reshape(2, 3).astype(dtype)
  try:
    y = jax.jit(functools.partial(matmul, y_turned=True))(x, x)
    return y.tolist() == [[5.0, 14.0], [14.0, 50.0]]
  except Exception:  # of many kinds, from a build or a CPU that lacks it
    return False


def matmul(
  x: jax.Array, y: jax.Array, *, x_turned: bool = False, y_turned: bool = False
) -> jax.Array:
  """x y over the last two axes, (..., M, N) in float32.

  x is (..., M, K), or (..., K, M) where it lies turned round; y is (..., K, N),
  or (..., N, K). Operands of one dtype, float32 or bfloat16.
  """
  M = x.shape[-1 if x_turned else -2]
  N = y.shape[-2 if y_turned else -1]
  turned = {"transpose_a": x_turned, "transpose_b": y_turned}
  return jax.ffi.ffi_call(
    CALL,
    jax.ShapeDtypeStruct((*x.shape[:-2], M, N), jnp.float32),
    custom_call_api_version=1,
    legacy_backend_config=json.dumps({"onednn_matmul_config": turned}),
    vmap_method="broadcast_all",
  )(x, y)


def einsum(equation: str, x: jax.Array, y: jax.Array) -> jax.Array | None:
  """einsum(equation, x, y), or None where it is not one product of matrices.

  It is one where, after the letters that all of them begin with, x, y and the
  result are each two runs: of what is summed over, of x's own and of y's own.
  """
  (a, b), out = sharding.split(equation)
  sizes = dict(zip(a + b, x.shape + y.shape, strict=True))
  each = "".join(c for c in out if c in a and c in b)
  if not all(letters.startswith(each) for letters in (a, b, out)):
    return None
  result = [sizes[c] for c in out]
  a, b, out = (letters.removeprefix(each) for letters in (a, b, out))
  summed = "".join(c for c in a if c in b and c not in out)
  own_a = "".join(c for c in a if c not in b)
  own_b = "".join(c for c in b if c not in a)
  if out == own_b + own_a:
    return einsum(f"{each}{b},{each}{a}->{each}{out}", y, x)
  x_ways = {own_a + summed: False, summed + own_a: True}
  y_ways = {summed + own_b: False, own_b + summed: True}
  if out != own_a + own_b or a not in x_ways or b not in y_ways:
    return None
  batch = [sizes[c] for c in each]
  M, K, N = (math.prod(sizes[c] for c in run) for run in (own_a, summed, own_b))
  z = matmul(
    x.reshape(*batch, *((K, M) if x_ways[a] else (M, K))),
    y.reshape(*batch, *((N, K) if y_ways[b] else (K, N))),
    x_turned=x_ways[a],
    y_turned=y_ways[b],
  )
  return z.reshape(result)
