r"""A small Llama-like decoder on your own text.

  python -m aigc_jax.train --config=configs/text_file.py \
    --config.data.path=PATH --workdir=DIR

PATH is a file, a folder or a glob: plain text, .jsonl(.gz), .json or .parquet
with a field "text". The last 5 % are held out, or a file of your own instead
(--config.data.validation_path=FILE), or nothing (--config.data.validation=0).
Presets: bytes (the default) has a vocabulary of the 256 bytes and works for any
amount of text; sentencepiece trains 4096 pieces on the text, for a few
megabytes or more. Sized for a laptop; on an accelerator make it wider:
--config.model.dim=512 --config.model.heads=8, and what follows does.
"""

from aigc_jax.presets import skeleton

# "bytes" has the 256 bytes and the end of a text.
VOCABS = {"bytes": 257, "sentencepiece": 4096}


def get_config(preset="bytes"):
  if preset not in VOCABS:
    raise ValueError(f"preset {preset!r}: expected one of {', '.join(VOCABS)}")
  config = skeleton()
  config.data.update(sources=(), path=None, tokenizer=preset, validation=0.05)
  config.model.vocab = VOCABS[preset]
  config.optim.learning_rate = 1e-3
  config.evaluate.heldout.every_steps = 250
  config.checkpoint.every_steps = 250
  return config
