"""Quantisers: vectors to codes of a finite set, and back.

A codebook whose vectors are learnt by their gradient (VQ-VAE, arXiv:1711.00937)
or as running means of what is assigned to them (its appendix A.1; no gradient
moves them, a report does, once a step and after the step has read them); and a
grid that needs no table (FSQ, arXiv:2309.15505).
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from aigc_jax import sharding
from aigc_jax.layers.einsum import drawn
from aigc_jax.layers.lookup import lookup, summed_by_id
from aigc_jax.layers.noise import row_keys
from aigc_jax.layers.report import STATS, report, reporting
from aigc_jax.metrics import Mean

NOTHING = 1e-20  # a running count below it has seen no vector
USED = 0.1  # of an even share of all vectors, from which on a code is in use
MEMORY = 0.99  # of running counts that are for the record alone


@struct.dataclass
class Quantized:
  """Codes (B, T) int32 and their vectors (B, T, D) float32.

  The vectors' gradient goes to what was quantised as if nothing had been done.
  commitment_B: the mean square, over places and channels, of what was quantised
  less its vector, which moves the former alone; codebook_B: the same, which
  moves the codebook alone, and 0 where no gradient does.
  """

  codes_BT: jax.Array
  vectors_BTD: jax.Array
  commitment_B: jax.Array
  codebook_B: jax.Array


@struct.dataclass
class Counted:
  """A report: how often each code (V,) came in a batch."""

  counts: Mean  # its weight: of how many vectors
  decay: float = struct.field(pytree_node=False)

  def move(self, old: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The running counts, a share 1 - decay of the way to the batch's."""
    return {"counts": self._kept(old["counts"], self.counts.sum)}

  def _kept(self, old: jax.Array, new: jax.Array) -> jax.Array:
    return self.decay * old + (1 - self.decay) * new


