"""The kernels of attention, one signature for all of them.

attend(q_BTNH, k_BSKH, v_BSKH, visible, *, scale, softcap, kernel, bias_BNTS)
gives y_BTNH. A bias of the scores is taken by those in BIASED alone.
"""

import functools
import re

import jax
import jax.numpy as jnp

from aigc_jax import errors, sharding
from aigc_jax.layers import splash, sums
from aigc_jax.layers.cpu import blocks
from aigc_jax.layers.forms import are_counted, are_plain
from aigc_jax.layers.products import product
from aigc_jax.layers.visible import Visible

HIDDEN = -(2.0**30)  # a score that exp() turns into zero, finite in bfloat16


def attend(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  visible: Visible,
  *,
  scale: float,
  softcap: float,
  kernel: str,
  bias_BNTS: jax.Array | None = None,
) -> jax.Array:
  """softmax(cap(scale q k) + bias where visible) v, each query head over its
  group. The bias is (B or 1, N, T, S) in float32.

  A kernel asked for by name is used or refused (BadConfig), never replaced, but
  among plain formulas, where it is the formula.
  """
  if are_counted():
    return counted(q_BTNH, k_BSKH, v_BSKH, visible)
  if kernel == "auto" or are_plain():
    kernel = resolve(q_BTNH, k_BSKH, visible, softcap, bias_BNTS)
  run = errors.choose(kernel, KERNELS, "compute.kernel")
  more = {}
  if bias_BNTS is not None:
    if kernel not in BIASED:
      raise errors.BadConfig(
        f"compute.kernel={kernel!r} cannot do a bias of the scores, as "
        "relative positions have it (--config.compute.kernel=auto)"
      )
    more["bias_BNTS"] = bias_BNTS
  return run(
    q_BTNH, k_BSKH, v_BSKH, visible, scale=scale, softcap=softcap, **more
  )


def counted(q_BTNH, k_BSKH, v_BSKH, visible: Visible) -> jax.Array:
  """What has the multiplications of attention, and no other sense.

  For `flops.count`, which traces it and never runs it: both products once for
  each pair of positions that see each other (P), exact under windows.
  """
  B, T, N, H = q_BTNH.shape
  pairs = visible.pairs(T, k_BSKH.shape[1])
  q_BNH = q_BTNH[:, 0]
  k_BNPH, v_BNPH = (
    jnp.broadcast_to(x[:, :1, :1].swapaxes(1, 2), (B, N, pairs, H))
    for x in (k_BSKH, v_BSKH)
  )
  weights_BNP = jnp.einsum("BNH,BNPH->BNP", q_BNH, k_BNPH)
  y_BNH = jnp.einsum("BNP,BNPH->BNH", weights_BNP, v_BNPH)
  return jnp.broadcast_to(y_BNH[:, None], (B, T, N, H))


def check_kernel(kernel: str) -> None:
  """Raises BadConfig for a name of no kernel, or of another platform's."""
  if kernel != "auto":
    errors.choose(kernel, KERNELS, "compute.kernel")
  where = {"cudnn": ("gpu", "NVIDIA GPUs"), "splash": ("tpu", "TPUs")}
  platform, words = where.get(kernel, (sharding.platform(), ""))
  if platform != sharding.platform():
    raise errors.BadConfig(
      f"compute.kernel={kernel!r} runs on {words}: not on this machine "
      "(--config.compute.kernel=auto)"
    )


