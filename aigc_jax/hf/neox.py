"""GPT-NeoX (Pythia): attention and MLP side by side, each under its own norm.

Query, key and value of a head lie together in one tensor.
"""

from collections.abc import Mapping

from aigc_jax.hf import llama
from aigc_jax.hf.settings import (
  ACTIVATIONS,
  PLAIN,
  THEIR_ACTIVATIONS,
  Settings,
)
from aigc_jax.hf.table import Family, Row

BLOCK = "gpt_neox.layers.{layer}."


def _heads() -> tuple[Row, ...]:
  rows, theirs = [], f"{BLOCK}attention.query_key_value"
  for i, name in enumerate(("query", "key", "value")):
    ours, n = f"stack/attention/{name}", "N" if name == "query" else "K"
    axes = f"({n}CH)D->D{n}H", f"({n}CH)->{n}H"
    rows.append(Row(f"{ours}/w", f"{theirs}.weight", axes[0], i, 3))
    rows.append(Row(f"{ours}/bias", f"{theirs}.bias", axes[1], i, 3))
  return tuple(rows)


def _linear(ours: str, theirs: str, axes: str, bias: str) -> tuple[Row, Row]:
  return llama.linear(f"stack/{ours}", f"{BLOCK}{theirs}", axes, bias)


ROWS = (
  Row("embed/table", "gpt_neox.embed_in.weight", "VD->VD"),
  *llama.layer_norm("stack/norm_attention", f"{BLOCK}input_layernorm"),
  *_heads(),
  *_linear("attention/out", "attention.dense", "D(NH)->NHD", "D->D"),
  *llama.layer_norm("stack/norm_mlp", f"{BLOCK}post_attention_layernorm"),
  *_linear("mlp/up", "mlp.dense_h_to_4h", "FD->DF", "F->F"),
  *_linear("mlp/down", "mlp.dense_4h_to_h", "DF->FD", "D->D"),
  *llama.layer_norm("norm", "gpt_neox.final_layer_norm"),
  Row("head/table", "embed_out.weight", "VD->VD"),
)


def settings(c: Settings) -> dict:
  """The decoder of a GPT-NeoX config.json."""
  dim, heads = c.integer("hidden_size"), c.integer("num_attention_heads")
  head_dim = max(dim // heads, 1)
  bias = c.flag("attention_bias", True)
  old = dict(rope_theta="rotary_emb_base", partial_rotary_factor="rotary_pct")
  return (
    PLAIN
    | llama.rotary_in_part(c, head_dim, share=0.25, outside=old)
    | llama.with_layer_norms(c)
    | dict(
      vocab=c.integer("vocab_size"),
      layers=c.integer("num_hidden_layers"),
      dim=dim,
      heads=heads,
      kv_heads=heads,
      head_dim=head_dim,
      mlp_dim=c.integer("intermediate_size"),
      activation=c.among("hidden_act", ACTIVATIONS, "gelu"),
      gated=False,
      attention_bias=bias,
      out_bias=bias,
      mlp_bias=True,
      parallel=c.flag("use_parallel_residual", True),
      position_length=c.integer("max_position_embeddings", 2048),
      tied=c.flag("tie_word_embeddings", False),
      init_std=c.number("initializer_range", 0.02, zero=True),
    )
  )


def config(k: Mapping) -> dict:
  """config.json for a decoder; what it cannot say is left out."""
  found = llama.their_body(k) | llama.their_rotary(k)
  for key in ("num_key_value_heads", "head_dim", "rms_norm_eps"):
    found.pop(key)  # there are none of their own
  return found | dict(
    hidden_act=THEIR_ACTIVATIONS.get(k["activation"]),
    layer_norm_eps=k["norm_eps"],
    rotary_emb_base=found.pop("rope_theta"),
    rotary_pct=llama.their_share(k),
    attention_bias=k["attention_bias"],
    use_parallel_residual=k["parallel"],
    hidden_dropout=k["dropout"],
  )


NEOX = Family(
  model_type="gpt_neox",
  architecture="GPTNeoXForCausalLM",
  prefix="gpt_neox.",
  rows=ROWS,
  settings=settings,
  config=config,
  ignored=(
    *llama.IGNORED,
    "*layers.*.attention.bias",
    "*layers.*.attention.masked_bias",
  ),
)
