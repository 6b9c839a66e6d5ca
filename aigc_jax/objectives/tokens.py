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
from aigc_jax.layers.forms import are_counted, are_plain
from aigc_jax.layers.products import multiplied, weight_gradient
from aigc_jax.layers.readout import readout_of
from aigc_jax.layers.rounding import rounded
from aigc_jax.metrics import Mean, measured

Batch = Mapping[str, jax.Array]


LOGITS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class Terms(NamedTuple):
  """What the loss is made of besides arrays; constant under jit."""

  z_loss: float
  softcap: float
  rows: int | None  # tokens of one piece; None is all
  dtype: jnp.dtype = jnp.float32  # that logits are rounded to
  hits: bool = False  # whether right guesses are counted, in "hits"
  smoothing: float = 0.0  # share of the target that is any id


class Table(NamedTuple):
  """What features are multiplied by, and what is added to the logits."""

  w_VD: jax.Array
  bias_V: jax.Array | None


class Sums(NamedTuple):
  """Over tokens, each with its weight."""

  loss: jax.Array
  nll: jax.Array
  hits: jax.Array | None = None  # where the target is the first guess


def tokens(
  predict: Callable,
  batch: Batch,
  *,
  z_loss: float,
  chunk: int | None,
  logits: str = "float32",
  label_smoothing: float = 0.0,
) -> dict[str, Mean]:
  """Negative log likelihood of "targets" (B, T) under "weights" (B, T).

  Returns "nll" (nats per token) and "loss" = nll + z_loss * log(Z)**2
  (arXiv:2204.02311, section 5). With label_smoothing the loss, not "nll", is
  for a target that is any id of the vocabulary, each as likely, with that
  probability (arXiv:1512.00567). `chunk` is how many tokens' logits exist at
  once on a device; None means all of them. `logits` is what they are rounded
  to, in evaluation too: in bfloat16 half of the bytes move, as in models under
  autocast.

  Raises BadConfig for a dtype that is neither, or what is no probability.
  """
  if not 0 <= label_smoothing < 1:
    raise errors.BadConfig(
      f"objective.label_smoothing={label_smoothing}: expected 0 to below 1"
    )
  dtype = errors.choose(logits, LOGITS, "objective.logits")
  readout = readout_of(predict(batch))
  terms = Terms(
    z_loss, readout.softcap, chunk, dtype, smoothing=label_smoothing
  )
  sums, weight = of_readout(readout, batch, terms)
  return {"loss": Mean(sums.loss, weight), "nll": Mean(sums.nll, weight)}


def of_readout(readout, batch: Batch, terms: Terms) -> tuple[Sums, jax.Array]:
  """The sums for "targets" under "weights", and the sum of the weights.

  Both are of the shape of the readout's features without their last axis. Only
  the sum of the loss has a gradient; of the others none may be asked.
  """
  y_BT, w_BT = batch["targets"], batch["weights"].astype(jnp.float32)
  mesh = jax.sharding.get_abstract_mesh()
  sums = sharding.over_batch(
    functools.partial(summed, terms), mesh, (True, False, True, True)
  )(readout.features_BTD, Table(readout.table_VD, readout.bias_V), y_BT, w_BT)
  # The backward pass has the gradient of the loss and of nothing else.
  beside = jax.tree.map(measured, sums._replace(loss=None))
  return beside._replace(loss=sums.loss), jnp.sum(w_BT)


def summed(terms: Terms, x_BTD, table: Table, y_BT, w_BT) -> Sums:
  """The sums over the tokens; gradients of the loss for x and table."""
  run = _summed_formula if are_plain() else _summed
  return run(terms, x_BTD, table, y_BT, w_BT)


def _summed_formula(terms: Terms, x_BTD, table: Table, y_BT, w_BT) -> Sums:
  # Rounded here, on each device: what crosses devices, there and back, is the
  # float32 table and its float32 gradient.
  small = table._replace(w_VD=rounded(table.w_VD, x_BTD.dtype))

  def piece(sums, part):
    x, y, w = part
    found, _ = _losses(terms, x, small, y)
    return _added(sums, found, w), None

  parts = _pieces(terms.rows, x_BTD, y_BT, w_BT)
  return _each(piece, _zeros(terms), parts)[0]


_summed = jax.custom_vjp(_summed_formula, nondiff_argnums=(0,))


def _zeros(terms: Terms) -> Sums:
  zero = jnp.zeros((), jnp.float32)
  return Sums(zero, zero, zero if terms.hits else None)


def _added(sums: Sums, found: Sums, w) -> Sums:
  return jax.tree.map(lambda total, x: total + jnp.sum(x * w), sums, found)


