"""DistilBERT: DistilBertForMaskedLM, or DistilBertModel without the head.

https://huggingface.co/docs/transformers/model_doc/distilbert;
arXiv:1910.01108.
"""

from collections.abc import Mapping

from aigc_jax.hf import bert
from aigc_jax.hf.llama import layer_norm, linear
from aigc_jax.hf.settings import ACTIVATIONS, Settings
from aigc_jax.hf.table import Family, Row

EMBED = "distilbert.embeddings"
BLOCK = "distilbert.transformer.layer.{layer}."
EPS = 1e-12  # of all its norms


def _part(ours: str, theirs: str, axes: str, bias: str) -> tuple[Row, Row]:
  return linear(f"stack/{ours}", f"{BLOCK}{theirs}", axes, bias)


ROWS = (
  Row("embed/table", f"{EMBED}.word_embeddings.weight", "VD->VD"),
  Row("position/table", f"{EMBED}.position_embeddings.weight", "TD->TD"),
  *layer_norm("norm", f"{EMBED}.LayerNorm"),
  *_part("attention/query", "attention.q_lin", "(NH)D->DNH", "(NH)->NH"),
  *_part("attention/key", "attention.k_lin", "(KH)D->DKH", "(KH)->KH"),
  *_part("attention/value", "attention.v_lin", "(KH)D->DKH", "(KH)->KH"),
  *_part("attention/out", "attention.out_lin", "D(NH)->NHD", "D->D"),
  *layer_norm("stack/norm_attention", f"{BLOCK}sa_layer_norm"),
  *_part("mlp/up", "ffn.lin1", "FD->DF", "F->F"),
  *_part("mlp/down", "ffn.lin2", "DF->FD", "D->D"),
  *layer_norm("stack/norm_mlp", f"{BLOCK}output_layer_norm"),
  *linear("head/dense", "vocab_transform", "GD->DG", "G->G"),
  *layer_norm("head/norm", "vocab_layer_norm"),
  Row("head/bias", "vocab_projector.bias", "V->V"),
)


def settings(c: Settings) -> dict:
  """The encoder of a DistilBERT config.json."""
  c.only("tie_word_embeddings", True)
  dim = c.integer("dim", 768)
  return bert.PLAIN | dict(
    vocab=c.integer("vocab_size", 30_522),
    layers=c.integer("n_layers", 6),
    dim=dim,
    heads=c.integer("n_heads", 12),
    mlp_dim=c.integer("hidden_dim", 4 * dim),
    activation=c.among("activation", ACTIVATIONS, "gelu"),
    norm_eps=EPS,
    position_length=c.integer("max_position_embeddings", 512),
    position_start=0,
    types=0,
    init_std=c.number("initializer_range", 0.02, zero=True),
  )


def config(k: Mapping) -> dict:
  """config.json for an encoder; what it cannot say is left out."""
  head = k["token_head"]
  return dict(
    architectures=["DistilBertForMaskedLM" if head else "DistilBertModel"],
    vocab_size=k["vocab"],
    n_layers=k["layers"],
    dim=k["dim"],
    n_heads=k["heads"],
    hidden_dim=k["mlp_dim"] or 4 * k["dim"],
    activation=bert.THEIR_ACTIVATIONS.get(k["activation"], k["activation"]),
    max_position_embeddings=k["position_length"],
    initializer_range=k["init_std"] or 0.02,
    dropout=k["dropout"],
    attention_dropout=0.0,
  )


DISTILBERT = Family(
  model_type="distilbert",
  architecture="DistilBertForMaskedLM",
  prefix="distilbert.",
  rows=ROWS,
  settings=settings,
  config=config,
  kind="encoder",
  heads={"token_head": "vocab_transform.weight"},
  copies={"vocab_projector.weight": f"{EMBED}.word_embeddings.weight"},
  ignored=("*embeddings.position_ids",),
  aliases={
    "hidden_size": "dim",
    "num_attention_heads": "n_heads",
    "num_hidden_layers": "n_layers",
  },
  pipeline="fill-mask",
)
