r"""Recorded prompts of a telephone exchange: a small CTC encoder.

  python -m aigc_jax.train --config=experiments/speech/recorded.py:OUT \
      --workdir=DIR

OUT is the folder that prompts.py wrote.
"""

from aigc_jax.presets import ctc


def get_config(folder):
  config = ctc.get_config("small")
  config.steps = 3600
  recorded = dict(
    kind="table", path=f"{folder}/recorded.jsonl", audio="audio",
    text="sentence", weight=1.0,
  )  # fmt: skip
  config.data.update(
    sources=(recorded,), batch=8, seconds=5.0, target_length=128,
    validation=0.12, split_by="text",
  )  # fmt: skip
  config.data.augment.update(
    speed=10, gain=6.0, times=1, time_width=25, time_share=0.15, bands=1,
    band_width=8,
  )  # fmt: skip
  config.optim.update(
    kind="muon", learning_rate=5e-3, schedule="cosine", warmup_steps=100,
    weight_decay=0.01, b2=0.98,
  )  # fmt: skip
  config.model.update(
    bins=40, stride=4, layers=4, dim=96, heads=4, dropout=0.1, init_std=None
  )
  config.compute.dtype = "float32"
  config.evaluate.heldout.update(
    data=dict(split="validation", sources=(recorded,)), every_steps=400,
    batches=None,
  )  # fmt: skip
  config.checkpoint.update(every_steps=400, keep=2, keep_every_steps=None)
  config.log.every_steps = 50
  return config
