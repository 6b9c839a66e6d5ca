"""Products of matrices by oneDNN, a library that JAX for CPUs contains.

The compiler does not take it of its own accord. It multiplies either way round,
so nothing is transposed for it first, and it is ahead of the compiler's choice
most of all in small products, as those of attention are (experiments/speed).

Of several products in one call it gives each thread some, and where one of them
is large it shares that one among threads once more. What the compiler gives it
for threads does not allow that: memory was overwritten, and threads waited for
each other for ever. Such products are left to the compiler.
"""

import contextlib
import contextvars
import functools
import json
import math
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from aigc_jax import sharding

CALL = "__onednn$matmul"  # the compiler's own name for it
# One of these a CPU must have for oneDNN's products of bfloat16 (its manual,
# "Data types": from avx512_core on, or avx2_vnni_2), as Linux calls them.
OF_BFLOAT16 = {"avx512bw", "avx_ne_convert"}
WIDER = "avx512f"  # what a CPU with vectors of 512 bits says of itself
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
CACHE = 2**19  # bytes that oneDNN takes a second-level cache for, unless told
THIN = 3  # rows or columns, up to which a matrix is always shared
_chosen = contextvars.ContextVar("onednn", default=False)


@contextlib.contextmanager
def preferred(chosen: bool = True):
  """What is traced in here multiplies by oneDNN, or not if it is not `chosen`.

  On one CPU, where it is `usable`.
  """
  token = _chosen.set(chosen)
  try:
    yield
  finally:
    _chosen.reset(token)


def chosen() -> bool:
  return _chosen.get()


@functools.cache
def usable(dtype: str) -> bool:
  """Whether oneDNN is there and multiplies operands of `dtype`: it is tried.

  Not where it is known to lack them: it ends the process that asks for them.
  """
  if dtype == "bfloat16" and not _instructions() & OF_BFLOAT16:
    return False
  x = jnp.arange(6).reshape(2, 3).astype(dtype)
  try:
    y = jax.jit(functools.partial(einsum, "mk,nk->mn"))(x, x)
    return y.tolist() == [[5.0, 14.0], [14.0, 50.0]]
  except Exception:  # of many kinds, from a build or a CPU that lacks it
    return False


def _instructions() -> set[str]:
  """What the CPU says it can do; nothing where there is no Linux to ask."""
  try:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    return set()
  flags = (line.partition(":")[2] for line in lines if line[:5] == "flags")
  return set(next(flags, "").split())


@functools.cache
def _cache() -> int:
  """Bytes of the second-level cache that are one thread's; 0 if not known."""
  try:
    for folder in CACHES.glob("index*"):
      if (folder / "level").read_text().strip() != "2":
        continue
      size = int((folder / "size").read_text().strip().removesuffix("K")) * 1024
      shared = int((folder / "shared_cpu_map").read_text().replace(",", ""), 16)
      return min(size, CACHE) // max(1, shared.bit_count())
  except (OSError, ValueError):
    pass
  return 0


def rows_at_most(columns: int, summed: int) -> int:
  """Of a product that is one of several in a call; with more it may be shared.

  By `adjust_thread_count` of
  https://github.com/uxlfoundation/oneDNN/blob/main/src/cpu/x64/gemm/gemm_driver.cpp
  those that do not fit the cache are shared, and thin ones. 0 where any may be:
  with wider vectors than that was read for.
  """
  if WIDER in _instructions() or columns <= THIN:
    return 0
  return max(0, _cache() // 4 - columns * summed) // (columns + summed)


def einsum(equation: str, x: jax.Array, y: jax.Array) -> jax.Array | None:
  """einsum(equation, x, y) in float32; None where the compiler has to make it.

  That is where it is no product of matrices, or one of several that may be
  shared (see `rows_at_most`). It is one where the letters that x, y and the
  result do not all have form three runs, of what is summed over, of x's own and
  of y's own, one of which comes last in each of them. Operands of one dtype,
  float32 or bfloat16. They are read as they lie, and the result is written as
  it shall lie.
  """
  (a, b), out = sharding.split(equation)
  sizes = dict(zip(a + b, x.shape + y.shape, strict=True))
  shape = [sizes[c] for c in out]
  a, b, out = ("".join(c for c in s if sizes[c] > 1) for s in (a, b, out))
  each = [c for c in out if c in a and c in b]
  summed = "".join(c for c in a if c in b and c not in out)
  own_a = "".join(c for c in out if c not in b)
  own_b = "".join(c for c in out if c not in a)
  if own_a and out.endswith(own_a):
    a, b, x, y, own_a, own_b = b, a, y, x, own_b, own_a
  sides = [
    _Lying.of(letters, each, *matrix, sizes)
    for letters, matrix in (
      (a, (own_a, summed)),
      (b, (summed, own_b)),
      (out, (own_a, own_b)),
    )
  ]
  if not all(sides):
    return None
  x_lies, y_lies, z_lies = sides
  rows, columns, inner = (
    math.prod(sizes[c] for c in run) for run in (own_a, own_b, summed)
  )
  shared = not THIN < rows <= rows_at_most(columns, inner)
  if shared and each:
    return None
  turned = {"transpose_a": x_lies.turned, "transpose_b": y_lies.turned}
  z = jax.ffi.ffi_call(
    CALL,
    jax.ShapeDtypeStruct(z_lies.shape, jnp.float32),
    input_layouts=[x_lies.layout, y_lies.layout],
    output_layouts=z_lies.layout,
    custom_call_api_version=1,
    legacy_backend_config=json.dumps({"onednn_matmul_config": turned}),
    # One of several in a call, too, where it is made for each of many.
    vmap_method="sequential" if shared else "broadcast_all",
  )(x_lies.named(x), y_lies.named(y))
  return z_lies.unnamed(z).reshape(shape)


class _Lying(NamedTuple):
  """An array as the library names its axes, and as they lie in memory."""

  shape: tuple[int, ...]  # of the axes as they are named, a matrix's last
  layout: tuple[int, ...]  # the axes as they lie, the outermost first
  turned: bool  # whether the matrix is named with its columns first

  @classmethod
  def of(
    cls, letters: str, each: list[str], rows: str, columns: str, sizes
  ) -> "_Lying | None":
    """With an axis for each of `each`, one for the rows and the columns."""
    if not (rows and columns and letters.endswith((rows, columns))):
      return None
    turned = letters.endswith(rows)
    runs = [*each, *((columns, rows) if turned else (rows, columns))]
    whole = len("".join(runs)) == len(letters)
    if not (whole and all(run in letters for run in runs)):
      return None
    lie = sorted(range(len(runs)), key=lambda i: letters.index(runs[i]))
    shape = tuple(math.prod(sizes[c] for c in run) for run in runs)
    return cls(shape, tuple(lie), turned)

  def named(self, x: jax.Array) -> jax.Array:
    x = x.reshape([self.shape[i] for i in self.layout])
    return x.transpose([self.layout.index(i) for i in range(x.ndim)])

  def unnamed(self, x: jax.Array) -> jax.Array:
    x = x.transpose(self.layout)
    if self.layout == tuple(sorted(self.layout)):
      return x
    # Held, or the compiler moves the transposition on and copies for it.
    return jax.lax.optimization_barrier(x)
