"""Causal attention in blocks: what no query may see is never multiplied.

A block of queries meets only the keys up to its end, so about half of the
scores are made. The backward pass makes them again (arXiv:2205.14135). What
would need them transposed takes the queries transposed instead, which are
smaller, and gives its result transposed; oneDNN takes anything as it lies.
A few rows of the batch at a time, the scores stay in caches; with oneDNN more
rows, where fewer calls count for more.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from aigc_jax import sharding
from aigc_jax.layers import onednn
from aigc_jax.layers.einsum import multiplied
from aigc_jax.layers.visible import Visible

HIDDEN = -(2.0**30)  # a score that exp() turns into zero
BLOCKS = 4  # at most, so that programs stay short
SMALLEST = 128  # positions of a block, where there are that many
CACHED = 2**22  # bytes of scores at a time: two cores' caches
CALLED = 2**25  # and with oneDNN, which has more of a cost at each call


class How(NamedTuple):
  """What does not depend on data; constant under jit."""

  scale: float
  softcap: float
  window: int | None
  size: int  # positions of a block


def attend(
  q_BTNH, k_BTKH, v_BTKH, visible: Visible, *, scale, softcap, size: int = 0
):
  """softmax(cap(scale q k) where visible) v for causal queries of all keys.

  Positions are implicit; segments may be given. size: positions of a block,
  0 for a size that suits the length.
  """
  B, T, N, H = q_BTNH.shape
  K = k_BTKH.shape[2]
  size = size or max(SMALLEST, -(-T // BLOCKS))
  how = How(scale, softcap, visible.window, min(size, T))
  q_BKGTH = q_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
  k_BKTH, v_BKTH = (x.transpose(0, 2, 1, 3) for x in (k_BTKH, v_BTKH))
  q_BKGTH, k_BKTH, v_BKTH = map(_in_one_pass, (q_BKGTH, k_BKTH, v_BKTH))
  y_BKGTH = _attend(how, q_BKGTH, k_BKTH, v_BKTH, visible.segments_BT)
  return y_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(how: How, q_BKGTH, k_BKTH, v_BKTH, segments_BT):
  return _attend_forward(how, q_BKGTH, k_BKTH, v_BKTH, segments_BT)[0]


def _attend_forward(how, q, k, v, segments):
  y, logz = _each(how, functools.partial(_forward, how), q, k, v, segments)
  return y, (q, k, v, segments, y, logz)


def _attend_backward(how, kept, dy):
  backward = functools.partial(_backward, how)
  dq, dk, dv = _each(how, backward, *kept, _in_one_pass(dy))
  if not onednn.chosen():
    # Turned round here, all at once: the loop writes rows as they are made.
    dk, dv = dk.swapaxes(2, 3), dv.swapaxes(2, 3)
  return dq, dk, dv, None


_attend.defvjp(_attend_forward, _attend_backward)


def _each(how: How, f: Callable, *args):
  """f of each row of the batch: a few at a time, on a single device.

  The loop holds bfloat16 as the integers of the same bits: a CPU's compiler
  would convert whole arrays to float32 at each turn to write one row.
  """
  B, K, G, T, _ = args[0].shape
  most = CALLED if onednn.chosen() else CACHED
  few = max(1, most // (K * G * how.size * T * 4))
  if few >= B or not sharding.alone():
    return jax.vmap(f)(*args)
  few = next(n for n in range(few, 0, -1) if B % n == 0)
  kinds = []

  def row(args):
    found = f(*jax.tree.map(_unpack, args, given))
    kinds[:] = [jax.tree.map(lambda x: x.dtype, found)]
    return jax.tree.map(_pack, found)

  given = jax.tree.map(lambda x: x.dtype, args)
  found = jax.lax.map(
    row, jax.tree.map(_pack, args), batch_size=few if few > 1 else None
  )
  return jax.tree.map(_unpack, found, kinds[0])


def _pack(x):
  if x.dtype != jnp.bfloat16:
    return x
  return jax.lax.bitcast_convert_type(x, jnp.uint16)


def _unpack(x, dtype):
  return x if x.dtype == dtype else jax.lax.bitcast_convert_type(x, dtype)


def _forward(how: How, q_KGTH, k_KTH, v_KTH, segments_T):
  """(y, log of the softmax's denominator) of one row of the batch."""
  ys, logzs = [], []
  for rows, keys in _by_queries(how, q_KGTH.shape[2]):
    scores = _scores(how, q_KGTH[:, :, rows], k_KTH[:, keys])
    scores = _hide(how, scores, rows, keys, segments_T)
    top = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    y = multiplied(
      "kgts,ksh->kgth", weights.astype(v_KTH.dtype), v_KTH[:, keys]
    )
    ys.append((y / total).astype(q_KGTH.dtype))
    logzs.append((top + jnp.log(total))[..., 0])
  return jnp.concatenate(ys, axis=2), jnp.concatenate(logzs, axis=2)


def _backward(how: How, q, k, v, segments, y, logz, dy):
  """Gradients for q, k and v of one row of the batch.

  The last two as they are made: KTH by oneDNN, KHT otherwise.
  """
  T, H = q.shape[2:]
  # What the gradient of a row of weights loses to their sum being one. As a
  # product: the compiler's sum over so short an axis takes five times as long.
  both = dy.astype(jnp.float32) * y.astype(jnp.float32)
  lost = both @ jnp.ones((H,), jnp.float32)
  turned = not onednn.chosen()
  if turned:
    q_KHGT, dy_KHGT = (_copied(x.transpose(0, 3, 1, 2)) for x in (q, dy))
  dqs, dks, dvs = [], [], []
  for rows, keys in _by_queries(how, T):
    scores = _scores(how, q[:, :, rows], k[:, keys])
    hidden = _hide(how, scores, rows, keys, segments)
    weights = jnp.exp(hidden - logz[:, :, rows, None])
    dweights = multiplied("kgth,ksh->kgts", dy[:, :, rows], v[:, keys])
    dscores = weights * (dweights - lost[:, :, rows, None]) * how.scale
    if how.softcap:
      dscores = dscores * (1 - (scores / how.softcap) ** 2)
    dscores = dscores.astype(q.dtype)
    dqs.append(multiplied("kgts,ksh->kgth", dscores, k[:, keys]))
    around = (keys.start, T - keys.stop)
    weights = weights.astype(q.dtype)
    if turned:
      around = ((0, 0), (0, 0), around)
      dk = _by_keys_turned(q_KHGT[..., rows], dscores)
      dv = _by_keys_turned(dy_KHGT[..., rows], weights)
    else:
      around = ((0, 0), around, (0, 0))
      dk = multiplied("kgts,kgth->ksh", dscores, q[:, :, rows])
      dv = multiplied("kgts,kgth->ksh", weights, dy[:, :, rows])
    dks.append(jnp.pad(dk, around))
    dvs.append(jnp.pad(dv, around))
  dq = jnp.concatenate(dqs, axis=2).astype(q.dtype)
  dk, dv = sum(dks), sum(dvs)
  if turned:
    dk, dv = _copied(dk), _copied(dv)
  return dq, dk.astype(k.dtype), dv.astype(v.dtype)


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


def _scores(how: How, q, k):
  """Scaled and capped products of queries and keys, float32."""
  scores = multiplied("kgth,ksh->kgts", q, k) * how.scale
  return how.softcap * jnp.tanh(scores / how.softcap) if how.softcap else scores


def _hide(how: How, scores, rows, keys, segments_T):
  """HIDDEN wherever a query of `rows` may not see a key of `keys`."""
  asking = asked = None
  if segments_T is not None:
    asking, asked = segments_T[None, rows], segments_T[None, keys]
  seen_BTS = Visible(
    window=how.window, segments_BT=asking, segments_BS=asked
  ).mask(
    rows.stop - rows.start, keys.stop - keys.start, rows.start - keys.start
  )
  return jnp.where(seen_BTS[0], scores, HIDDEN)


def _by_queries(how: How, T: int):
  """Blocks of queries, each with all the keys that some of them may see."""
  for start in range(0, T, how.size):
    stop = min(start + how.size, T)
    first = 0 if how.window is None else max(0, start - how.window + 1)
    yield slice(start, stop), slice(first, stop)
