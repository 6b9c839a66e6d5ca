"""Attention in blocks: what no query may see is never multiplied.

A block of queries meets only the keys up to its end where it is causal, so
about half of the scores are made. The backward pass makes them again
(arXiv:2205.14135). What would need them transposed takes the queries transposed
instead, which are smaller, and gives its result transposed; oneDNN takes
anything as it lies, the heads of one position beside each other too. A few rows
of the batch at a time, the scores stay in caches; with oneDNN more rows, where
fewer calls count for more, and of short rows the softmax is kept instead of
made again.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from aigc_jax import sharding
from aigc_jax.layers import sums
from aigc_jax.layers.cpu import onednn
from aigc_jax.layers.cpu.sums import LANES
from aigc_jax.layers.products import multiplied
from aigc_jax.layers.rounding import packed, unpacked
from aigc_jax.layers.visible import Visible

HIDDEN = -(2.0**30)  # a score that exp() turns into zero
BLOCKS = 4  # at most, so that programs stay short
SMALLEST = 128  # positions of a block, where there are that many
LARGEST = 512  # of one that sees all keys
CACHED = 2**22  # bytes of scores at a time: two cores' caches
CALLED = 2**25  # and with oneDNN, which has more of a cost at each call
KEPT = 8  # times a head's width: the longest row whose softmax is kept


class How(NamedTuple):
  """What does not depend on data; constant under jit."""

  scale: float
  softcap: float
  window: int | None
  size: int  # positions of a block
  causal: bool
  keys: int  # positions that are keys, without those that fill up
  whole: int  # with them
  q: str  # how queries lie, and all that is one vector for each of them
  k: str  # how keys and values lie
  keep: bool  # the softmax for the backward pass


APART = ("kgth", "ksh")  # each head's positions together
TOGETHER = ("tkgh", "skh")  # as projections write them


def attend(
  q_BTNH, k_BTKH, v_BTKH, visible: Visible, *, scale, softcap, size: int = 0
):
  """softmax(cap(scale q k) where visible) v for queries of all the keys.

  Positions are implicit; segments may be given. size: positions of a block,
  0 for a size that suits the length.
  """
  B, T, N, H = q_BTNH.shape
  K = k_BTKH.shape[2]
  segments_BT, whole = visible.segments_BT, T
  if not visible.causal:
    # Rows of scores are whole vectors: a maximum in slices, and no odd ends.
    whole = -(-T // LANES) * LANES
    more = [(0, 0), (0, whole - T), (0, 0), (0, 0)]
    k_BTKH, v_BTKH = (jnp.pad(x, more) for x in (k_BTKH, v_BTKH))
    if segments_BT is not None:
      segments_BT = jnp.pad(segments_BT, more[:2])
    size = size or LARGEST
  size = size or max(SMALLEST, -(-T // BLOCKS))
  # The queries of a group meet its keys as one matrix, and have to lie as one.
  lie = TOGETHER if onednn.chosen() and N == K else APART
  # The softmax of a row of T is T / H times the size of its queries: up to KEPT
  # times, keeping it costs less time than making it again (experiments/speed).
  keep = onednn.chosen() and not softcap and T <= KEPT * H
  how = How(
    scale, softcap, visible.window, min(size, T), visible.causal, T, whole,
    *lie, keep,
  )  # fmt: skip
  q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
  if lie is TOGETHER:
    y_BTKGH = _attend(how, q_BTKGH, k_BTKH, v_BTKH, segments_BT)
    return y_BTKGH.reshape(B, T, N, H)
  q_BKGTH = q_BTKGH.transpose(0, 2, 3, 1, 4)
  k_BKTH, v_BKTH = (x.transpose(0, 2, 1, 3) for x in (k_BTKH, v_BTKH))
  q_BKGTH, k_BKTH, v_BKTH = map(_in_one_pass, (q_BKGTH, k_BKTH, v_BKTH))
  y_BKGTH = _attend(how, q_BKGTH, k_BKTH, v_BKTH, segments_BT)
  return y_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(how: How, q_BKGTH, k_BKTH, v_BKTH, segments_BT):
  return _attend_forward(how, q_BKGTH, k_BKTH, v_BKTH, segments_BT)[0]


def _attend_forward(how, q, k, v, segments):
  forward = functools.partial(_forward, how)
  y, *softmax = _each(how, forward, q, k, v, segments)
  return y, (q, k, v, segments, y, *softmax)


def _attend_backward(how, kept, dy):
  backward = functools.partial(_backward, how)
  if how.q == APART[0]:
    dy = _in_one_pass(dy)
  dq, dk, dv = _each(how, backward, *kept, dy)
  if not onednn.chosen():
    # Turned round here, all at once: the loop writes rows as they are made.
    dk, dv = dk.swapaxes(2, 3), dv.swapaxes(2, 3)
  return dq, dk, dv, None


_attend.defvjp(_attend_forward, _attend_backward)


def _each(how: How, f: Callable, *args):
  """f of each row of the batch: a few at a time, on a single device.

  The loop holds bfloat16 `packed`, or whole arrays would be converted at each
  turn to write one row.
  """
  B, *shape = args[0].shape
  size = dict(zip(how.q, shape, strict=True))
  most = CALLED if onednn.chosen() else CACHED
  heads = size["k"] * size["g"]
  few = max(1, most // (heads * how.size * size["t"] * 4))
  if few >= B or not sharding.alone():
    return jax.vmap(f)(*args)
  few = next(n for n in range(few, 0, -1) if B % n == 0)
  kinds = []

  def row(args):
    found = f(*jax.tree.map(unpacked, args, given))
    kinds[:] = [jax.tree.map(lambda x: x.dtype, found)]
    return jax.tree.map(packed, found)

  given = jax.tree.map(lambda x: x.dtype, args)
  found = jax.lax.map(
    row, jax.tree.map(packed, args), batch_size=few if few > 1 else None
  )
  return jax.tree.map(unpacked, found, kinds[0])


def _forward(how: How, q, k, v, segments_T):
  """Of one row of the batch: y, and the softmax as the backward pass has it.

  That is z (K, G, T) and a list: the denominators and each block's numerators
  if they are kept; otherwise log sum exp of all scores, and nothing.
  """
  ys, zs, numerators = [], [], []
  at = how.q.index("t")
  for rows, keys in _by_queries(how, q.shape[at]):
    products = _products(how, _queries(how, q, rows), _keys(how, k, keys))
    seen_TS = _seen(how, rows, keys, segments_T)
    hidden = functools.partial(_hidden, how)
    terms = (products,) if seen_TS is None else (products, seen_TS)
    top = sums.largest(hidden, *terms)
    weights = jnp.exp(hidden(*terms) - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = weights.astype(v.dtype)
    y = multiplied(f"kgts,{how.k}->{how.q}", weights, _keys(how, v, keys))
    ys.append((y / _as_queries(how, total)).astype(q.dtype))
    zs.append((total if how.keep else top + jnp.log(total))[..., 0])
    if how.keep:
      numerators.append(weights)
  return jnp.concatenate(ys, axis=at), jnp.concatenate(zs, axis=2), numerators


def _backward(how: How, q, k, v, segments, y, z, numerators, dy):
  """Gradients for q, k and v of one row of the batch.

  The last two as they are made: as k lies by oneDNN, KHT otherwise.
  """
  at = how.q.index("t")
  T = q.shape[at]
  if how.keep:  # numerators pass for weights where dy is divided instead
    dy = (dy / _as_queries(how, z[..., None])).astype(dy.dtype)
  # What the gradient of a row of weights loses to their sum being one.
  lost = sums.total(_float32_product, dy, y)
  lost = jnp.einsum(f"{how.q}->kgth", lost)[..., 0]
  turned = not onednn.chosen()
  if turned:
    q_KHGT, dy_KHGT = (_copied(x.transpose(0, 3, 1, 2)) for x in (q, dy))
  dqs, dks, dvs = [], [], []
  for i, (rows, keys) in enumerate(_by_queries(how, T)):
    some_q, some_dy = (_queries(how, x, rows) for x in (q, dy))
    some_k, some_v = (_keys(how, x, keys) for x in (k, v))
    if how.keep:
      weights = numerators[i]
    else:
      products = _products(how, some_q, some_k)
      hidden = _hidden(how, products, _seen(how, rows, keys, segments))
      weights = jnp.exp(hidden - z[:, :, rows, None])
    dweights = multiplied(f"{how.q},{how.k}->kgts", some_dy, some_v)
    dscores = weights * (dweights - lost[:, :, rows, None]) * how.scale
    if how.softcap:
      scores = _scores(how, products)
      dscores = dscores * (1 - (scores / how.softcap) ** 2)
    dscores = dscores.astype(q.dtype)
    dqs.append(multiplied(f"kgts,{how.k}->{how.q}", dscores, some_k))
    around = (keys.start, how.whole - keys.stop)
    weights = weights.astype(q.dtype)
    if turned:
      around = ((0, 0), (0, 0), around)
      dk = _by_keys_turned(q_KHGT[..., rows], dscores)
      dv = _by_keys_turned(dy_KHGT[..., rows], weights)
    else:
      around = [around if c == "s" else (0, 0) for c in how.k]
      dk = multiplied(f"kgts,{how.q}->{how.k}", dscores, some_q)
      dv = multiplied(f"kgts,{how.q}->{how.k}", weights, some_dy)
    dks.append(jnp.pad(dk, around))
    dvs.append(jnp.pad(dv, around))
  dq = jnp.concatenate(dqs, axis=at).astype(q.dtype)
  dk, dv = sum(dks), sum(dvs)
  if turned:
    dk, dv = _copied(dk), _copied(dv)
  return dq, dk.astype(k.dtype), dv.astype(v.dtype)


def _queries(how: How, x, rows: slice):
  return jax.lax.slice_in_dim(x, rows.start, rows.stop, axis=how.q.index("t"))


def _keys(how: How, x, keys: slice):
  return jax.lax.slice_in_dim(x, keys.start, keys.stop, axis=how.k.index("s"))


def _as_queries(how: How, x_KGT1):
  """A number for each query, where the queries are."""
  return jnp.einsum(f"kgth->{how.q}", x_KGT1)


def _in_one_pass(x):
  """x, which something transposed, made in one pass on a single device.

  The compiler would copy what makes x as it lies, such as a part of a joined
  projection, and transpose the copy. Over several devices it is left to: what
  parts x among them would not survive a reshape to one dimension.
  """
  return _copied(x) if sharding.alone() else x


def _copied(x):
  """As it lies in memory: the compiler takes no transposition across this.

  It would fold one into the product beside it, to a form that the matrix
  library does not take: slow in float32, refused in bfloat16.
  """
  return jax.lax.optimization_barrier(x.reshape(-1)).reshape(x.shape)


def _by_keys_turned(x_KHGT, y_KGTS):
  """Summed over the queries of all the heads of a group; (K, H, S)."""
  K, H, S = *x_KHGT.shape[:2], y_KGTS.shape[-1]
  return multiplied(
    "khm,kms->khs", x_KHGT.reshape(K, H, -1), y_KGTS.reshape(K, -1, S)
  )


def _float32_product(x, y):
  return x.astype(jnp.float32) * y.astype(jnp.float32)


def _products(how: How, q, k):
  return multiplied(f"{how.q},{how.k}->kgts", q, k)


def _scores(how: How, products):
  """Scaled and capped, float32."""
  scores = products * how.scale
  return how.softcap * jnp.tanh(scores / how.softcap) if how.softcap else scores


def _hidden(how: How, products, seen_TS=None):
  """The scores, HIDDEN wherever a query may not see a key."""
  if seen_TS is None:
    return _scores(how, products)
  return jnp.where(seen_TS, _scores(how, products), HIDDEN)


def _seen(how: How, rows, keys, segments_T):
  """Whether queries of `rows` may see keys of `keys`; None if all may."""
  asking = asked = None
  if segments_T is not None:
    asking, asked = segments_T[None, rows], segments_T[None, keys]
  seen_BTS = Visible(
    how.causal, how.window, segments_BT=asking, segments_BS=asked
  ).mask(
    rows.stop - rows.start, keys.stop - keys.start, rows.start - keys.start
  )
  seen_TS = None if seen_BTS is None else seen_BTS[0]
  if how.keys == how.whole:
    return seen_TS
  real_1S = jnp.arange(how.whole)[None, keys] < how.keys
  return real_1S if seen_TS is None else seen_TS & real_1S


def _by_queries(how: How, T: int):
  """Blocks of queries, each with all the keys that some of them may see."""
  for start in range(0, T, how.size):
    stop = min(start + how.size, T)
    if not how.causal:
      yield slice(start, stop), slice(0, how.whole)
      continue
    first = 0 if how.window is None else max(0, start - how.window + 1)
    yield slice(start, stop), slice(first, stop)
