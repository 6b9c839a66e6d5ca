"""A student of one layer beside the BERT of experiments/bert/small.py.

  python -m aigc_jax.train --config=experiments/distillation/student.py \
    --config.frozen.teacher=runs/bert --workdir=DIR

It starts as the teacher's first layer of two, with its embeddings and head.
"""

from ml_collections import ConfigDict

from aigc_jax.presets import distilbert
from experiments.bert import small


def get_config():
  config = small.get_config()
  teacher = config.model.to_dict()
  config.model = ConfigDict(
    dict(
      kind="roles",
      parts=dict(student=teacher | dict(layers=1), teacher=teacher),
    )
  )
  config.frozen = ConfigDict(dict(teacher="runs/bert"))
  config.init_parts = ConfigDict(
    dict(student=dict(part="teacher", layers=(0,)))
  )
  config.objective = distilbert.get_config().objective  # as published
  config.steps = 800
  config.evaluate.heldout.every_steps = 200
  return config
