"""What the configs of models of images share. Not a run by itself."""

import difflib

from ml_collections import ConfigDict

from aigc_jax.presets.keys import skeleton

# Sources by the second word of a preset, as in configs/vit.py:s16,imagenet.
DATASETS = dict(
  imagenet=dict(
    kind="tfds", name="imagenet2012", split="train", image="image",
    label="label", weight=1.0,
  ),
  cifar10=dict(
    kind="tfds", name="cifar10", split="train", image="image", label="label",
    weight=1.0,
  ),
  digits=dict(kind="package", name="digits", split="train", weight=1.0),
  # Of one's own: --config.data.sources[0].path=P --config.model.classes=N.
  folder=dict(kind="folder", path="", split="train", weight=1.0),
  parquet=dict(
    kind="parquet", path="", split="train", image="image", label="label",
    weight=1.0,
  ),
)  # fmt: skip
LABELS = dict(imagenet=1000, cifar10=10, digits=10)


def labels_of(dataset: str) -> int:
  """How many labels it has; of one's own images as many as imagenet's."""
  return LABELS.get(dataset, LABELS["imagenet"])


def images() -> ConfigDict:
  """The skeleton for labelled images: its sections data and objective.

  The section model is left as it is, for a config to put another.
  """
  config = skeleton()
  config.data = dict(
    kind="images",
    # Or kind="folder" (path: a folder of images for each label), "parquet"
    # (path), "package" (name="digits"); mixed by weight.
    sources=(dict(DATASETS["imagenet"]),),
    batch=1024,  # rows of all devices together
    image_size=224,  # rows and columns that the model sees
    channels=3,  # or 1, grey
    crop=0.875,  # share of the short side that evaluation sees, in the middle
    mean=(0.485, 0.456, 0.406),  # of the channels from 0 to 1, subtracted
    std=(0.229, 0.224, 0.225),  # and divided by
    augment=dict(
      crop=0.08,  # the least share of the area that is cropped; None: none
      shift=0,  # pixels that an image is moved by, at most
      flip=True,  # left and right, every other one
      operations=0,  # how many of RandAugment's
      magnitude=9,  # how strong, up to 30
      mixup=None,  # alpha of the shares of two images; None: never
      cutmix=None,  # the same, pasted
    ),
    shuffle=True,  # whether images come in a random order, new in each epoch
    validation=0.02,  # share held out where a source has no such split
    most_damaged=0.01,  # share of images that may be left out as unusable
    draw=False,  # whether a batch has a key for each row, for noise in a loss
    root="~/.cache/aigc_jax",  # where stores are kept
    skip_steps=(),  # steps whose batches are left out
  )
  config.objective = dict(
    kind="labels",  # cross entropy of the label
    smoothing=0.1,  # share of the target spread over all labels
  )
  return config


def sized(sizes: dict, preset: str) -> tuple[dict, str]:
  """(sizes[SIZE], dataset) for "SIZE" or "SIZE,DATASET"."""
  size, _, data = preset.partition(",")
  data = data or "imagenet"
  for word, words in ((size, sizes), (data, DATASETS)):
    if word not in words:
      close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.3)
      hint = f"; did you mean {close[0]!r}?" if close else ""
      raise ValueError(
        f"preset {preset!r}: there is no {word!r}{hint} (expected SIZE or "
        f"SIZE,DATASET; sizes: {', '.join(sizes)}; datasets: "
        f"{', '.join(DATASETS)})"
      )
  return dict(sizes[size]), data


def of(config: ConfigDict, dataset: str) -> ConfigDict:
  """The config with another dataset; of imagenet nothing changes."""
  config.data.sources = (dict(DATASETS[dataset]),)
  if "classes" in config.model and dataset in LABELS:
    config.model.classes = LABELS[dataset]
  if dataset == "digits":
    config.data.update(channels=1, mean=(0.5,), std=(0.5,))
    if "channels" in config.model:  # not in that of several parts
      config.model.channels = 1
  return config