@struct.dataclass
class Assigned(Counted):
  """A report that moves a codebook too, to the mean of what it was given.

  sums (V, D): of the vectors of each code. found (V, D): sums of those that
  were drawn for each code, and how many there were (V,). revive: the share of
  an even use below which a code is dead, and takes what was drawn for it.
  """

  sums: jax.Array
  found: Mean
  revive: float = struct.field(pytree_node=False)
  cosine: bool = struct.field(pytree_node=False)

  def move(self, old: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The codebook after a step. What was drawn is taken if it is one vector.

    A sum of one vector and of zeros has the bits of the vector, however the
    batch was parted and over however many devices.
    """
    counts_V = self._kept(old["counts"], self.counts.sum)
    sums_VD = self._kept(old["sums"], self.sums)
    seen_V = counts_V > NOTHING
    means_VD = sums_VD / jnp.where(seen_V, counts_V, 1.0)[:, None]
    if self.cosine:
      means_VD = unit(means_VD)
    table_VD = jnp.where(seen_V[:, None], means_VD, old["table"])
    share = jnp.sum(counts_V) / len(counts_V)
    born_V = (counts_V < self.revive * share) & (self.found.weight == 1)
    born_V1 = born_V[:, None]
    return {
      "table": jnp.where(born_V1, self.found.sum, table_VD),
      "counts": jnp.where(born_V, share, counts_V),
      "sums": jnp.where(born_V1, share * self.found.sum, sums_VD),
      "size": jnp.full_like(old["size"], self.counts.weight),
    }


class Codebook(nn.Module):
  """The nearest of `codes` vectors of width `dim` for each of (B, T, D).

  decay: of the running means that the vectors are; None leaves them to their
  gradient. revive: see `Assigned`; 0 is never. cosine: vectors, and what is
  quantised, have length one, so that the nearest has the largest cosine.
  """

  codes: int
  dim: int
  decay: float | None = None
  revive: float = 0.0
  cosine: bool = False

  @property
  def draws(self) -> bool:
    """Whether it takes the rows' keys."""
    return self.decay is not None and self.revive > 0

  def setup(self):
    shape = (self.codes, self.dim)
    fresh = drawn("VD", self.dim, 0.0)
    if self.decay is None:
      self.weights = self.param("table", fresh, shape)
    else:
      zeros = sharding.named(jnp.zeros, "VD")
      self.means = self.variable(STATS, "table", self._drawn, fresh, shape)
      self.sums = self.variable(STATS, "sums", zeros, shape)
      self.size = self.variable(
        STATS, "size", sharding.named(jnp.zeros, "."), (1,)
      )
    self.counts = counts_of(self, self.codes)

  def _drawn(self, fresh, shape) -> jax.Array:
    return fresh(self.make_rng("params"), shape)

  def table(self) -> jax.Array:
    """(V, D) float32."""
    table_VD = self.weights if self.decay is None else self.means.value
    return unit(table_VD) if self.cosine else table_VD

  def __call__(
    self,
    x_BTD: jax.Array,
    weights_B: jax.Array,
    draw_B2: jax.Array | None = None,
  ) -> Quantized:
    """weights: 0 of rows that count for nothing. draw: as of layers/noise.py.

    Only where it `draws`, and is asked to report, are the keys read.
    """
    x_BTD = self._scaled(x_BTD)
    table_VD = self.table()
    codes_BT = nearest(x_BTD, table_VD)
    vectors_BTD = lookup(table_VD, codes_BT, jnp.float32)
    codebook_B = jnp.zeros(len(x_BTD))
    if self.decay is None:
      codebook_B = _apart(vectors_BTD, jax.lax.stop_gradient(x_BTD))
    if reporting(self):
      self._report(jax.lax.stop_gradient(x_BTD), codes_BT, weights_B, draw_B2)
    return Quantized(
      codes_BT,
      straight_through(x_BTD, vectors_BTD),
      _apart(x_BTD, jax.lax.stop_gradient(vectors_BTD)),
      codebook_B,
    )

  def encode(self, x_BTD: jax.Array) -> jax.Array:
    """Codes (B, T) alone, of which nothing is reported."""
    return nearest(self._scaled(x_BTD), self.table())

  def _scaled(self, x_BTD: jax.Array) -> jax.Array:
    x_BTD = x_BTD.astype(jnp.float32)
    return unit(x_BTD) if self.cosine else x_BTD

  def vectors(self, codes_BT: jax.Array) -> jax.Array:
    """(B, T, D), of codes."""
    return lookup(self.table(), codes_BT, jnp.float32)

  def _report(self, x_BTD, codes_BT, weights_B, draw_B2) -> None:
    counts = count(codes_BT, weights_B, self.codes)
    if self.decay is None:
      report(self, "use", Counted(counts, MEMORY))
    else:
      counted_BT = jnp.where(weights_B[:, None] > 0, codes_BT, self.codes)
      sums_VD = summed_by_id(counted_BT, x_BTD, self.codes)
      found = self._candidates(x_BTD, weights_B, draw_B2)
      report(
        self, "use",
        Assigned(counts, self.decay, sums_VD, found, self.revive, self.cosine),
      )  # fmt: skip
    report_use(self, self.counts.value, counts.weight)

  def _candidates(self, x_BTD, weights_B, draw_B2) -> Mean:
    """Vectors of the batch, each drawn for one code or for none.

    By the keys of their rows, so many that a code has one of a batch on
    average; the size of a batch is what that of the last step was.
    """
    V, (B, T, D) = self.codes, x_BTD.shape
    if not self.draws:
      return Mean(jnp.zeros((V, D)), jnp.zeros(V))
    keys_B = row_keys(draw_B2, "revive")
    bits_BT2 = jax.vmap(lambda key: jax.random.bits(key, (T, 2)))(keys_B)
    chance = V / jnp.maximum(self.size.value[0], 1.0)
    drawn_BT = bits_BT2[..., 0] < jnp.minimum(chance, 1.0) * 2.0**32
    drawn_BT &= weights_B[:, None] > 0
    ids_BT = (bits_BT2[..., 1] % V).astype(jnp.int32)
    ids_BT = jnp.where(drawn_BT, ids_BT, V)
    each_BT1 = jnp.ones((B, T, 1))
    return Mean(
      summed_by_id(ids_BT, x_BTD, V), summed_by_id(ids_BT, each_BT1, V)[:, 0]
    )


class Grid(nn.Module):
  """A code for each point of a grid: FSQ, with `levels` values by channel.

  Each channel is bounded, and rounded to as many values from -1 to 1; there is
  no table, and nothing to collapse. A code is the number that the channels'
  values are the digits of, the first channel's the lowest.
  """

  levels: tuple[int, ...]

  draws = False  # it takes no keys

  @property
  def codes(self) -> int:
    return math.prod(self.levels)

  @property
  def dim(self) -> int:
    return len(self.levels)

  def setup(self):
    self.counts = counts_of(self, self.codes)

  def __call__(
    self,
    x_BTD: jax.Array,
    weights_B: jax.Array,
    draw_B2: jax.Array | None = None,
  ) -> Quantized:
    bounded = self._bounded(x_BTD)
    codes_BT = self._rounded(bounded)
    if reporting(self):
      counts = count(codes_BT, weights_B, self.codes)
      report(self, "use", Counted(counts, MEMORY))
      report_use(self, self.counts.value, counts.weight)
    zeros_B = jnp.zeros(len(x_BTD))
    halves = np.float32(np.asarray(self.levels) // 2)
    vectors = straight_through(bounded / halves, self.vectors(codes_BT))
    return Quantized(codes_BT, vectors, zeros_B, zeros_B)

  def encode(self, x_BTD: jax.Array) -> jax.Array:
    """Codes (B, T) alone, of which nothing is reported."""
    return self._rounded(self._bounded(x_BTD))

  def _bounded(self, x_BTD: jax.Array) -> jax.Array:
    """x, each channel within its levels, one apart."""
    levels_D = np.asarray(self.levels)
    # Even numbers of levels lie half a step aside, so that 0 is one of them.
    half = (levels_D - 1) * (1 - 1e-3) / 2
    aside = np.where(levels_D % 2 == 0, 0.5, 0.0)
    x = x_BTD.astype(jnp.float32) + np.float32(np.arctanh(aside / half))
    return jnp.tanh(x) * np.float32(half) - np.float32(aside)

  def _rounded(self, bounded: jax.Array) -> jax.Array:
    whole = jnp.round(jax.lax.stop_gradient(bounded)).astype(jnp.int32)
    digits = whole + np.asarray(self.levels) // 2
    return jnp.sum(digits * self._places(), axis=-1)

  def vectors(self, codes_BT: jax.Array) -> jax.Array:
    """(B, T, D), of codes."""
    levels_D = np.asarray(self.levels)
    digits = codes_BT[..., None] // self._places() % levels_D
    return (digits - levels_D // 2).astype(jnp.float32) / (levels_D // 2)

  def _places(self) -> np.ndarray:
    below = itertools.accumulate((1, *self.levels[:-1]), lambda a, b: a * b)
    return np.asarray(list(below), np.int32)


def nearest(x_BTD: jax.Array, table_VD: jax.Array) -> jax.Array:
  """The row of the table that is nearest to each of x, (B, T) int32.

  Of several the first.
  """
  x_BTD, table_VD = (jax.lax.stop_gradient(a) for a in (x_BTD, table_VD))
  # Of float32 no bits are to be dropped, as GPUs and TPUs do by default.
  product_BTV = jnp.einsum(
    "BTD,VD->BTV", x_BTD, table_VD, precision=jax.lax.Precision.HIGHEST
  )
  far_BTV = jnp.sum(table_VD**2, axis=-1) - 2 * product_BTV
  found = jnp.argmin(sharding.constrain(far_BTV, "BTV"), axis=-1)
  return found.astype(jnp.int32)


def straight_through(x: jax.Array, vectors: jax.Array) -> jax.Array:
  """The vectors, to the bit, with the gradient of x."""
  return (x - jax.lax.stop_gradient(x)) + jax.lax.stop_gradient(vectors)


def unit(x: jax.Array) -> jax.Array:
  """x over its length along the last axis; what has none stays."""
  square = jnp.sum(x**2, axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(square, NOTHING))


def _apart(a: jax.Array, b: jax.Array) -> jax.Array:
  """(B,): the mean square of a - b over all axes but the first."""
  return jnp.mean((a - b) ** 2, axis=(1, 2))


def counts_of(module: nn.Module, codes: int):
  """The module's running counts (V,) of its codes."""
  return module.variable(
    STATS, "counts", sharding.named(jnp.zeros, "V"), (codes,)
  )


def count(codes_BT: jax.Array, weights_B: jax.Array, V: int) -> Mean:
  """How often each code came in rows that count, and how many there were."""
  real_B = (weights_B > 0).astype(jnp.float32)
  each_BT1 = jnp.broadcast_to(real_B[:, None, None], (*codes_BT.shape, 1))
  counts_V = summed_by_id(codes_BT, each_BT1, V)[:, 0]
  return Mean(counts_V, jnp.sum(real_B) * codes_BT.shape[1])


def report_use(module: nn.Module, counts_V: jax.Array, weight) -> None:
  """What the running counts say of the codebook's use, for the record.

  perplexity: exp of their entropy, from 1 to V; used: the share of codes that
  come at least a tenth as often as if all came alike. Before the first step
  they say nothing, which counts in no mean.
  """
  weight = jnp.where(jnp.sum(counts_V) > 0, weight, 0.0)
  shares_V = counts_V / jnp.maximum(jnp.sum(counts_V), NOTHING)
  found = {
    "perplexity": perplexity(counts_V),
    "used": jnp.mean(shares_V * len(counts_V) >= USED),
  }
  for name, value in found.items():
    report(module, name, Mean(value * weight, weight))


def perplexity(counts_V: jax.Array) -> jax.Array:
  """exp of the entropy of what came so often; 1 where nothing came."""
  shares_V = counts_V / jnp.maximum(jnp.sum(counts_V), NOTHING)
  return jnp.exp(jnp.sum(jax.scipy.special.entr(shares_V)))
