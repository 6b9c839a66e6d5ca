"""Convolutions whose gradients are products over the taps of the kernel.

The compiler has the gradient for the weights as a convolution with a kernel as
large as the image, beside two transpositions of all the weights; and in the
gradient for what was read it multiplies with the zeros that a stride puts
between the places of dy. Here both are products of matrices, and what each tap
reads or writes is copied for them.

oneDNN convolves too, either way round, by the name that the compiler has for
the call. What the call's settings mean is known for VERSIONS alone.
"""

import functools
import json
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jaxlib
from jax import lax

from aigc_jax.layers.cpu import onednn
from aigc_jax.layers.cpu.products import multiplied, turned, weight_gradient

CALL = "__onednn$convolution"
# Of jaxlib. It cannot be tried: settings that are meant otherwise end the
# process.
VERSIONS = ("0.10.",)
FEW = 4  # places for each channel; up to so many, all taps are one product
NARROW = 128  # channels of either side; up to so many, taps share copies
IMAGE = 16  # channels below which the compiler's own gradient is faster


class How(NamedTuple):
  """around: zeros before and after rows and columns."""

  stride: int
  around: tuple[int, int]


def convolve(
  formula: Callable,
  x_BYXC: jax.Array,
  w_YXCD: jax.Array,
  stride: int,
  around: tuple[int, int],
) -> jax.Array:
  """formula(x, w, stride, around), in float32 with gradients of its own."""
  if not x_BYXC.dtype == w_YXCD.dtype == jnp.float32:
    return formula(x_BYXC, w_YXCD, stride, around)
  return _convolved(formula, How(stride, around), x_BYXC, w_YXCD)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _convolved(formula, how: How, x_BYXC, w_YXCD):
  if _by_onednn():
    return called(x_BYXC, w_YXCD, how)
  return formula(x_BYXC, w_YXCD, *how)


def _forward(formula, how: How, x, w):
  return _convolved(formula, how, x, w), (x, w)


def _backward(formula, how: How, kept, dy):
  x, w = kept
  _, derived = jax.vjp(lambda x, w: formula(x, w, *how), x, w)
  last, C = w.shape[0] - 1, w.shape[2]
  if how.stride > 1 or _are_few(dy, C):
    dx = of_what_is_read(x.shape, w, dy, how)
  elif _by_onednn():
    before, after = how.around
    back = How(1, (last - before, last - after))
    dx = called(dy, _reversed(w), back, reads=3)
  else:
    dx = derived(dy)[0]
  if C < IMAGE and not onednn.chosen():
    return dx, derived(dy)[1]
  return dx, of_weights(x, w, dy, how)


_convolved.defvjp(_forward, _backward)


def _by_onednn() -> bool:
  return onednn.chosen() and jaxlib.__version__.startswith(VERSIONS)


def _are_few(dy_BYXD: jax.Array, channels: int) -> bool:
  return math.prod(dy_BYXD.shape[:3]) <= FEW * channels


def _reversed(w_YXCD: jax.Array) -> jax.Array:
  """The taps the other way round; what the compiler has for it is slower."""
  taps = w_YXCD.reshape(-1, *w_YXCD.shape[2:])
  return jnp.stack(list(taps)[::-1]).reshape(w_YXCD.shape)


def of_weights(x_BYXC, w_YXCD, dy_BYXD, how: How) -> jax.Array:
  """The gradient for the weights.

  Of few places all taps are one product, so that there is something to sum
  over. Of many each tap has its own, whose copy of x stays in caches; between
  few channels copies would take longer than products, and have fewer.
  """
  C, D = w_YXCD.shape[2:]
  stride = how.stride
  few = _are_few(dy_BYXD, C)
  if stride == 1 and min(C, D) <= NARROW and len(w_YXCD) > 1 and not few:
    return _of_narrow_weights(x_BYXC, w_YXCD, dy_BYXD, how)
  corners, (y_end, x_end) = _reach(w_YXCD, dy_BYXD, stride)
  x_BYXC = _padded(x_BYXC, w_YXCD, (y_end, x_end), how.around[0])
  taps_MC = [
    x_BYXC[:, y : y + y_end : stride, x : x + x_end : stride].reshape(-1, C)
    for y, x in corners
  ]
  dy_MD = dy_BYXD.reshape(-1, D)
  if few:
    joined_MC = _held(jnp.concatenate(taps_MC, axis=1))
    dw = weight_gradient("MC,CD->MD", joined_MC, dy_MD)
  elif onednn.chosen():
    dw = jnp.stack([_product("MC,MD->CD", _held(x), dy_MD) for x in taps_MC])
  else:
    dy_DM = turned(dy_MD)
    dw_DYC = jnp.stack([dy_DM @ _held(x) for x in taps_MC], axis=1)
    dw = turned(dw_DYC.reshape(D, -1))
  return dw.reshape(w_YXCD.shape)


