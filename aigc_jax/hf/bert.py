"""BERT: BertForMaskedLM, BertForPreTraining, or BertModel without heads.

https://huggingface.co/docs/transformers/model_doc/bert; arXiv:1810.04805.
"""

from collections.abc import Mapping

from aigc_jax.hf.llama import layer_norm, linear
from aigc_jax.hf.settings import ACTIVATIONS, Settings
from aigc_jax.hf.table import Family, Row

# How an encoder is computed: no config.json says it.
PLAIN = dict(
  token_head=False,
  pooler=False,
  next_sentence=False,
  dropout=0.0,
  remat="none",
  unroll=1,
  kernel="auto",
  fuse_projections=True,
  products="plain",
  embed_gradient="auto",
)
# Those of ours that they know by another name.
THEIR_ACTIVATIONS = {"gelu_tanh": "gelu_new"}


def body(prefix: str) -> tuple[Row, ...]:
  """The rows of embeddings, blocks and pooler, which RoBERTa has too."""
  embed, block = f"{prefix}.embeddings", f"{prefix}.encoder.layer.{{layer}}."

  def part(ours: str, theirs: str, axes: str, bias: str) -> tuple[Row, Row]:
    return linear(f"stack/{ours}", f"{block}{theirs}", axes, bias)

  attention = "attention.self"
  return (
    Row("embed/table", f"{embed}.word_embeddings.weight", "VD->VD"),
    Row("position/table", f"{embed}.position_embeddings.weight", "TD->TD"),
    Row("embed_type/table", f"{embed}.token_type_embeddings.weight", "VD->VD"),
    *layer_norm("norm", f"{embed}.LayerNorm"),
    *part("attention/query", f"{attention}.query", "(NH)D->DNH", "(NH)->NH"),
    *part("attention/key", f"{attention}.key", "(KH)D->DKH", "(KH)->KH"),
    *part("attention/value", f"{attention}.value", "(KH)D->DKH", "(KH)->KH"),
    *part("attention/out", "attention.output.dense", "D(NH)->NHD", "D->D"),
    *layer_norm("stack/norm_attention", f"{block}attention.output.LayerNorm"),
    *part("mlp/up", "intermediate.dense", "FD->DF", "F->F"),
    *part("mlp/down", "output.dense", "DF->FD", "D->D"),
    *layer_norm("stack/norm_mlp", f"{block}output.LayerNorm"),
    *linear("pooler", f"{prefix}.pooler.dense", "GD->DG", "G->G"),
  )


TRANSFORM = "cls.predictions.transform"
ROWS = (
  *body("bert"),
  *linear("head/dense", f"{TRANSFORM}.dense", "GD->DG", "G->G"),
  *layer_norm("head/norm", f"{TRANSFORM}.LayerNorm"),
  Row("head/bias", "cls.predictions.bias", "V->V"),
  *linear("follows", "cls.seq_relationship", "GD->DG", "G->G"),
)


def settings(c: Settings) -> dict:
  """The encoder of a BERT config.json; what heads it has, its tensors say."""
  check(c)
  return PLAIN | sizes(c) | dict(
    position_length=c.integer("max_position_embeddings", 512),
    position_start=0,
    types=c.integer("type_vocab_size", 2),
  )  # fmt: skip


def check(c: Settings) -> None:
  """BadData for what our encoder does not compute."""
  c.only("position_embedding_type", "absolute")
  c.only("is_decoder", False)
  c.only("add_cross_attention", False)
  c.only("tie_word_embeddings", True)


def sizes(c: Settings) -> dict:
  """What BERT and RoBERTa say in the same words."""
  return dict(
    vocab=c.integer("vocab_size", 30_522),
    layers=c.integer("num_hidden_layers", 12),
    dim=c.integer("hidden_size", 768),
    heads=c.integer("num_attention_heads", 12),
    mlp_dim=c.integer("intermediate_size", 3072),
    activation=c.among("hidden_act", ACTIVATIONS, "gelu"),
    norm_eps=c.number("layer_norm_eps", 1e-12),
    init_std=c.number("initializer_range", 0.02, zero=True),
  )


def their_sizes(k: Mapping) -> dict:
  """The same, ours in theirs."""
  return dict(
    vocab_size=k["vocab"],
    num_hidden_layers=k["layers"],
    hidden_size=k["dim"],
    num_attention_heads=k["heads"],
    intermediate_size=k["mlp_dim"] or 4 * k["dim"],
    hidden_act=THEIR_ACTIVATIONS.get(k["activation"], k["activation"]),
    hidden_dropout_prob=k["dropout"],
    attention_probs_dropout_prob=0.0,
    layer_norm_eps=k["norm_eps"],
    initializer_range=k["init_std"] or 0.02,
  )


def config(k: Mapping) -> dict:
  """config.json for an encoder; what it cannot say is left out."""
  architecture = "BertModel"
  if k["token_head"]:
    architecture = "BertForMaskedLM"
  if k["next_sentence"]:
    architecture = "BertForPreTraining"
  return their_sizes(k) | dict(
    architectures=[architecture],
    max_position_embeddings=k["position_length"],
    type_vocab_size=k["types"],
  )


def limits(k: Mapping) -> list[str]:
  """Their classes have some heads together, and not otherwise."""
  if k["token_head"] and k["pooler"] != k["next_sentence"]:
    return [f"pooler={k['pooler']}"]
  if k["next_sentence"] and not k["token_head"]:
    return ["token_head=False"]
  return []


BERT = Family(
  model_type="bert",
  architecture="BertForMaskedLM",
  prefix="bert.",
  rows=ROWS,
  settings=settings,
  config=config,
  limits=limits,
  kind="encoder",
  heads={
    "token_head": f"{TRANSFORM}.dense.weight",
    "pooler": "bert.pooler.dense.weight",
    "next_sentence": "cls.seq_relationship.weight",
  },
  copies={
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
  },
  ignored=("bert.embeddings.position_ids", "embeddings.position_ids"),
  # As the first checkpoints have it, which were TensorFlow's.
  spellings={
    "LayerNorm.gamma": "LayerNorm.weight",
    "LayerNorm.beta": "LayerNorm.bias",
  },
  pipeline="fill-mask",
)
