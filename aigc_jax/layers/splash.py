"""Splash attention: the sparse flash kernel of Pallas for TPUs."""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as pallas

from aigc_jax import sharding
from aigc_jax.layers.visible import Visible

LANES = 128  # what lengths and head widths are multiples of


def lacks(q_BTNH, k_BSKH, visible: Visible) -> str:
  """What of this the kernel cannot do, or nothing."""
  T, S = q_BTNH.shape[1], k_BSKH.shape[1]
  if T != S or T % LANES:
    return f"{T} queries of {S} keys: both the same multiple of {LANES}"
  if not visible.causal or visible.positions_BT is not None:
    return "explicit positions, or attention that is not causal"
  return sharding.heads_apart(q_BTNH.shape, k_BSKH.shape)


def attend(
  q_BTNH, k_BTKH, v_BTKH, visible: Visible, *, scale, softcap, interpret=False
):
  """softmax(cap(scale q k) where visible) v; each device has its own heads.

  interpret: run the kernel's program without a TPU, to test it.
  """
  segments = visible.segments_BT
  window = visible.window

  def local(q_BTNH, k_BTKH, v_BTKH, segments_BT):
    T, N, H = q_BTNH.shape[1:]
    if window is None:
      mask = pallas.CausalMask((T, T))
    else:
      mask = pallas.LocalMask((T, T), (window - 1, 0), 0)
    kernel = pallas.make_splash_mha(
      pallas.MultiHeadMask([mask] * N), head_shards=1, q_seq_shards=1,
      attn_logits_soft_cap=softcap or None, interpret=interpret,
    )  # fmt: skip
    # The kernel takes no scale, and head widths of whole lanes.
    q_BTNH = (q_BTNH * jnp.asarray(scale, q_BTNH.dtype)).astype(q_BTNH.dtype)
    wide = ((0, 0), (0, 0), (0, 0), (0, -H % LANES))
    q, k, v = (
      jnp.pad(x, wide).transpose(0, 2, 1, 3) for x in (q_BTNH, k_BTKH, v_BTKH)
    )
    if segments_BT is None:
      y_BNTH = jax.vmap(lambda q, k, v: kernel(q, k, v))(q, k, v)
    else:
      ids = pallas.SegmentIds(segments_BT, segments_BT)
      y_BNTH = jax.vmap(lambda q, k, v, s: kernel(q, k, v, segment_ids=s))(
        q, k, v, ids
      )
    return y_BNTH.transpose(0, 2, 1, 3)[..., :H]

  return sharding.over_heads(local, q_BTNH, k_BTKH, v_BTKH, segments)
