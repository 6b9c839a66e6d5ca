"""Marian's translators, as of OPUS-MT: MarianMTModel.

https://huggingface.co/docs/transformers/model_doc/marian; the Transformer of
arXiv:1706.03762 with a bias of the logits.
"""

from collections.abc import Mapping

import numpy as np

from aigc_jax.hf.llama import layer_norm, linear
from aigc_jax.hf.settings import ACTIVATIONS, Settings
from aigc_jax.hf.t5 import PLAIN, start_of
from aigc_jax.hf.table import Family, Row
from aigc_jax.layers.position import sinusoids

SHARED = "model.shared.weight"
EPS = 1e-5  # of their norms, which no config.json says
POSITIONS = 1024  # for how many a new model makes its fixed vectors


def side_rows(side: str, attentions: tuple[tuple[str, str], ...]):
  """The rows of one stack; a leaf that a model lacks has none."""
  stack, layer = f"{side}/stack", f"model.{side}.layers.{{layer}}."
  for ours, theirs in attentions:
    for part, short, axes, bias in (
      ("query", "q_proj", "(NH)D->DNH", "(NH)->NH"),
      ("key", "k_proj", "(KH)D->DKH", "(KH)->KH"),
      ("value", "v_proj", "(KH)D->DKH", "(KH)->KH"),
      ("out", "out_proj", "D(NH)->NHD", "D->D"),
    ):
      name = f"{layer}{theirs}.{short}"
      yield from linear(f"{stack}/{ours}/{part}", name, axes, bias)
    yield from layer_norm(f"{stack}/norm_{ours}", f"{layer}{theirs}_layer_norm")
  yield from linear(f"{stack}/mlp/up", f"{layer}fc1", "FD->DF", "F->F")
  yield from linear(f"{stack}/mlp/down", f"{layer}fc2", "DF->FD", "D->D")
  yield from layer_norm(f"{stack}/norm_mlp", f"{layer}final_layer_norm")


OWN = ("attention", "self_attn")
ROWS = (
  Row("embed/table", SHARED, "VD->VD"),
  *side_rows("encoder", (OWN,)),
  *side_rows("decoder", (OWN, ("cross_attention", "encoder_attn"))),
  Row("head/table", "lm_head.weight", "VD->VD"),
  Row("head/bias", "final_logits_bias", "1V->V"),
)


def positions(k: Mapping, rows: int) -> np.ndarray:
  """The fixed positions, which transformers reads where a folder has them."""
  at_1T = np.arange(rows)[None]
  return np.asarray(sinusoids(at_1T, k["dim"], np.float32, closed=False)[0])


def settings(c: Settings) -> dict:
  """The encoder-decoder of a Marian config.json."""
  c.only("is_encoder_decoder", True)
  c.only("share_encoder_decoder_embeddings", True)
  c.only("tie_word_embeddings", True)
  c.only("static_position_embeddings", True)
  c.only("normalize_before", False)
  c.only("normalize_embedding", False)
  c.only("add_final_layer_norm", False)
  vocab, dim = c.integer("vocab_size", 58_101), c.integer("d_model", 1024)
  heads = c.integer("encoder_attention_heads", 16)
  mlp_dim = c.integer("encoder_ffn_dim", 4096)
  # One size serves both sides; unsaid, they are as large as in the first.
  c.only("decoder_vocab_size", vocab)
  if c.integer("decoder_attention_heads", 16) != heads:
    raise c.fault("decoder_attention_heads", f"encoder_attention_heads={heads}")
  if c.integer("decoder_ffn_dim", 4096) != mlp_dim:
    raise c.fault("decoder_ffn_dim", f"encoder_ffn_dim={mlp_dim}")
  return PLAIN | dict(
    vocab=vocab,
    encoder_layers=c.integer("encoder_layers", 12),
    decoder_layers=c.integer("decoder_layers", 12),
    dim=dim,
    heads=heads,
    head_dim=dim // heads,
    mlp_dim=mlp_dim,
    activation=c.among("activation_function", ACTIVATIONS, "gelu"),
    gated=False,
    norm="layer",
    norm_eps=EPS,
    norm_bias=True,
    norm_place="after",
    final_norm=False,
    attention_bias=True,
    mlp_bias=True,
    attention_scale=None,
    position="sinusoidal",
    relative_buckets=None,
    relative_distance=None,
    embed_scale=c.flag("scale_embedding", False),
    shared=True,
    tied=True,
    tied_scale=False,
    head_bias=True,
    start_token=start_of(c, vocab - 1),
    init_std=c.number("init_std", 0.02, zero=True),
  )


def config(k: Mapping) -> dict:
  """config.json for an encoder-decoder; what it cannot say is left out."""
  mlp_dim = k["mlp_dim"] or 4 * k["dim"]
  return dict(
    is_encoder_decoder=True,
    vocab_size=k["vocab"],
    decoder_vocab_size=k["vocab"],
    d_model=k["dim"],
    encoder_layers=k["encoder_layers"],
    decoder_layers=k["decoder_layers"],
    encoder_attention_heads=k["heads"],
    decoder_attention_heads=k["heads"],
    encoder_ffn_dim=mlp_dim,
    decoder_ffn_dim=mlp_dim,
    activation_function=k["activation"].replace("gelu_tanh", "gelu_new"),
    max_position_embeddings=POSITIONS,
    scale_embedding=k["embed_scale"],
    share_encoder_decoder_embeddings=k["shared"],
    tie_word_embeddings=k["tied"],
    decoder_start_token_id=k["start_token"],
    init_std=k["init_std"] or 0.02,
    dropout=k["dropout"],
    attention_dropout=0.0,
    activation_dropout=0.0,
  )


MARIAN = Family(
  model_type="marian",
  architecture="MarianMTModel",
  prefix="",
  rows=ROWS,
  settings=settings,
  config=config,
  implied=dict.fromkeys(
    (f"model.{side}.embed_positions.weight" for side in ("encoder", "decoder")),
    positions,
  ),
  aliases={
    "hidden_size": "d_model",
    "num_attention_heads": "encoder_attention_heads",
    "num_hidden_layers": "encoder_layers",
  },
  kind="encoder_decoder",
  copies={
    "model.encoder.embed_tokens.weight": SHARED,
    "model.decoder.embed_tokens.weight": SHARED,
  },
  pipeline="translation",
)
