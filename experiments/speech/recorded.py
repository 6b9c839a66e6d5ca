r"""Recorded prompts of a telephone exchange: a small CTC encoder.

  python -m aigc_jax.train --config=experiments/speech/recorded.py:OUT \
      --workdir=DIR

OUT is the folder that prompts.py wrote.
"""

from aigc_jax.presets import ctc


def get_config(folder):
  config = ctc.get_config("small")
  config.steps = 1500
  recorded = dict(
    kind="table", path=f"{folder}/recorded.jsonl", audio="audio",
    text="sentence", weight=1.0,
  )  # fmt: skip
  config.data.update(
    sources=(recorded,), batch=16, seconds=6.0, target_length=128,
    validation=0.12, split_by="text",
  )  # fmt: skip
  config.optim.update(
    learning_rate=2e-3, schedule="cosine", warmup_steps=100, weight_decay=0.01,
    b2=0.98,
  )  # fmt: skip
  config.model.update(
    bins=40, stride=4, layers=4, dim=128, heads=4, dropout=0.1, init_std=None
  )
  config.compute.dtype = "float32"
  config.evaluate.heldout.update(
    data=dict(split="validation", sources=(recorded,)), every_steps=250,
    batches=None,
  )  # fmt: skip
  config.checkpoint.update(every_steps=250, keep=2, keep_every_steps=None)
  config.log.every_steps = 25
  return config
