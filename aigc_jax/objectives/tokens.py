"""Cross entropy of target tokens, without all the logits at once.

Features and table meet in pieces of the rows; each piece's gradient is taken
while its logits are at hand, so the backward pass multiplies nothing again.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from aigc_jax import errors, sharding
from aigc_jax.layers import sums
from aigc_jax.layers.forms import are_plain
from aigc_jax.layers.products import multiplied, weight_gradient
from aigc_jax.layers.rounding import rounded
from aigc_jax.metrics import Mean

Batch = Mapping[str, jax.Array]


LOGITS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class Terms(NamedTuple):
  """What the loss is made of besides arrays; constant under jit."""

  z_loss: float
  softcap: float
  rows: int  # tokens of one piece
  dtype: jnp.dtype = jnp.float32  # that logits are rounded to


def tokens(
  predict: Callable,
  batch: Batch,
  *,
  z_loss: float,
  chunk: int | None,
  logits: str = "float32",
) -> dict[str, Mean]:
  """Negative log likelihood of "targets" (B, T) under "weights" (B, T).

  Returns "nll" (nats per token) and "loss" = nll + z_loss * log(Z)**2
  (arXiv:2204.02311, section 5). `chunk` is how many tokens' logits exist at
  once on a device; None means all of them. `logits` is what they are rounded
  to, in evaluation too: in bfloat16 half of the bytes move, as in models under
  autocast.

  Raises BadConfig for a dtype that is neither.
  """
  dtype = errors.choose(logits, LOGITS, "objective.logits")
  readout = predict(batch)
  y_BT, w_BT = batch["targets"], batch["weights"].astype(jnp.float32)
  terms = Terms(z_loss, readout.softcap, chunk, dtype)
  mesh = jax.sharding.get_abstract_mesh()
  loss, nll = sharding.over_batch(
    functools.partial(summed, terms), mesh, (True, False, True, True)
  )(readout.features_BTD, readout.table_VD, y_BT, w_BT)
  weight = jnp.sum(w_BT)
  return {"loss": Mean(loss, weight), "nll": Mean(nll, weight)}


def summed(terms: Terms, x_BTD, table_VD, y_BT, w_BT):
  """(sum of loss, sum of nll) over the tokens; gradients for x and table."""
  run = _summed_formula if are_plain() else _summed
  return run(terms, x_BTD, table_VD, y_BT, w_BT)


def _summed_formula(terms: Terms, x_BTD, table_VD, y_BT, w_BT):
  # Rounded here, on each device: what crosses devices, there and back, is the
  # float32 table and its float32 gradient.
  small_VD = rounded(table_VD, x_BTD.dtype)

  def piece(sums, part):
    x, y, w = part
    loss, nll, _ = _losses(terms, x, small_VD, y)
    return (sums[0] + jnp.sum(loss * w), sums[1] + jnp.sum(nll * w)), None

  zero = jnp.zeros((), jnp.float32)
  parts = _pieces(terms.rows, x_BTD, y_BT, w_BT)
  return _each(piece, (zero, zero), parts)[0]


_summed = jax.custom_vjp(_summed_formula, nondiff_argnums=(0,))


def _losses(terms: Terms, x, table_VD, y):
  """Per token: loss, nll, and what the gradient needs (logits, log Z)."""
  z = _logits(terms.dtype, x, table_VD)
  if terms.softcap:
    z = terms.softcap * jnp.tanh(z / terms.softcap)
  logz = _log_sum_exp(z)
  nll = logz - _at_targets(z, y)[:, 0]
  return nll + terms.z_loss * logz**2, nll, (z, logz)


def _logits(dtype, x, table_VD):
  """(T, V) in float32, rounded to `dtype`."""
  equation = "TD,VD->TV"
  # Rounded as they leave the product, or a compiler omits what it makes of it.
  z = multiplied(equation, x, table_VD, dtype).astype(jnp.float32)
  if dtype == jnp.float32:
    return z
  bits = jnp.finfo(dtype)
  return lax.reduce_precision(z, bits.nexp, bits.nmant)


def _log_sum_exp(z):
  """(T,) of (T, V): jax.nn.logsumexp, but a CPU writes no exp() of them all.

  And a GPU reads them once, for the maximum and the sum together.
  """
  if sharding.platform() == "gpu":
    return _in_one_pass(z)
  top = jnp.max(z, axis=-1, keepdims=True)
  top = jnp.where(jnp.isfinite(top), top, 0.0)
  return (jnp.log(sums.total(lambda z: jnp.exp(z - top), z)) + top)[:, 0]


def _in_one_pass(z):
  """The same by pairs: a maximum, and a sum of exp() relative to it."""

  def joined(a, b):
    top = jnp.maximum(a[0], b[0])
    return top, a[1] * jnp.exp(a[0] - top) + b[1] * jnp.exp(b[0] - top)

  # Below all finite logits, and finite: a difference of infinities is none.
  none = jnp.finfo(jnp.float32).min, jnp.float32(0)
  pairs = (z, jnp.ones_like(z))
  top, total = lax.reduce(pairs, none, joined, (z.ndim - 1,))
  return jnp.log(total) + top


def _by_index() -> bool:
  """Whether targets are found by index and not by comparison.

  A comparison fuses with what is around it, and it shards. On a CPU it writes
  an array of the size of the logits, for one of them in each row.
  """
  return sharding.platform() == "cpu" and sharding.alone()


def _hits(z, y):
  """Where of the logits (T, V) the targets (T,) are."""
  return lax.broadcasted_iota(y.dtype, z.shape, 1) == y[:, None]


def _at_targets(z, y):
  """(T, 1) of (T, V)."""
  if _by_index():
    return jnp.take_along_axis(z, y[:, None], axis=-1)
  return jnp.sum(jnp.where(_hits(z, y), z, 0.0), axis=-1, keepdims=True)


def _summed_forward(terms: Terms, x_BTD, table_VD, y_BT, w_BT):
  small_VD = rounded(table_VD, x_BTD.dtype)

  def piece(carry, part):
    loss_sum, nll_sum, d_VD = carry
    x, y, w = part
    loss, nll, (z, logz) = _losses(terms, x, small_VD, y)
    dz = _gradient(terms, z, logz, y, w, x.dtype)
    dx = multiplied("TV,VD->TD", dz, small_VD).astype(x.dtype)
    d_VD = d_VD + weight_gradient("TD,VD->TV", x, dz)
    sums = (loss_sum + jnp.sum(loss * w), nll_sum + jnp.sum(nll * w))
    return (*sums, d_VD), (dx, loss)

  zero = jnp.zeros((), jnp.float32)
  start = (zero, zero, jnp.zeros(table_VD.shape, jnp.float32))
  parts = _pieces(terms.rows, x_BTD, y_BT, w_BT)
  (loss, nll, d_VD), (dx, _) = _each(piece, start, parts)
  count = y_BT.size
  dx_BTD = dx.reshape(-1, x_BTD.shape[-1])[:count].reshape(x_BTD.shape)
  return (loss, nll), (dx_BTD, d_VD.astype(table_VD.dtype))


def _gradient(terms: Terms, z, logz, y, w, dtype):
  """Of the loss of tokens that weigh `w`, for the logits before the cap."""

  def at(z, hit):
    soft = jnp.exp(z - logz[:, None])
    dz = soft * (1 + 2 * terms.z_loss * logz)[:, None] - hit
    if terms.softcap:
      dz = dz * (1 - (z / terms.softcap) ** 2)
    return rounded(dz * w[:, None], dtype)

  if not _by_index():
    return at(z, _hits(z, y))
  targets = at(_at_targets(z, y), 1.0)[:, 0]
  rows = jnp.arange(len(y), dtype=y.dtype)
  return (
    at(z, 0.0)
    .at[rows, y]
    .set(targets, unique_indices=True, indices_are_sorted=True)
  )


def _summed_backward(terms: Terms, kept, cotangents):
  # Only the sum of the loss is differentiated; nll is for the record.
  dx_BTD, d_VD = kept
  g, _ = cotangents
  return (
    dx_BTD * g.astype(dx_BTD.dtype),
    d_VD * g.astype(d_VD.dtype),
    None,
    None,
  )


_summed.defvjp(_summed_forward, _summed_backward)


def _pieces(rows: int, x_BTD, y_BT, w_BT):
  """The tokens in pieces of `rows`, the last filled with weight zero."""
  D = x_BTD.shape[-1]
  x, y, w = x_BTD.reshape(-1, D), y_BT.reshape(-1), w_BT.reshape(-1)
  count = y.shape[0]
  rows = min(rows or count, count)
  lacking = -count % rows
  if lacking:
    x = jnp.pad(x, ((0, lacking), (0, 0)))
    y, w = jnp.pad(y, (0, lacking)), jnp.pad(w, (0, lacking))
  return x.reshape(-1, rows, D), y.reshape(-1, rows), w.reshape(-1, rows)


def _each(piece, start, parts):
  """lax.scan over the pieces; a single one needs no loop."""
  if parts[1].shape[0] > 1:
    # Inside shard_map a sum differs between devices, and its zero must be of
    # that type too: made from the weights, it is.
    zero = parts[2][0, 0] * 0
    start = jax.tree.map(lambda x: x + zero.astype(x.dtype), start)
    return lax.scan(piece, start, parts)
  carry, out = piece(start, jax.tree.map(lambda a: a[0], parts))
  return carry, jax.tree.map(lambda a: a[None], out)
