"""Gemma 1 and 2, and the text part of Gemma 3.

Norm scales are stored as their difference from one and the embedding is scaled
by the root of the width. From Gemma 2 on each block's parts are normed before
and after.
"""

from collections.abc import Mapping

from aigc_jax.hf import llama
from aigc_jax.hf.qwen import KINDS
from aigc_jax.hf.settings import (
  ACTIVATIONS,
  THEIR_ACTIVATIONS,
  Settings,
  each_window,
  windows_of,
)
from aigc_jax.hf.table import Family

CAP = "attn_logit_softcapping"
# The first release says gelu and means its approximation.
ACTIVATIONS1 = ACTIVATIONS | {"gelu": "gelu_tanh"}


def settings1(c: Settings) -> dict:
  """The decoder of a Gemma config.json."""
  c.only("use_bidirectional_attention", False)
  bias = c.flag("attention_bias", False)
  activation = c.among("hidden_act", ACTIVATIONS1, "gelu_pytorch_tanh")
  own = "hidden_activation"  # which transformers 4 went by, and 5 passes over
  if own in c and c.among(own, ACTIVATIONS) != activation:
    raise c.fault(own, "the activation of hidden_act")
  found = llama.body(c, head_dim=256, kv_heads=16)
  return (
    found
    | llama.rotary_or_yarn(c, found["head_dim"])
    | dict(
      activation=activation,
      tied=c.flag("tie_word_embeddings", True),
      norm_offset=1.0,
      embed_scale=True,
      attention_bias=bias,
      out_bias=bias,
    )
  )


def config1(k: Mapping) -> dict:
  """config.json for a decoder; what it cannot say is left out."""
  return llama.config(k) | dict(
    hidden_activation=THEIR_ACTIVATIONS.get(k["activation"])
  )


def _shared(c: Settings, kinds: list[bool], softcaps: tuple) -> dict:
  """What both read alike; kinds say which layers are local by default."""
  c.only("use_bidirectional_attention", False)
  found = llama.body(c, head_dim=256, kv_heads=4)
  local = c.words("layer_types", KINDS, found["layers"]) or kinds
  window = c.maybe("sliding_window", 4096)
  bias = c.flag("attention_bias", False)
  name = "hidden_activation"
  return found | dict(
    activation=c.among(name, ACTIVATIONS, "gelu_pytorch_tanh"),
    tied=c.flag("tie_word_embeddings", True),
    norm_offset=1.0,
    post_norm=True,
    embed_scale=True,
    attention_bias=bias,
    out_bias=bias,
    attention_scale=c.number("query_pre_attn_scalar", 256.0) ** -0.5,
    logit_softcap=softcaps[0],
    attention_softcap=softcaps[1],
    windows=windows_of([window if near else None for near in local]),
  )


def _softcap(c: Settings, key: str, default: float) -> float:
  """Null is no cap; an absent key means the default."""
  return c.number(key, 0.0) if c.named(key) else default


def settings2(c: Settings) -> dict:
  """The decoder of a Gemma 2 config.json."""
  layers = c.integer("num_hidden_layers")
  caps = (
    _softcap(c, "final_logit_softcapping", 30.0),
    _softcap(c, CAP, 50.0),
  )
  kinds = [i % 2 == 0 for i in range(layers)]
  return _shared(c, kinds, caps) | llama.rotary(c)


def settings3(c: Settings) -> dict:
  """The decoder of a Gemma 3 text config.json."""
  layers = c.integer("num_hidden_layers")
  c.only(CAP)  # which transformers reads, and then leaves out
  caps = (_softcap(c, "final_logit_softcapping", 0.0), 0.0)
  every = c.integer("sliding_window_pattern", 6)
  kinds = [(i + 1) % every != 0 for i in range(layers)]
  return _shared(c, kinds, caps) | dict(qk_norm=True) | _rotary3(c)


def _rotary3(c: Settings) -> dict:
  """Global and local layers turn at rates of their own."""
  wide, near = llama.by_kind(c)
  local = c.number("rope_local_base_freq", 1e4)
  return dict(
    rotary_base=wide.number("rope_theta", c.number("rope_theta", 1e6)),
    rotary_local_base=near.number("rope_theta", local),
    rotary_scaling=llama.scaling(c, wide),
  )


def config(k: Mapping) -> dict:
  """config.json for a decoder; what it cannot say is left out."""
  sizes = each_window(k)
  window = next((s for s in sizes if s), None)
  scale = k["attention_scale"] or k["head_dim"] ** -0.5
  return llama.their_body(k) | dict(
    hidden_activation=THEIR_ACTIVATIONS.get(k["activation"]),
    rope_theta=k["rotary_base"],
    rope_scaling=llama.their_scaling(k["rotary_scaling"]),
    attention_bias=k["attention_bias"],
    query_pre_attn_scalar=round(scale**-2),
    final_logit_softcapping=k["logit_softcap"] or None,
    attn_logit_softcapping=k["attention_softcap"] or None,
    sliding_window=window or 4096,
    layer_types=["sliding_attention" if s else "full_attention" for s in sizes],
  )


def config3(k: Mapping) -> dict:
  """The same with the base of local layers, and no cap in attention."""
  local = k["rotary_local_base"] or k["rotary_base"]
  return config(k) | {"rope_local_base_freq": local, CAP: None}


GEMMA = Family(
  model_type="gemma",
  architecture="GemmaForCausalLM",
  prefix="model.",
  rows=llama.PROJECTIONS + llama.NORMS + llama.ENDS,
  settings=settings1,
  config=config1,
  ignored=llama.IGNORED,
)
ROWS = llama.PROJECTIONS + llama.FOUR_NORMS + llama.ENDS
GEMMA2 = Family(
  model_type="gemma2",
  architecture="Gemma2ForCausalLM",
  prefix="model.",
  rows=ROWS,
  settings=settings2,
  config=config,
  ignored=llama.IGNORED,
  limits=llama.divides,
)
GEMMA3 = Family(
  model_type="gemma3_text",
  architecture="Gemma3ForCausalLM",
  prefix="model.",
  rows=ROWS + llama.HEAD_NORMS,
  settings=settings3,
  config=config3,
  ignored=llama.IGNORED,
  limits=llama.divides,
)
