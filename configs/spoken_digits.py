r"""Spoken digits, a small run on speech that is made on the spot.

  python -m experiments.speech.speak --out=digits
  python -m aigc_jax.train --config=configs/spoken_digits.py:ctc \
      --config.data.sources[0].path=digits --workdir=DIR

Presets: ctc, whisper. Voices are held out as a whole; experiments/speech has
the words that are spoken, and what is reached.
"""

from aigc_jax.presets import ctc, whisper

SIZES = ("ctc", "whisper")


def get_config(preset="ctc"):
  if preset not in SIZES:
    raise ValueError(f"preset {preset!r}: expected {' or '.join(SIZES)}")
  by_ctc = preset == "ctc"
  config = ctc.get_config("small") if by_ctc else whisper.get_config("tiny")
  config.steps = 600
  config.data.update(
    batch=16, seconds=2.0, target_length=24, validation=0.2, split_by="folder"
  )
  config.data.sources = (dict(kind="folder", path="digits", weight=1.0),)
  config.optim.update(
    learning_rate=2e-3, schedule="cosine", warmup_steps=60, weight_decay=0.01,
    b2=0.98,
  )  # fmt: skip
  config.model.update(bins=40, dim=64, heads=4, dropout=0.1, init_std=None)
  config.compute.dtype = "float32"
  if by_ctc:
    config.model.update(layers=3, stride=4)
  else:
    config.model.update(
      vocab=257, seconds=2.0, encoder_layers=2, decoder_layers=2,
      position_length=24, start_token=None, embed_std=None,
    )  # fmt: skip
  config.evaluate.heldout.update(every_steps=200, batches=None)
  config.checkpoint.update(every_steps=300, keep_every_steps=None)
  config.log.every_steps = 50
  return config
