"""Speech of text, by flow matching of its log-mel spectrogram.

Presets: small, base, of letters as UTF-8 bytes, their sizes of no published
model; digits is minutes on a laptop, of the words of experiments/speech. The
average of the parameters is what speech is made with (--weights=average).
"""

from ml_collections import ConfigDict

from aigc_jax.presets.sound import sound

SIZES = {
  "small": dict(text_layers=4, layers=12, dim=384, heads=6),
  "base": dict(text_layers=4, layers=22, dim=1024, heads=16),
  "digits": dict(text_layers=1, layers=3, dim=128, heads=4),
}


def get_config(preset="small") -> ConfigDict:
  if preset not in SIZES:
    raise ValueError(f"preset {preset!r}: expected one of {', '.join(SIZES)}")
  config = sound()
  config.steps = 400_000
  config.data.update(batch=64, seconds=15.0, target_length=300)
  config.data.speakers = False  # whether a file's first folder is who speaks
  config.data.draw = True  # a key for each row, for noise in the loss
  config.objective = dict(
    kind="speech",  # a spectrogram without its noise, and its length
    bins=80,  # bands of the spectrogram, as in model
    text_dropout=0.1,  # share of rows that are not told their text
    speaker_dropout=0.1,  # and of those not told who speaks
    duration=1.0,  # weight of the squared error of the length's logarithm
  )
  config.optim.update(
    learning_rate=3e-4, schedule="cosine", warmup_steps=5000, weight_decay=0.01,
    b2=0.99, average=0.9999,
  )  # fmt: skip
  config.model = dict(
    kind="tts",
    vocab=257,  # rows of the embedding: at least the tokenizer's ids
    bins=80,  # bands of the spectrogram
    speakers=0,  # voices that it tells apart
    patch=4,  # frames of 10 ms to a step
    **SIZES[preset],  # text_layers, layers, dim, heads
    mlp_dim=None,  # width of the MLP; None: 4 dim
    activation="gelu_tanh",
    init_std=None,  # of all weights but those that begin as zeros; by fan-in
    dropout=0.1,
  )
  config.compute.dtype = "bfloat16"
  config.evaluate.heldout.update(every_steps=2500)
  config.checkpoint.update(every_steps=2500)
  if preset == "digits":
    digits(config)
  return config


def digits(config) -> None:
  """Clips of at most two words in 40 voices; some texts are held out."""
  config.steps = 3000
  config.data.update(
    batch=16, seconds=1.4, target_length=16, validation=0.2, split_by="text",
    speakers=True,
  )  # fmt: skip
  config.data.sources = (dict(kind="folder", path="digits", weight=1.0),)
  config.model.update(speakers=40, dropout=0.0)
  config.compute.dtype = "float32"
  config.optim.update(
    learning_rate=1e-3, schedule="constant", warmup_steps=100, average=0.998
  )
  config.evaluate.heldout.every_steps = 500
  config.checkpoint.every_steps = 500
  config.log.every_steps = 50
