"""Whisper (arXiv:2212.04356), exact in its parameter counts.

Presets: tiny, base, small. The published vocabulary is a tokenizer that one
must have: --config.data.tokenizer=hf:FOLDER; what it was trained on was never
published. Batch, learning rates and warm-up are those of the paper's appendix
F.
"""

from ml_collections import ConfigDict

from aigc_jax.presets.sound import sound

SIZES = {
  "tiny": dict(layers=4, dim=384, heads=6, learning_rate=1.5e-3),
  "base": dict(layers=6, dim=512, heads=8, learning_rate=1e-3),
  "small": dict(layers=12, dim=768, heads=12, learning_rate=5e-4),
}


def get_config(preset="tiny") -> ConfigDict:
  if preset not in SIZES:
    raise ValueError(f"preset {preset!r}: expected one of {', '.join(SIZES)}")
  size = dict(SIZES[preset])
  config = sound()
  config.steps = 1_048_576
  config.data.update(batch=256, validation=0.001)
  config.optim.update(
    learning_rate=size.pop("learning_rate"), schedule="linear",
    warmup_steps=2048, final_fraction=0.0, weight_decay=0.1, b2=0.98, eps=1e-6,
  )  # fmt: skip
  layers = size.pop("layers")
  config.model = dict(
    kind="whisper",
    vocab=51_865,  # rows of the embedding: at least the tokenizer's ids
    seconds=30.0,  # of sound that is heard, 50 positions each
    bins=80,  # bands of the spectrogram
    encoder_layers=layers,
    decoder_layers=layers,
    **size,  # dim, heads
    mlp_dim=None,  # width of the MLP; None: 4 dim
    activation="gelu",
    position_length=448,  # tokens that are written at most
    start_token=50_258,  # that each text is written after; None: end of text
    embed_std=0.02,  # of embeddings and learned positions; None: by fan-in
    init_std=0.02,  # of all other weights; None: by fan-in
    dropout=0.0,
  )
  config.compute.dtype = "bfloat16"
  config.evaluate.heldout.update(every_steps=2000, batches=64)
  config.checkpoint.update(every_steps=2000, keep_every_steps=20_000)
  return config
