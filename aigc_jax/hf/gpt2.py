"""GPT-2 (also GPT-3's dense shapes): GPT2LMHeadModel of transformers.

Its matrices are stored (in, out), and query, key and value are one tensor.
"""

from collections.abc import Mapping

from aigc_jax.hf.settings import ACTIVATIONS, PLAIN, Settings
from aigc_jax.hf.table import Family, Row

BLOCK = "transformer.h.{layer}."


def _fused(ours: str, part: int) -> tuple[Row, Row]:
  path, name = f"stack/attention/{ours}", f"{BLOCK}attn.c_attn"
  return (
    Row(f"{path}/w", f"{name}.weight", "D(CNH)->DNH", part, 3),
    Row(f"{path}/bias", f"{name}.bias", "(CNH)->NH", part, 3),
  )


def _norm(ours: str, theirs: str) -> tuple[Row, Row]:
  return (
    Row(f"{ours}/scale", f"{theirs}.weight", "D->D"),
    Row(f"{ours}/bias", f"{theirs}.bias", "D->D"),
  )


ROWS = (
  Row("embed/table", "transformer.wte.weight", "VD->VD"),
  Row("position/table", "transformer.wpe.weight", "TD->TD"),
  *_norm("stack/norm_attention", f"{BLOCK}ln_1"),
  *_fused("query", 0),
  *_fused("key", 1),
  *_fused("value", 2),
  Row("stack/attention/out/w", f"{BLOCK}attn.c_proj.weight", "(NH)D->NHD"),
  Row("stack/attention/out/bias", f"{BLOCK}attn.c_proj.bias", "D->D"),
  *_norm("stack/norm_mlp", f"{BLOCK}ln_2"),
  Row("stack/mlp/up/w", f"{BLOCK}mlp.c_fc.weight", "DF->DF"),
  Row("stack/mlp/up/bias", f"{BLOCK}mlp.c_fc.bias", "F->F"),
  Row("stack/mlp/down/w", f"{BLOCK}mlp.c_proj.weight", "FD->FD"),
  Row("stack/mlp/down/bias", f"{BLOCK}mlp.c_proj.bias", "D->D"),
  *_norm("norm", "transformer.ln_f"),
  Row("head/table", "lm_head.weight", "VD->VD"),
)


def settings(c: Settings) -> dict:
  """The decoder of a GPT-2 config.json."""
  c.only("scale_attn_weights", True)
  c.only("scale_attn_by_inverse_layer_idx", False)
  c.only("add_cross_attention", False)
  dim, heads = c.integer("n_embd"), c.integer("n_head")
  return PLAIN | dict(
    vocab=c.integer("vocab_size"),
    layers=c.integer("n_layer"),
    dim=dim,
    heads=heads,
    kv_heads=heads,
    head_dim=dim // heads,
    mlp_dim=c.integer("n_inner", 4 * dim),
    activation=c.among("activation_function", ACTIVATIONS, "gelu_new"),
    gated=False,
    norm="layer",
    norm_eps=c.number("layer_norm_epsilon", 1e-5),
    norm_bias=True,
    attention_bias=True,
    out_bias=True,
    mlp_bias=True,
    position="learned",
    position_length=c.integer("n_positions", 1024),
    tied=c.flag("tie_word_embeddings", True),
    init_std=c.number("initializer_range", 0.02, zero=True),
  )


# Here gelu_tanh has the name of the first implementation.
_NAMES = {"gelu_tanh": "gelu_new"}


def config(k: Mapping) -> dict:
  """config.json for a decoder; what it cannot say is left out."""
  return dict(
    vocab_size=k["vocab"],
    n_layer=k["layers"],
    n_embd=k["dim"],
    n_head=k["heads"],
    n_inner=k["mlp_dim"],
    n_positions=k["position_length"] or 1,
    activation_function=_NAMES.get(k["activation"], k["activation"]),
    layer_norm_epsilon=k["norm_eps"],
    tie_word_embeddings=k["tied"],
    initializer_range=k["init_std"] or 0.02,
    embd_pdrop=k["dropout"],
    resid_pdrop=k["dropout"],
    attn_pdrop=0.0,
  )


GPT2 = Family(
  model_type="gpt2",
  architecture="GPT2LMHeadModel",
  prefix="transformer.",
  rows=ROWS,
  settings=settings,
  config=config,
  ignored=("*h.*.attn.bias", "*h.*.attn.masked_bias"),
  aliases={
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
    "max_position_embeddings": "n_positions",
  },
)