def _of_narrow_weights(x_BYXC, w_YXCD, dy_BYXD, how: How) -> jax.Array:
  """The same from a copy of x for each column of taps, of dy for each row.

  Beside a copy of x moved along its columns, copies of dy moved along its rows
  give all taps of that column: each has zeros where the other reaches beyond.
  """
  K, _, C, D = w_YXCD.shape
  X, (before, after), none = dy_BYXD.shape[2], how.around, (0, 0, 0)
  zero = jnp.float32(0)

  def moved(j: int):
    columns = (before - j, X + j - before - x_BYXC.shape[2], 0)
    return lax.pad(x_BYXC, zero, [none, (before, after, 0), columns, none])

  rows = [
    lax.pad(dy_BYXD, zero, [none, (i, K - 1 - i, 0), none, none])
    for i in range(K)
  ]
  dy_ME = _held(jnp.concatenate(rows, axis=-1)).reshape(-1, K * D)
  x_MB = _held(jnp.concatenate([moved(j) for j in range(K)], axis=-1))
  dw_XCE = weight_gradient("MB,BE->ME", x_MB.reshape(-1, K * C), dy_ME)
  dw_XCYD = dw_XCE.reshape(K, C, K, D)
  return dw_XCYD.transpose(2, 0, 1, 3)


def of_what_is_read(shape, w_YXCD, dy_BYXD, how: How) -> jax.Array:
  """The gradient for x of this shape: what each tap gives, where it read."""
  C, D = w_YXCD.shape[2:]
  corners, ends = _reach(w_YXCD, dy_BYXD, how.stride)
  given = _product("MD,CD->MC", dy_BYXD.reshape(-1, D), w_YXCD.reshape(-1, D))
  given = _held(given).reshape(*dy_BYXD.shape[:3], len(corners), C)
  dx = jnp.zeros(shape, jnp.float32)
  for i, corner in enumerate(corners):
    places = [(0, 0, 0)]
    for start, end, size in zip(corner, ends, shape[1:3], strict=True):
      before = start - how.around[0]
      places.append((before, size - before - end, how.stride - 1))
    dx += lax.pad(given[:, :, :, i], jnp.float32(0), [*places, (0, 0, 0)])
  return dx


def _reach(w_YXCD, dy_BYXD, stride: int):
  """(row and column of each tap, how far the places of one go from there)."""
  width = w_YXCD.shape[0]
  corners = [(y, x) for y in range(width) for x in range(width)]
  return corners, [(n - 1) * stride + 1 for n in dy_BYXD.shape[1:3]]


def _padded(x_BYXC, w_YXCD, ends, before: int) -> jax.Array:
  """x with zeros around it, as far as the taps reach and no further."""
  width = w_YXCD.shape[0]
  around = [
    (before, end + width - 1 - before - size, 0)
    for end, size in zip(ends, x_BYXC.shape[1:3], strict=True)
  ]
  if not any(sum(n) for n in around) and not before:
    return x_BYXC
  none = (0, 0, 0)
  return _held(lax.pad(x_BYXC, jnp.float32(0), [none, *around, none]))


def _product(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
  return multiplied(equation, x, y, jnp.float32)


def _held(x: jax.Array) -> jax.Array:
  """Written out once, as it is, and not made again by what reads it."""
  return lax.optimization_barrier(x)


def called(
  x_BYXC: jax.Array, w_YXCD: jax.Array, how: How, reads: int = 2
) -> jax.Array:
  """A convolution by oneDNN.

  reads: which axis of w is that of x; 3, and the result has its C.
  """
  makes = 5 - reads
  shape = [
    (size + sum(how.around) - w_YXCD.shape[0]) // how.stride + 1
    for size in x_BYXC.shape[1:3]
  ]
  data = {"batch_dim": 0, "feature_dim": 3, "spatial_dims": [1, 2]}
  kernel = {
    "input_feature_dim": reads, "output_feature_dim": makes,
    "spatial_dims": [0, 1],
  }  # fmt: skip
  window = {
    "pad_left": [how.around[0]] * 2, "pad_right": [how.around[1]] * 2,
    "strides": [how.stride] * 2, "window_dilations": [1, 1],
  }  # fmt: skip
  config = {
    "dims": 4, "input": {"data": data}, "kernel": {"filter": kernel},
    "output": {"data": data}, "window": window, "feature_groups": 1,
  }  # fmt: skip
  as_it_lies = (0, 1, 2, 3)
  result = (x_BYXC.shape[0], *shape, w_YXCD.shape[makes])
  return jax.ffi.ffi_call(
    CALL,
    jax.ShapeDtypeStruct(result, jnp.float32),
    input_layouts=[as_it_lies] * 2,
    output_layouts=as_it_lies,
    custom_call_api_version=1,
    legacy_backend_config=json.dumps({"onednn_conv_config": config}),
    vmap_method="sequential",
  )(x_BYXC, w_YXCD)
