"""What the configs of published models share. Not a run by itself."""

import difflib

from ml_collections import ConfigDict

from aigc_jax.presets.keys import skeleton

# Sources by the second word of a preset, as in configs/gpt2.py:small,c4.
DATASETS = dict(
  stdlib=dict(kind="corpus", name="stdlib", split="train", weight=1.0),
  lm1b=dict(kind="tfds", name="lm1b", split="train", field="text", weight=1.0),
  c4=dict(kind="tfds", name="c4/en", split="train", field="text", weight=1.0),
)


def choose(preset: str, sizes: dict, dataset: str) -> tuple[dict, tuple]:
  """(sizes[SIZE], sources) for "SIZE" or "SIZE,DATASET"."""
  size, _, data = preset.partition(",")
  for word, words in ((size, sizes), (data or dataset, DATASETS)):
    if word not in words:
      close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.3)
      hint = f"; did you mean {close[0]!r}?" if close else ""
      raise ValueError(
        f"preset {preset!r}: there is no {word!r}{hint} (expected SIZE or "
        f"SIZE,DATASET; sizes: {', '.join(sizes)}; datasets: "
        f"{', '.join(DATASETS)})"
      )
  return dict(sizes[size]), (dict(DATASETS[data or dataset]),)


def published(
  sizes: dict, preset: str, dataset: str, **model: object
) -> ConfigDict:
  """The config of a published architecture in one of its sizes.

  `model` holds what all sizes share; a size holds any key of the model, and
  batch, length, learning_rate and steps of the run. The published tokenizers
  are files that one must have: --config.data.tokenizer=hf:FOLDER.
  """
  size, sources = choose(preset, sizes, dataset)
  config = skeleton()
  config.steps = size.pop("steps")
  config.data.update(sources=sources, tokenizer_vocab=32_000, validation=0.001)
  config.data.update(batch=size.pop("batch"), length=size.pop("length"))
  config.optim.update(learning_rate=size.pop("learning_rate"))
  config.optim.update(warmup_steps=2000)
  config.compute.update(dtype="bfloat16", remat="full")
  config.model.update({**model, **size})
  config.evaluate.heldout.update(every_steps=2000, batches=64)
  config.checkpoint.update(every_steps=1000, keep_every_steps=10_000)
  return config
