"""Phi (1 to 2), and Phi-3, which is a Llama with joined matrices.

Phi's attention and MLP are side by side under one norm, and its logits have a
bias. Both may turn a part of each head only.
"""

from collections.abc import Mapping

from aigc_jax.hf import llama
from aigc_jax.hf.llama import BLOCK
from aigc_jax.hf.settings import (
  ACTIVATIONS,
  THEIR_ACTIVATIONS,
  Settings,
  each_window,
)
from aigc_jax.hf.table import Family, Row

SLOWED = ("longrope", "su")  # the newer name and the older
HEADS = ("NH", "KH", "KH")  # of query, key and value, one after the other


def _joined() -> tuple[Row, ...]:
  """Query, key and value in one tensor, gate and up in another."""
  rows = []
  for i, name in enumerate(("query", "key", "value")):
    axes = f"({HEADS[i]})D->D{HEADS[i]}"
    theirs = f"{BLOCK}self_attn.qkv_proj.weight"
    rows.append(Row(f"stack/attention/{name}/w", theirs, axes, i, HEADS))
  for i, name in enumerate(("gate", "up")):
    theirs = f"{BLOCK}mlp.gate_up_proj.weight"
    rows.append(Row(f"stack/mlp/{name}/w", theirs, "(CF)D->DF", i, 2))
  return tuple(rows)


ROWS3 = (
  *_joined(),
  *llama.projection("attention/out", "self_attn.o_proj", "D(NH)->NHD", "D->D"),
  *llama.projection("mlp/down", "mlp.down_proj", "DF->FD", "D->D"),
  *llama.NORMS,
  *llama.ENDS,
)
ROWS = (
  *llama.QUERY_KEY_VALUE,
  *llama.projection("attention/out", "self_attn.dense", "D(NH)->NHD", "D->D"),
  *llama.projection("mlp/up", "mlp.fc1", "FD->DF", "F->F"),
  *llama.projection("mlp/down", "mlp.fc2", "DF->FD", "D->D"),
  *llama.layer_norm("stack/norm_attention", f"{BLOCK}input_layernorm"),
  *llama.layer_norm("norm", "model.final_layernorm"),
  Row("embed/table", "model.embed_tokens.weight", "VD->VD"),
  Row("head/table", "lm_head.weight", "VD->VD"),
  Row("head/bias", "lm_head.bias", "V->V"),
)


def settings3(c: Settings) -> dict:
  """The decoder of a Phi-3 config.json."""
  # Outside of what slows it always stands a length: this one, unsaid.
  c = c.instead(**{llama.ORIGINAL: c.integer(llama.ORIGINAL, 4096)})
  for key in llama.KEYS_OF_KIND:  # transformers takes yarn for longrope
    llama.slowing(c).only(key, "default", *SLOWED)
  found = llama.unturned(c)
  window = c.maybe("sliding_window", 0)
  return (
    found
    | llama.rotary_in_part(c, found["head_dim"], share=1.0)
    | dict(
      norm_eps=c.number("rms_norm_eps", 1e-5),
      windows=(window,) if window else (),
    )
  )


def limits3(k: Mapping) -> list[str]:
  """Of scalings transformers loads this one, of heads of the usual width."""
  scaling, width = k["rotary_scaling"], k["dim"] // k["heads"]
  if not scaling:
    return []
  if scaling["kind"] not in SLOWED:
    return [f"rotary_scaling={dict(scaling)}"]
  usual = k["head_dim"] in (None, 0, width)
  return [] if usual else [f"head_dim={k['head_dim']}"]


def config3(k: Mapping) -> dict:
  """config.json for a decoder; what it cannot say is left out."""
  scaling = k["rotary_scaling"] or {}
  length = scaling.get("original_length") or k["position_length"]
  return llama.their_plain(k) | dict(
    partial_rotary_factor=llama.their_share(k),
    sliding_window=each_window(k)[0],
    original_max_position_embeddings=length or 1,
  )


def settings(c: Settings) -> dict:
  """The decoder of a Phi config.json."""
  c.only("qk_layernorm", False)
  found = llama.body(c, head_dim=None, kv_heads=None)
  return (
    found
    | llama.rotary_in_part(c, found["head_dim"], share=0.5)
    | llama.with_layer_norms(c)
    | dict(
      activation=c.among("hidden_act", ACTIVATIONS, "gelu_new"),
      gated=False,
      attention_bias=True,
      out_bias=True,
      mlp_bias=True,
      parallel=True,
      shared_norm=True,
      tied=c.flag("tie_word_embeddings", False),
      head_bias=True,
    )
  )


def config(k: Mapping) -> dict:
  """config.json for a decoder; what it cannot say is left out."""
  act = {"gelu_tanh": "gelu_new"}.get(k["activation"])
  return llama.their_plain(k) | dict(
    hidden_act=act or THEIR_ACTIVATIONS.get(k["activation"]),
    layer_norm_eps=k["norm_eps"],
    partial_rotary_factor=llama.their_share(k),
    resid_pdrop=k["dropout"],
    embd_pdrop=k["dropout"],
  )


PHI = Family(
  model_type="phi",
  architecture="PhiForCausalLM",
  prefix="model.",
  rows=ROWS,
  settings=settings,
  config=config,
  ignored=llama.IGNORED,
)
PHI3 = Family(
  model_type="phi3",
  architecture="Phi3ForCausalLM",
  prefix="model.",
  rows=ROWS3,
  settings=settings3,
  config=config3,
  ignored=llama.IGNORED,
  limits=limits3,
)
