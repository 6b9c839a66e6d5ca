"""Positions: rotary, learned, sinusoidal."""

import functools
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from aigc_jax import errors, sharding, signature
from aigc_jax.layers.einsum import drawn
from aigc_jax.layers.forms import are_plain
from aigc_jax.layers.lookup import lookup

Rotation = tuple[jax.Array, jax.Array]  # cos and sin, (B or 1, T, H/2) float32


def frequencies(
  head_dim: int, base: float, scaling: Mapping | None, length: int = 0
) -> np.ndarray:
  """Radians per position for each of head_dim/2 planes (arXiv:2104.09864).

  head_dim: how many components of a head are turned. length: how many
  positions there may be, on which some scalings depend; 0 is few.
  Raises BadConfig for a scaling that is none, or that gives no frequencies.
  """
  planes = np.arange(0, head_dim, 2, dtype=np.float64)
  with np.errstate(all="ignore"):
    found = 1.0 / (base ** (planes / head_dim))
    if scaling is not None:
      found = _scaled(found, scaling, length)
  if not np.all((0 < found) & (found < np.inf)):
    raise errors.BadConfig(
      f"a rotary base of {base:g} and model.rotary_scaling={scaling} turn "
      "positions by no finite angle above 0: choose other numbers"
    )
  return found


def _scaled(radians: np.ndarray, scaling: Mapping, length: int) -> np.ndarray:
  where = "model.rotary_scaling"
  rest = {k: v for k, v in scaling.items() if k != LONGER}
  scale, values = signature.kind_of(where, rest, SCALINGS)
  signature.check_call(scale, where, values)
  more = {"length": length} if scale in BY_LENGTH else {}
  try:
    return scale(radians, *more.values(), **values)
  except (ArithmeticError, ValueError):  # math's own, of a number out of range
    return np.full_like(radians, np.nan)


def _linear(radians: np.ndarray, *, factor: float) -> np.ndarray:
  """Position interpolation, arXiv:2306.15595."""
  return radians / factor


def _llama3(
  radians: np.ndarray,
  *,
  factor: float,
  low_factor: float,
  high_factor: float,
  original_length: int,
) -> np.ndarray:
  """Slow planes slowed by `factor`, fast ones kept, between them a blend.

  As released with Llama 3.1 (arXiv:2407.21783, section 3.1.2 on long context).
  """
  wavelengths = 2 * math.pi / radians
  blend = (original_length / wavelengths - low_factor) / (
    high_factor - low_factor
  )
  blend = np.clip(blend, 0.0, 1.0)
  return (1 - blend) * radians / factor + blend * radians


def _yarn(
  radians: np.ndarray,
  *,
  factor: float,
  fast: float,
  slow: float,
  original_length: int,
  whole: bool,
) -> np.ndarray:
  """Planes that turn less than `slow` times slowed, more than `fast` kept.

  Turns are those within `original_length`; between the two a blend, linear in
  the number of the plane, whose ends are whole numbers where `whole` says so.
  YaRN, arXiv:2309.00071, section 3.2; the temperature of its section 3.4 is
  part of the attention's scale.
  """
  planes = len(radians)
  rate = -np.log(radians[1]) if planes > 1 else 1.0
  rate = rate or 1e-30  # a base of 1: all planes are one

  def plane(turns: float) -> float:
    return math.log(original_length / (turns * 2 * math.pi)) / rate

  first, last = plane(fast), plane(slow)
  if whole:
    first, last = math.floor(first), math.ceil(last)
  first, last = max(first, 0), min(last, 2 * planes - 1)
  if first == last:
    last += 0.001
  slowed = np.clip((np.arange(planes) - first) / (last - first), 0.0, 1.0)
  return slowed * radians / factor + (1 - slowed) * radians


def _dynamic(
  radians: np.ndarray, length: int, /, *, factor: float, original_length: int
) -> np.ndarray:
  """The base grows with the length, once that is beyond the original one.

  The fastest plane is kept, the slowest turns as far within the length as it
  did within the original, times what is above a factor of 1: dynamic NTK, of
  which arXiv:2309.00071 tells in its appendix B.
  """
  beyond = max(length, original_length) / original_length
  growth = factor * beyond - (factor - 1)
  return radians / growth ** (np.arange(len(radians)) / (len(radians) - 1))


def _longrope(
  radians: np.ndarray,
  length: int,
  /,
  *,
  short: Sequence[float],
  long: Sequence[float],
  original_length: int,
) -> np.ndarray:
  """Each plane slowed by a factor of its own, another where there are many.

  Found by search, for what is no longer than the original length and for what
  is: LongRoPE, arXiv:2402.13753.
  """
  for name, factors in (("short", short), ("long", long)):
    if len(factors) != len(radians):
      raise errors.BadConfig(
        f"model.rotary_scaling.{name} has {len(factors)} factors: expected "
        f"one for each of the {len(radians)} planes that are turned"
      )
  factors = long if length > original_length else short
  return radians / np.asarray(factors, np.float64)


