"""Attention in blocks: what no query may see is never multiplied.

A block of queries meets only the keys up to its end where it is causal, so
about half of the scores are made. The backward pass makes them again
(arXiv:2205.14135). What would need them transposed takes the queries transposed
instead, which are smaller, and gives its result transposed; oneDNN takes
anything as it lies, the heads of one position beside each other too, but not
blocks that threads would share (`onednn.rows_at_most`). A few rows
of the batch at a time, the scores stay in caches; with oneDNN more rows, where
fewer calls count for more, and of short rows the softmax is kept instead of
made again. A bias of the scores is the same for all rows of the batch, and so
its gradient is added up as they are taken.
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
KEPT = 16  # times a head's width: the longest row whose softmax is kept


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
  by_onednn: bool


APART = ("kgth", "ksh")  # each head's positions together
TOGETHER = ("tkgh", "skh")  # as projections write them


def attend(
  q_BTNH,
  k_BSKH,
  v_BSKH,
  visible: Visible,
  *,
  scale,
  softcap,
  bias_1NTS=None,
  size: int = 0,
):
  """softmax(cap(scale q k) + bias where visible) v, for all the queries.

  They are those of the keys' positions (T = S) where they are causal. Positions
  are implicit; segments may be given. size: positions of a block, 0 for a size
  that suits the length.
  """
  B, T, N, H = q_BTNH.shape
  S, K = k_BSKH.shape[1:3]
  segments, whole = None, S
  if visible.segments_BT is not None:
    segments = (visible.segments_BT, visible.segments_BS)
  if not visible.causal:
    # Rows of scores are whole vectors: a maximum in slices, and no odd ends.
    whole = -(-S // LANES) * LANES
    more = [(0, 0), (0, whole - S), (0, 0), (0, 0)]
    k_BSKH, v_BSKH = (jnp.pad(x, more) for x in (k_BSKH, v_BSKH))
    if segments is not None:
      segments = (segments[0], jnp.pad(segments[1], more[:2]))
    if bias_1NTS is not None:
      bias_1NTS = jnp.pad(bias_1NTS, [(0, 0)] * 3 + more[1:2])
    size = size or LARGEST
  size = min(size or max(SMALLEST, -(-T // BLOCKS)), T)
  unshared = _unshared(size, T, whole, H, N // K) if onednn.chosen() else 0
  by_onednn, size = unshared > 0, unshared or size
  # The queries of a group meet its keys as one matrix, and have to lie as one.
  lie = TOGETHER if by_onednn and N == K else APART
  # The softmax of a query of S keys is S / H times its size: up to KEPT times,
  # keeping it costs less time than making it again (experiments/speed).
  keep = by_onednn and not softcap and S <= KEPT * H
  how = How(
    scale, softcap, visible.window, size, visible.causal, S, whole, *lie, keep,
    by_onednn,
  )  # fmt: skip
  q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
  bias_KGTS = None
  if bias_1NTS is not None:
    bias_KGTS = bias_1NTS.reshape(K, N // K, *bias_1NTS.shape[2:])
  if lie is TOGETHER:
    y_BTKGH = _attend(how, q_BTKGH, k_BSKH, v_BSKH, segments, bias_KGTS)
    return y_BTKGH.reshape(B, T, N, H)
  q_BKGTH = q_BTKGH.transpose(0, 2, 3, 1, 4)
  k_BKSH, v_BKSH = (x.transpose(0, 2, 1, 3) for x in (k_BSKH, v_BSKH))
  q_BKGTH, k_BKSH, v_BKSH = map(_in_one_pass, (q_BKGTH, k_BKSH, v_BKSH))
  y_BKGTH = _attend(how, q_BKGTH, k_BKSH, v_BKSH, segments, bias_KGTS)
  return y_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def _unshared(size: int, T: int, S: int, H: int, heads: int) -> int:
  """Of at most `size` queries, how many oneDNN takes at once; 0 if too few.

  Each group's heads are one product, several of which are made in one call, and
  of those no threads may share one.
  """
  most = onednn.rows_at_most(S, H) // heads
  if min(T, H) <= onednn.THIN or most < min(SMALLEST, T):
    return 0
  return size if most >= T else min(size, most - most % LANES)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(how: How, q, k, v, segments, bias_KGTS):
  """As How.q and How.k lie, with B before; segments: (B, T) and (B, S)."""
  return _attend_forward(how, q, k, v, segments, bias_KGTS)[0]


def _attend_forward(how, q, k, v, segments, bias):
  forward = functools.partial(_forward, how, bias)
  with onednn.preferred(how.by_onednn):
    (y, *softmax), _ = _each(how, forward, q, k, v, segments)
  return y, (bias, q, k, v, segments, y, *softmax)


def _attend_backward(how, kept, dy):
  bias, *kept = kept
  backward = functools.partial(_backward, how, bias)
  if how.q == APART[0]:
    dy = _in_one_pass(dy)
  with onednn.preferred(how.by_onednn):
    (dq, dk, dv), dbias = _each(how, backward, *kept, dy)
  if not how.by_onednn:
    # Turned round here, all at once: the loop writes rows as they are made.
    dk, dv = dk.swapaxes(2, 3), dv.swapaxes(2, 3)
  return dq, dk, dv, None, dbias


_attend.defvjp(_attend_forward, _attend_backward)


def _each(how: How, f: Callable, *args):
  """What f gives for each row of the batch, and the sum of what it adds up.

  f: (row) -> (what is kept of it, what is added up). A few rows at a time, on a
  single device. The loop holds bfloat16 `packed`, or whole arrays would be
  converted at each turn to write one row.
  """
  B, *shape = args[0].shape
  size = dict(zip(how.q, shape, strict=True))
  most = CALLED if onednn.chosen() else CACHED
  heads = size["k"] * size["g"]
  few = max(1, most // (heads * how.size * how.whole * 4))
  if few >= B or not sharding.alone():
    found, added = jax.vmap(f)(*args)
    return found, jax.tree.map(sums.over_rows, added)
  few = next(n for n in range(few, 0, -1) if B % n == 0)
  given = jax.tree.map(lambda x: x.dtype, args)
  one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), args)
  kept, zeros = jax.eval_shape(f, *one)

  many = few > 1

  def rows(so_far, args):
    args = jax.tree.map(unpacked, args, given)
    found, added = jax.vmap(f)(*args) if many else f(*args)
    if many:
      added = jax.tree.map(sums.over_rows, added)
    return jax.tree.map(jnp.add, so_far, added), jax.tree.map(packed, found)

  def parted(x):
    x = packed(x)
    return x.reshape(B // few, few, *x.shape[1:]) if many else x

  added, found = jax.lax.scan(
    rows,
    jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), zeros),
    jax.tree.map(parted, args),
  )
  if many:
    found = jax.tree.map(lambda x: x.reshape(B, *x.shape[2:]), found)
  kinds = jax.tree.map(lambda x: x.dtype, kept)
  return jax.tree.map(unpacked, found, kinds), added


def _forward(how: How, bias_KGTS, q, k, v, segments):
  """Of one row of the batch: y, and the softmax as the backward pass has it.

  That is z (K, G, T) and a list: the denominators and each block's numerators
  if they are kept; otherwise log sum exp of all scores, and nothing. Nothing is
  added up.
  """
  ys, zs, numerators = [], [], []
  at = how.q.index("t")
  for rows, keys in _by_queries(how, q.shape[at]):
    products = _products(how, _queries(how, q, rows), _keys(how, k, keys))
    more = _beside(how, bias_KGTS, rows, keys, segments)
    hidden = functools.partial(_of_terms, how, tuple(more))
    terms = (products, *more.values())
    top = sums.largest(hidden, *terms)
    weights = jnp.exp(hidden(*terms) - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = weights.astype(v.dtype)
    y = multiplied(f"kgts,{how.k}->{how.q}", weights, _keys(how, v, keys))
    ys.append((y / _as_queries(how, total)).astype(q.dtype))
    zs.append((total if how.keep else top + jnp.log(total))[..., 0])
    if how.keep:
      numerators.append(weights)
  y, z = jnp.concatenate(ys, axis=at), jnp.concatenate(zs, axis=2)
  return (y, z, numerators), None


def _backward(how: How, bias_KGTS, q, k, v, segments, y, z, numerators, dy):
  """Gradients for q, k and v of one row of the batch, and for the bias.

  Those for k and v as they are made: as k lies by oneDNN, KHS otherwise.
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
  dqs, dks, dvs, dbiases = [], [], [], []
  for i, (rows, keys) in enumerate(_by_queries(how, T)):
    some_q, some_dy = (_queries(how, x, rows) for x in (q, dy))
    some_k, some_v = (_keys(how, x, keys) for x in (k, v))
    if how.keep:
      weights = numerators[i]
    else:
      products = _products(how, some_q, some_k)
      more = _beside(how, bias_KGTS, rows, keys, segments)
      hidden = _hidden(how, products, **more)
      weights = jnp.exp(hidden - z[:, :, rows, None])
    dweights = multiplied(f"{how.q},{how.k}->kgts", some_dy, some_v)
    dscores = weights * (dweights - lost[:, :, rows, None])
    if bias_KGTS is not None:
      rest = (keys.start, how.whole - keys.stop)
      dbiases.append(jnp.pad(dscores, [(0, 0)] * 3 + [rest]))
    dscores = dscores * how.scale
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
  dbias = jnp.concatenate(dbiases, axis=2) if dbiases else None
  return (dq, dk.astype(k.dtype), dv.astype(v.dtype)), dbias


def _beside(how: How, bias_KGTS, rows: slice, keys: slice, segments) -> dict:
  """What `_hidden` takes beside products, where there is such a thing."""
  some = None if bias_KGTS is None else bias_KGTS[:, :, rows, keys]
  found = dict(seen_TS=_seen(how, rows, keys, segments), bias_KGTS=some)
  return {name: x for name, x in found.items() if x is not None}


def _of_terms(how: How, names: tuple[str, ...], products, *more):
  """`_hidden` of arrays alone, as sums take their terms."""
  return _hidden(how, products, **dict(zip(names, more, strict=True)))


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


def _hidden(how: How, products, seen_TS=None, bias_KGTS=None):
  """The scores with their bias, HIDDEN where a query may not see a key."""
  scores = _scores(how, products)
  if bias_KGTS is not None:
    scores = scores + bias_KGTS
  return scores if seen_TS is None else jnp.where(seen_TS, scores, HIDDEN)


def _seen(how: How, rows, keys, segments):
  """Whether queries of `rows` may see keys of `keys`; None if all may."""
  asking = asked = None
  if segments is not None:
    asking, asked = segments[0][None, rows], segments[1][None, keys]
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
