r"""The recorded prompts of recorded.py, beside more speech of phrases.py.

  python -m aigc_jax.train --config=experiments/speech/phrased.py:OUT \
      --workdir=DIR

OUT is the folder that prompts.py and phrases.py wrote.
"""

from experiments.speech import recorded


def get_config(folder):
  config = recorded.get_config(folder)
  config.steps = 1500
  (own,) = config.data.sources
  joined = dict(own, path=f"{folder}/joined.jsonl", weight=0.35)
  phrases = dict(own, path=f"{folder}/phrases.jsonl", weight=0.5)
  config.data.sources = (dict(own, weight=0.15), joined, phrases)
  config.optim.update(schedule="wsd", decay_steps=500, average=0.998)
  config.model.update(layers=5, dim=128, heads=4)
  return config
