"""What the configs of models of captioned images share. Not a run by itself."""

import difflib

from ml_collections import ConfigDict

from aigc_jax.presets.images import images

# What is asked of digits that are not in training, in words.
DIGITS = (
  "zero", "one", "two", "three", "four", "five", "six", "seven", "eight",
  "nine",
)  # fmt: skip


def captions() -> ConfigDict:
  """The skeleton for captioned images: its sections data and objective.

  The section model is left as it is, for a config to put another.
  """
  config = images()
  config.data.kind = "captions"
  # Or kind="folder" (path: NAME.jpg with NAME.txt beside it), "table" (path: of
  # JSON lines, .tsv or .csv; image, caption: its keys), "package".
  config.data.sources = (
    dict(
      kind="parquet", path="data/captions", split="train", image="image",
      caption="caption", weight=1.0,
    ),
  )  # fmt: skip
  config.data.tokenizer = "sentencepiece"  # trained on the captions; as of text
  config.data.tokenizer_vocab = 4096  # pieces of a sentencepiece trained here
  config.data.length = 64  # tokens of a caption, its end included
  config.data.start = None  # the id that texts begin with; None: none
  config.data.pad = None  # the id behind a text; None: the end of text again
  config.data.augment.update(crop=0.9, flip=False)
  config.data.validation = 0.01
  config.objective = dict(
    kind="contrastive",  # which text belongs to which image of a batch
    loss="softmax",  # or sigmoid: of each pair by itself
  )
  config.evaluate.recall = dict(
    kind="recall",  # how often the right one is among the k nearest
    data=dict(split="validation"),
    every_steps=None,
    batches=None,
    weights="raw",
    at=(1, 5, 10),  # k
  )
  return config


def chosen(sizes: dict, preset: str) -> dict:
  """sizes[preset]; ValueError naming the nearest that there is."""
  if preset not in sizes:
    close = difflib.get_close_matches(preset, list(sizes), n=1, cutoff=0.3)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(
      f"preset {preset!r}: there is none such{hint} (there are: "
      f"{', '.join(sizes)})"
    )
  return dict(sizes[preset])


def digits(config: ConfigDict) -> ConfigDict:
  """The config for the captioned digits of scikit-learn, within minutes."""
  config.steps = 600
  config.data.sources = (
    dict(kind="package", name="digits", split="train", weight=1.0),
  )
  config.data.update(
    batch=64, image_size=8, channels=1, crop=1.0, mean=(0.5,), std=(0.5,),
    tokenizer="bytes", length=24, start=None, pad=None,
  )  # fmt: skip
  config.data.augment.update(crop=None, shift=1)
  config.model.update(
    image_size=8, channels=1, patch=2, image_layers=3, image_dim=64,
    image_heads=4, image_mlp_dim=None, vocab=257, text_length=24, text_layers=2,
    text_dim=64, text_heads=4, text_mlp_dim=None, embed_dim=64, init_std=None,
  )  # fmt: skip
  config.compute.dtype = "float32"
  config.optim.update(
    learning_rate=1e-3, warmup_steps=60, weight_decay=0.1, b2=0.95,
  )  # fmt: skip
  config.evaluate.zero_shot = dict(
    kind="zero_shot",  # labels told by texts of their names
    data=dict(
      split="validation",
      sources=(dict(kind="package", name="digits", split="train"),),
    ),
    names=DIGITS,  # of the labels in texts; None: as the data has them
    templates=("a {}", "the digit {}"),
    every_steps=None,
    batches=None,
    weights="raw",
  )
  config.evaluate.heldout.every_steps = 200
  config.evaluate.recall.every_steps = 200
  config.evaluate.zero_shot.every_steps = 200
  config.checkpoint.every_steps = 200
  config.log.every_steps = 20
  return config