SCALINGS = {
  "linear": _linear,
  "llama3": _llama3,
  "yarn": _yarn,
  "dynamic": _dynamic,
  "longrope": _longrope,
}
# By these positions are turned otherwise where there are many of them: the
# window in training, what a cache has room for in decoding.
BY_LENGTH = (_dynamic, _longrope)
# Of a scaling: by how much what is turned becomes longer, in queries and in
# keys, where that is not a matter of the attention's scale.
LONGER = "attention_factor"


def rotation(
  positions_BT: jax.Array, radians: np.ndarray, longer: float = 1.0
) -> Rotation:
  """cos and sin of position x frequency, once for all layers, x `longer`."""
  angle_BTH = positions_BT[..., None].astype(jnp.float32) * jnp.asarray(
    radians, jnp.float32
  )
  cos, sin = jnp.cos(angle_BTH), jnp.sin(angle_BTH)
  return (cos, sin) if longer == 1 else (cos * longer, sin * longer)


def rotate(x_BTNH: jax.Array, turn: Rotation) -> jax.Array:
  """Turns plane i of P, made of components i and i + P, by its angle.

  Components from 2 P on stay as they are.
  """
  turned = 2 * turn[0].shape[-1]
  if turned < x_BTNH.shape[-1]:
    first, rest = jnp.split(x_BTNH, [turned], axis=-1)
    return jnp.concatenate([rotate(first, turn), rest], axis=-1)
  cos, sin = (a[:, :, None, :] for a in turn)

  def formula(x):
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    y = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return y.astype(x.dtype)

  return jax.checkpoint(formula, prevent_cse=False)(x_BTNH)


class LearnedPositions(nn.Module):
  """One learned vector for each of `length` positions (GPT-2)."""

  length: int
  dim: int
  dtype: jnp.dtype
  std: float = 0.0
  gradient: str = "auto"  # as `lookup` takes it
  start: int = 0  # rows before that of position 0, which nothing reads

  @nn.compact
  def __call__(self, positions_BT: jax.Array, fixed: bool) -> jax.Array:
    """(B or 1, T, D); `fixed` says that the positions are 0, 1, ..., T-1."""
    init = drawn("TD", self.dim, self.std)
    rows = self.start + self.length
    table = self.param("table", init, (rows, self.dim))
    T = positions_BT.shape[-1]
    if T > self.length:
      raise errors.BadConfig(
        f"length {T} exceeds the {self.length} learned positions of the "
        f"model: lower data.length, or raise model.position_length"
      )
    if fixed:  # a slice, whose gradient is a sum and not a scatter
      table = table[self.start : self.start + T]
      return table[None].astype(self.dtype)
    positions_BT = positions_BT + self.start
    return lookup(table, positions_BT, self.dtype, self.gradient)


def for_rows(x_BTD: jax.Array, rows: int) -> jax.Array:
  """x, that many times where it is one row for all; its gradient a product.

  The compiler's own sum over the rows takes twenty times as long on a CPU. A
  GPU's would lay all activations of the model out with the rows innermost to
  suit that one sum, and each norm would pay for it. In bfloat16 on a CPU what
  is rounded where is left as it is.
  """
  on_cpu = sharding.platform() == "cpu"
  as_it_is = on_cpu and (x_BTD.dtype != jnp.float32 or not sharding.alone())
  if len(x_BTD) == rows or as_it_is or are_plain():
    return x_BTD
  return _repeated(x_BTD, rows)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _repeated(x_BTD, rows: int):
  return jnp.broadcast_to(x_BTD, (rows, *x_BTD.shape[1:]))


def _repeated_forward(x_BTD, rows):
  return _repeated(x_BTD, rows), None


def _repeated_backward(rows, _, dy_BTD):
  # Of float32 no bits are to be dropped. Of bfloat16 none would be, but a GPU's
  # compiler takes a product that is to be exact for the sum that it is.
  exact = dy_BTD.dtype == jnp.float32
  dx_ATD = jnp.einsum(
    "AB,BTD->ATD", jnp.ones((1, rows), dy_BTD.dtype), dy_BTD,
    precision=jax.lax.Precision.HIGHEST if exact else None,
    preferred_element_type=jnp.float32,
  )  # fmt: skip
  return (dx_ATD.astype(dy_BTD.dtype),)


_repeated.defvjp(_repeated_forward, _repeated_backward)


def sinusoids(
  positions_BT: jax.Array, dim: int, dtype, closed: bool = True
) -> jax.Array:
  """The fixed positions of arXiv:1706.03762, sines then cosines, (B, T, D).

  closed: the slowest rate is 1 / 10,000, as in the authors' own code; else it
  is the one before that, as the paper writes and Marian does.
  """
  half = dim // 2
  last = max(half - 1, 1) if closed else half
  rates = np.exp(-math.log(10_000.0) * np.arange(half) / last)
  angle = positions_BT[..., None].astype(jnp.float32) * jnp.asarray(
    rates, jnp.float32
  )
  both = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
  return jnp.pad(both, ((0, 0), (0, 0), (0, dim % 2))).astype(dtype)
