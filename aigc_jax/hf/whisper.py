"""Whisper: WhisperForConditionalGeneration.

https://huggingface.co/docs/transformers/model_doc/whisper; arXiv:2212.04356.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from aigc_jax import files
from aigc_jax.hf.llama import layer_norm, linear
from aigc_jax.hf.marian import OWN, side_rows
from aigc_jax.hf.settings import Settings
from aigc_jax.hf.t5 import start_of
from aigc_jax.hf.table import Family, Row
from aigc_jax.layers.mel import HOP, RATE, WINDOW
from aigc_jax.models.whisper import STEP

POSITIONS = "model.encoder.embed_positions.weight"
MOST_STEPS = 3600 * RATE // STEP  # positions of the encoder: an hour
MOST_BINS = 200


ROWS = (
  Row("embed/table", "model.decoder.embed_tokens.weight", "VD->VD"),
  Row("position/table", "model.decoder.embed_positions.weight", "TD->TD"),
  *(
    row
    for i in (1, 2)
    for row in linear(
      f"ear/convolution_{i}/projection", f"model.encoder.conv{i}",
      "DIX->XID", "D->D",
    )
  ),
  *side_rows("encoder", (OWN,)),
  *layer_norm("encoder/norm", "model.encoder.layer_norm"),
  *side_rows("decoder", (OWN, ("cross_attention", "encoder_attn"))),
  *layer_norm("decoder/norm", "model.decoder.layer_norm"),
  Row("head/table", "proj_out.weight", "VD->VD"),
)  # fmt: skip


def positions(k: Mapping) -> np.ndarray:
  """The fixed positions of the encoder, which transformers counts as weights.

  As `layers.position.sinusoids` makes them.
  """
  steps, half = round(k["seconds"] * RATE / STEP), k["dim"] // 2
  rates = np.exp(-np.log(10_000.0) * np.arange(half) / max(half - 1, 1))
  angle = np.arange(steps)[:, None] * rates
  return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


def settings(c: Settings) -> dict:
  """The keywords of `models.whisper` for a config.json."""
  c.only("is_encoder_decoder", True)
  c.only("tie_word_embeddings", True)
  c.only("scale_embedding", False)
  c.only("activation_function", "gelu")  # its convolutions have no other
  dim, heads = (
    c.integer("d_model", 384),
    c.integer("encoder_attention_heads", 6),
  )
  mlp_dim = c.integer("encoder_ffn_dim", 1536)
  # One size serves both sides; unsaid, they are as large as in the first.
  if c.integer("decoder_attention_heads", 6) != heads:
    raise c.fault("decoder_attention_heads", f"encoder_attention_heads={heads}")
  if c.integer("decoder_ffn_dim", 1536) != mlp_dim:
    raise c.fault("decoder_ffn_dim", f"encoder_ffn_dim={mlp_dim}")
  if dim % heads or dim % 2:
    raise c.fault("d_model", "an even multiple of encoder_attention_heads")
  steps = c.integer("max_source_positions", 1500)
  if steps > MOST_STEPS:
    raise c.fault("max_source_positions", f"at most {MOST_STEPS}, an hour")
  bins = c.integer("num_mel_bins", 80)
  if bins > MOST_BINS:
    raise c.fault("num_mel_bins", f"at most {MOST_BINS}")
  vocab = c.integer("vocab_size", 51_865)
  return dict(
    vocab=vocab,
    seconds=steps * STEP / RATE,
    bins=bins,
    encoder_layers=c.integer("encoder_layers", 4),
    decoder_layers=c.integer("decoder_layers", 4),
    dim=dim,
    heads=heads,
    mlp_dim=mlp_dim,
    activation="gelu",
    position_length=c.integer("max_target_positions", 448),
    start_token=start_of(c, min(50_257, vocab - 1)),
    embed_std=c.number("init_std", 0.02, zero=True),
    init_std=c.number("init_std", 0.02, zero=True),
    dropout=0.0,
    remat="none",
    unroll=1,
    kernel="auto",
    fuse_projections=True,
    products="plain",
    embed_gradient="auto",
  )


def config(k: Mapping) -> dict:
  """config.json for a whisper; what it cannot say is left out."""
  mlp_dim = k["mlp_dim"] or 4 * k["dim"]
  return dict(
    is_encoder_decoder=True,
    vocab_size=k["vocab"],
    num_mel_bins=k["bins"],
    d_model=k["dim"],
    encoder_layers=k["encoder_layers"],
    decoder_layers=k["decoder_layers"],
    num_hidden_layers=k["encoder_layers"],
    encoder_attention_heads=k["heads"],
    decoder_attention_heads=k["heads"],
    encoder_ffn_dim=mlp_dim,
    decoder_ffn_dim=mlp_dim,
    activation_function="gelu",
    max_source_positions=round(k["seconds"] * RATE / STEP),
    max_target_positions=k["position_length"],
    scale_embedding=False,
    tie_word_embeddings=True,
    decoder_start_token_id=k["start_token"],
    init_std=k["init_std"] or 0.02,
    dropout=k["dropout"],
    attention_dropout=0.0,
    activation_dropout=0.0,
    # Theirs are ids of the published vocabulary.
    suppress_tokens=None,
    begin_suppress_tokens=None,
  )


def check_ears(folder: Path, k: Mapping) -> None:
  """BadData where the sound is made otherwise than ours is (layers/mel.py)."""
  path = folder / "preprocessor_config.json"
  if not files.is_there(path):
    return
  read = Settings(files.read_json(path), str(path))
  for key, value in (
    ("sampling_rate", RATE), ("hop_length", HOP), ("n_fft", WINDOW),
    ("feature_size", k["bins"]),
  ):  # fmt: skip
    read.only(key, value)


WHISPER = Family(
  model_type="whisper",
  architecture="WhisperForConditionalGeneration",
  prefix="",
  rows=ROWS,
  settings=settings,
  config=config,
  kind="whisper",
  aliases={
    "hidden_size": "d_model",
    "num_attention_heads": "encoder_attention_heads",
    "num_hidden_layers": "encoder_layers",
    "num_key_value_heads": "encoder_attention_heads",
  },
  fixed={POSITIONS: positions},
  check=check_ears,
  pipeline="automatic-speech-recognition",
)