def resolve(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  visible: Visible,
  softcap: float,
  bias_BNTS: jax.Array | None = None,
) -> str:
  """The kernel that "auto" means for these queries on this platform."""
  if are_plain():
    return "xla"
  platform, free = sharding.platform(), bias_BNTS is None
  what = (q_BTNH, k_BSKH, visible)
  if platform == "gpu" and free and not _cudnn_lacks(*what, softcap):
    return "cudnn"
  if platform == "tpu" and free and not splash.lacks(*what):
    return "splash"
  # A single query, which decoding asks a memory with, is no block: keys would
  # be filled up and copied for it at each token.
  fits = visible.causal or (sharding.alone() and q_BTNH.shape[1] > 1)
  if platform == "cpu" and fits and not _blocks_lacks(*what, bias_BNTS):
    return "blocks"
  # Beyond this the scores of one head outgrow any cache: take them in pieces.
  return "chunked" if q_BTNH.shape[1] > 2048 else "xla"


def dense(q_BTNH, k_BSKH, v_BSKH, visible, *, scale, softcap, bias_BNTS=None):
  """The formula with all the scores in memory; softmax in float32."""
  B, T, N, H = q_BTNH.shape
  S, K = k_BSKH.shape[1:3]
  q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
  scores_BKGTS = product("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH)
  weights_BKGTS = jax.checkpoint(
    functools.partial(soften, scale=scale, softcap=softcap),
    prevent_cse=False,
  )(scores_BKGTS, visible.mask(T, S), bias_BNTS).astype(q_BTNH.dtype)
  y_BTKGH = product("BKGTS,BSKH->BTKGH", weights_BKGTS, v_BSKH)
  return y_BTKGH.reshape(B, T, N, H).astype(q_BTNH.dtype)


def soften(scores_BKGTS, seen_BTS, bias_BNTS=None, *, scale, softcap):
  """Scores to weights: scaled, capped, biased, hidden if unseen, softmax."""
  scores = scores_BKGTS.astype(jnp.float32) * scale
  if softcap:
    scores = softcap * jnp.tanh(scores / softcap)
  if bias_BNTS is not None:
    B, K, G, T, S = scores.shape
    if len(bias_BNTS) == 1:
      bias_BNTS = sums.for_rows(bias_BNTS[0], B)
    scores = scores + bias_BNTS.reshape(B, K, G, T, S)
  if seen_BTS is not None:
    scores = jnp.where(seen_BTS[:, None, None], scores, HIDDEN)
  return jax.nn.softmax(scores, axis=-1)


def chunked(
  q_BTNH, k_BSKH, v_BSKH, visible, *, scale, softcap, bias_BNTS=None, chunk=512
):
  """The same for `chunk` queries at a time, recomputed in the backward pass."""
  B, T, N, H = q_BTNH.shape
  chunk = next(c for c in range(min(chunk, T), 0, -1) if T % c == 0)
  if visible.positions_BT is None:
    implicit = jnp.broadcast_to(jnp.arange(T)[None], (1, T))
    visible = _with_positions(visible, implicit)

  @functools.partial(jax.checkpoint, prevent_cse=False)
  def one(start):
    q = jax.lax.dynamic_slice_in_dim(q_BTNH, start, chunk, 1)
    part, bias = visible.rows(start, chunk), bias_BNTS
    if bias is not None:
      bias = jax.lax.dynamic_slice_in_dim(bias, start, chunk, 2)
    return dense(
      q, k_BSKH, v_BSKH, part, scale=scale, softcap=softcap, bias_BNTS=bias
    )

  parts = jax.lax.map(one, jnp.arange(0, T, chunk))
  return jnp.moveaxis(parts, 0, 1).reshape(B, T, N, H)


def _with_positions(visible: Visible, positions_BT) -> Visible:
  return Visible(
    visible.causal, visible.window, positions_BT, visible.positions_BS,
    visible.segments_BT, visible.segments_BS,
  )  # fmt: skip


def _cudnn_lacks(q_BTNH, k_BSKH, visible: Visible, softcap: float) -> str:
  """What of this the cuDNN kernel cannot do, or nothing."""
  H = q_BTNH.shape[-1]
  if q_BTNH.dtype not in (jnp.bfloat16, jnp.float16):
    return f"dtype {q_BTNH.dtype}: it takes bfloat16 and float16"
  if H % 8 or H > 256:
    return f"head_dim {H}: it takes multiples of 8 up to 256"
  if not visible.structured:
    return "segments, or a cache"
  if softcap:
    return f"softcap {softcap}"
  lacks = _gpu_lacks(H)
  if lacks:
    return lacks
  return sharding.heads_apart(q_BTNH.shape, k_BSKH.shape)


def _gpu_lacks(head_dim: int) -> str:
  """The same of this machine's GPU; of one that is only described, nothing."""
  gpu = jax.local_devices()[0]
  if gpu.platform != "gpu":
    return ""
  found = re.fullmatch(r"(\d+)\.(\d+)", str(gpu.compute_capability))
  if not found:
    return f"a device {gpu.device_kind!r}: it takes NVIDIA's"
  least = (9, 0) if head_dim > 128 else (8, 0)
  if (int(found[1]), int(found[2])) < least:
    return (
      f"head_dim {head_dim} on {gpu.device_kind!r} of compute capability "
      f"{found[0]}: it takes {least[0]}.{least[1]} and later"
    )
  return ""


def _blocks_lacks(
  q_BTNH, k_BSKH, visible: Visible, bias_BNTS: jax.Array | None = None
) -> str:
  """What of this `blocks` cannot do, or nothing."""
  if visible.causal and q_BTNH.shape[1] != k_BSKH.shape[1]:
    return "queries that are not all the positions"
  if visible.positions_BT is not None or visible.positions_BS is not None:
    return "explicit positions, as of a cache"
  if bias_BNTS is not None and len(bias_BNTS) > 1:
    return "a bias of the scores that rows do not share"
  return ""


def blocked(q_BTNH, k_BSKH, v_BSKH, visible, *, scale, softcap, bias_BNTS=None):
  """Blocks of queries, each with the keys that it may see."""
  lacks = _blocks_lacks(q_BTNH, k_BSKH, visible, bias_BNTS)
  if lacks:
    raise errors.BadConfig(
      f"compute.kernel='blocks' cannot do {lacks} "
      "(--config.compute.kernel=auto)"
    )
  return blocks.attend(
    q_BTNH, k_BSKH, v_BSKH, visible,
    scale=scale, softcap=softcap, bias_1NTS=bias_BNTS,
  )  # fmt: skip


def cudnn(q_BTNH, k_BSKH, v_BSKH, visible, *, scale, softcap):
  """Fused attention of cuDNN: no scores in memory, no dense mask."""
  check_kernel("cudnn")
  lacks = _cudnn_lacks(q_BTNH, k_BSKH, visible, softcap)
  if lacks:
    raise errors.BadConfig(
      f"compute.kernel='cudnn' cannot do {lacks} (--config.compute.kernel=auto)"
    )
  window = None
  if visible.window is not None:
    behind = visible.window - 1
    window = (behind, 0 if visible.causal else behind)
  return jax.nn.dot_product_attention(
    q_BTNH, k_BSKH, v_BSKH,
    scale=scale, is_causal=visible.causal, local_window_size=window,
    implementation="cudnn",
  )  # fmt: skip


def splashed(q_BTNH, k_BSKH, v_BSKH, visible, *, scale, softcap):
  """Splash attention of TPUs: no scores in memory, no work on hidden blocks."""
  check_kernel("splash")
  lacks = splash.lacks(q_BTNH, k_BSKH, visible)
  if lacks:
    raise errors.BadConfig(
      f"compute.kernel='splash' cannot do {lacks} "
      "(--config.compute.kernel=auto)"
    )
  return splash.attend(
    q_BTNH, k_BSKH, v_BSKH, visible, scale=scale, softcap=softcap
  )


KERNELS = {
  "xla": dense,
  "chunked": chunked,
  "blocks": blocked,
  "cudnn": cudnn,
  "splash": splashed,
}
BIASED = ("xla", "chunked", "blocks")