def _losses(terms: Terms, x, table: Table, y):
  """(what is summed, per token; what the gradient needs: logits, log Z)."""
  z = _logits(terms.dtype, x, table)
  if terms.softcap:
    z = terms.softcap * jnp.tanh(z / terms.softcap)
  logz = _log_sum_exp(z)
  at_targets = _at_targets(z, y)[:, 0]
  nll = logz - at_targets
  hits = _is_first(z, at_targets, y) if terms.hits else None
  loss = nll + terms.z_loss * logz**2
  if terms.smoothing:
    mean = sums.total(lambda z: z, z)[:, 0] / z.shape[-1]
    loss = loss + terms.smoothing * (at_targets - mean)
  return Sums(loss, nll, hits), (z, logz)


def _is_first(z, at_targets, y):
  """Whether the targets (T,) are the argmax of the logits (T, V).

  Of equal ones that is the first. Were all of them right, a model that says
  nothing would always be, and one whose logits are rounded more often than not.
  """
  own = at_targets[:, None]
  earlier = lax.broadcasted_iota(y.dtype, z.shape, 1) < y[:, None]
  # What is no number is before all others, or it would be said to be right.
  before = ~(z <= own) | ((z == own) & earlier)
  return ~jnp.any(before, axis=-1) & jnp.isfinite(at_targets)


def _logits(dtype, x, table: Table):
  """(T, V) in float32, rounded to `dtype`."""
  equation = "TD,VD->TV"
  # Rounded as they leave the product, or a compiler omits what it makes of it.
  z = multiplied(equation, x, table.w_VD, dtype).astype(jnp.float32)
  if table.bias_V is not None:
    z = z + table.bias_V.astype(jnp.float32)
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


def _summed_forward(terms: Terms, x_BTD, table: Table, y_BT, w_BT):
  small = table._replace(w_VD=rounded(table.w_VD, x_BTD.dtype))

  def piece(carry, part):
    sums, gradient = carry
    x, y, w = part
    found, (z, logz) = _losses(terms, x, small, y)
    dz = _gradient(terms, z, logz, y, w, x.dtype)
    dx = multiplied("TV,VD->TD", dz, small.w_VD).astype(x.dtype)
    gradient = _added_gradient(gradient, x, dz)
    return (_added(sums, found, w), gradient), (dx, found.loss)

  start = (
    _zeros(terms),
    jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32), table),
  )
  parts = _pieces(terms.rows, x_BTD, y_BT, w_BT)
  (sums, gradient), (dx, _) = _each(piece, start, parts)
  count = y_BT.size
  dx_BTD = dx.reshape(-1, x_BTD.shape[-1])[:count].reshape(x_BTD.shape)
  return sums, (
    dx_BTD, jax.tree.map(lambda d, a: d.astype(a.dtype), gradient, table)
  )  # fmt: skip


def _added_gradient(gradient: Table, x, dz) -> Table:
  """With that of one piece, in float32."""
  w_VD = gradient.w_VD + weight_gradient("TD,VD->TV", x, dz)
  if gradient.bias_V is None:
    return Table(w_VD, None)
  return Table(w_VD, gradient.bias_V + jnp.sum(dz.astype(jnp.float32), axis=0))


def _gradient(terms: Terms, z, logz, y, w, dtype):
  """Of the loss of tokens that weigh `w`, for the logits before the cap."""

  vocab = z.shape[-1]

  def wanted(hit):
    return (1 - terms.smoothing) * hit + terms.smoothing / vocab

  def at(z, hit):
    soft = jnp.exp(z - logz[:, None])
    dz = soft * (1 + 2 * terms.z_loss * logz)[:, None]
    dz = dz - (wanted(hit) if terms.smoothing else hit)
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


def _summed_backward(terms: Terms, kept, cotangents: Sums):
  # Only the sum of the loss is differentiated; the others are for the record.
  gradients = jax.tree.map(lambda d: d * cotangents.loss.astype(d.dtype), kept)
  return *gradients, None, None


_summed.defvjp(_summed_forward, _summed_backward)


def _pieces(rows: int | None, x_BTD, y_BT, w_BT):
  """The tokens in pieces of `rows`, the last filled with weight zero."""
  D = x_BTD.shape[-1]
  x, y, w = x_BTD.reshape(-1, D), y_BT.reshape(-1), w_BT.reshape(-1)
  count = y.shape[0]
  # Counted is what tokens cost, and not what fills the last piece.
  rows = count if are_counted() else min(rows or count, count)
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
