"""Encoders trained by connectionist temporal classification.

Presets: small, base, in letters as UTF-8 bytes; their sizes are of no published
model.
"""

from ml_collections import ConfigDict

from aigc_jax.presets.sound import sound

SIZES = {
  "small": dict(layers=6, dim=256, heads=4, learning_rate=1e-3),
  "base": dict(layers=12, dim=512, heads=8, learning_rate=5e-4),
}


def get_config(preset="small") -> ConfigDict:
  if preset not in SIZES:
    raise ValueError(f"preset {preset!r}: expected one of {', '.join(SIZES)}")
  size = dict(SIZES[preset])
  config = sound()
  config.steps = 100_000
  config.data.update(batch=64, seconds=20.0, target_length=400)
  config.optim.update(
    learning_rate=size.pop("learning_rate"), schedule="cosine",
    warmup_steps=5000, weight_decay=0.01, b2=0.98,
  )  # fmt: skip
  config.objective = dict(
    kind="ctc"  # over all alignments of the text with the steps
  )
  config.model = dict(
    kind="ctc",
    vocab=257,  # ids that a step may say, the blank among them
    blank=256,  # that for nothing new: the tokenizer's end of text
    bins=80,  # bands of the spectrogram
    stride=2,  # frames of 10 ms to a step: 1, 2 or 4
    **size,  # layers, dim, heads
    mlp_dim=None,  # width of the MLP; None: 4 dim
    activation="gelu",
    init_std=None,  # of all weights; None: by fan-in
    dropout=0.1,
  )
  config.compute.dtype = "bfloat16"
  config.evaluate.heldout.update(every_steps=2000)
  config.checkpoint.update(every_steps=2000)
  return config
