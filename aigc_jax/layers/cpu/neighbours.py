"""The largest of 3 x 3 places at every other place, with a gradient by where.

The compiler looks for the place of each number of dy once more in one loop over
numbers, and writes them one by one. Here a comparison for each of the nine says
which is the first that is the largest, and each place reads what it gets.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax


def largest(formula: Callable, x_BYXC: jax.Array) -> jax.Array:
  """formula(x), the largest of 3 x 3 at every other place."""
  return _largest(formula, x_BYXC)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _largest(formula, x_BYXC):
  return formula(x_BYXC)


def _forward(formula, x):
  y = formula(x)
  return y, (x, y)


def _backward(formula, kept, dy):
  x, y = kept
  which = _first(x, y)
  # One more of both behind the last ones: there is nothing that is read there.
  behind = [(0, 0, 0), (0, 1, 0), (0, 1, 0), (0, 0, 0)]
  which = lax.pad(which, jnp.int32(-1), behind)
  dy = lax.pad(dy, jnp.zeros((), dy.dtype), behind)
  which, dy = lax.optimization_barrier((which, dy))
  rows, columns = x.shape[1:3]
  # An even place is the middle of one window, an odd one the end of one and
  # the start of the next: (how many of them, [(window further, its place)]).
  of_rows, of_columns = (
    [(-(-n // 2), [(0, 1)]), (n // 2, [(0, 2), (1, 0)])]
    for n in (rows, columns)
  )
  lines = []
  for height, above in of_rows:
    parts = []
    for width, left in of_columns:
      part = 0
      for i, y_at in above:
        for j, x_at in left:
          at = slice(None), slice(i, i + height), slice(j, j + width)
          part += jnp.where(which[at] == 3 * y_at + x_at, dy[at], 0)
      parts.append(part)
    lines.append(_alternating(parts, axis=2))
  return (_alternating(lines, axis=1),)


_largest.defvjp(_forward, _backward)


def _first(x_BYXC: jax.Array, y_BYXC: jax.Array) -> jax.Array:
  """Which of the nine is the first that equals y, from 0; or -1."""
  rows, columns = y_BYXC.shape[1:3]
  around = [
    (1, 2 * n - size, 0)
    for n, size in zip((rows, columns), x_BYXC.shape[1:3], strict=True)
  ]
  none = (0, 0, 0)
  x_BYXC = lax.optimization_barrier(
    lax.pad(x_BYXC, jnp.array(-jnp.inf, x_BYXC.dtype), [none, *around, none])
  )
  which = jnp.full(y_BYXC.shape, -1, jnp.int32)
  for place in range(8, -1, -1):
    i, j = divmod(place, 3)
    tap = x_BYXC[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2]
    which = jnp.where(tap == y_BYXC, place, which)
  return which


def _alternating(parts: list[jax.Array], axis: int) -> jax.Array:
  """One of the first, one of the second, and so on, along an axis."""
  first, second = parts
  size = first.shape[axis] + second.shape[axis]
  if first.shape[axis] > second.shape[axis]:
    more = [(0, int(i == axis), 0) for i in range(second.ndim)]
    second = lax.pad(second, jnp.zeros((), second.dtype), more)
  both = jnp.stack([first, second], axis=axis + 1)
  shape = list(first.shape)
  shape[axis] *= 2
  return lax.slice_in_dim(both.reshape(shape), 0, size, axis=axis)
