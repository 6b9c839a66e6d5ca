"""What a step is made of, told without running it."""

import collections

import jax
import jax.numpy as jnp

from aigc_jax import run
from aigc_jax.layers import kernels
from aigc_jax.layers.visible import Visible


def attention_kernels(r: run.Run) -> str:
  """The kernels that attention uses, and in how many of the layers."""
  if r.cost is None:
    return ""  # not a decoder of windows
  m, length = r.config["model"], r.config["data"]["length"]
  width = m["head_dim"]
  heads, key_heads = (
    jax.ShapeDtypeStruct((1, length, n, width), r.model.operand_dtype)
    for n in (m["heads"], m["kv_heads"])
  )
  windows = m["windows"] or (None,)
  pattern = [windows[i % len(windows)] for i in range(m["layers"])]
  how = r.config["compute"]
  looped = how["unroll"] not in (None, m["layers"]) and len(set(pattern)) > 1
  segments = jnp.zeros((1, 1)) if r.config["data"]["segments"] else None

  def kernel(window) -> str:
    if how["kernel"] != "auto":
      return how["kernel"]
    # In a loop over layers that differ, a window is not known beforehand.
    seen = Visible(
      window=jnp.zeros(()) if looped else window, segments_BT=segments
    )
    return kernels.resolve(heads, key_heads, seen, m["attention_softcap"])

  counts = collections.Counter((kernel(w), w is not None) for w in pattern)
  parts = [
    f"{name}{', windowed' * windowed}, in {n} of {m['layers']} layers"
    for (name, windowed), n in counts.items()
  ]
  if len(parts) == 1:
    return parts[0].removesuffix(f", in {m['layers']} of {m['layers']} layers")
  return "; ".join(parts)


def residual_bytes(r: run.Run) -> int:
  """What automatic differentiation keeps for the backward pass, in bytes.

  Traced, not compiled: the compiler may keep less. What the step is given is
  not counted, unstacked slices of parameters are.
  """

  def kept(params, fixed, batch):
    known = {} if fixed is None else {"fixed": fixed}

    def loss(params):
      return r.score(params, batch, None, **known)["loss"].sum

    _, backward = jax.vjp(loss, params)
    given = {id(x) for x in jax.tree.leaves((params, fixed, batch))}
    return [x for x in jax.tree.leaves(backward) if id(x) not in given]

  found = jax.eval_shape(kept, r.state.params, r.state.fixed, r.batch)
  return sum(x.size * x.dtype.itemsize for x in found)


def library_calls(program: str) -> dict[str, int]:
  """How often a compiled program calls or names what libraries offer."""
  words = {
    "cudnn attention": '"__cudnn$fmha',
    "cublas": '"__cublas$',
    "cublas fp8": '"__cublas$lt$matmul$f8',
    "triton": '"__triton',
    "mosaic": '"tpu_custom_call"',
    "ynnpack": '"__ynn_fusion"',
    "onednn": '"__onednn$',
    "dot": " dot(",
    "scatter": " scatter(",
    "of them to unique places": "unique_indices=true",
    "loops": " while(",
    "all-reduce": " all-reduce",
    "all-gather": " all-gather",
    "reduce-scatter": " reduce-scatter",
  }
  counts = {name: program.count(word) for name, word in words.items()}
  return {name: n for name, n in counts.items() if n}
