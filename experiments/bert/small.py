"""A small BERT on the source of Python's standard library, without downloads.

python -m aigc_jax.train --config=experiments/bert/small.py --workdir=DIR
"""

from ml_collections import ConfigDict

from aigc_jax.presets import bert, skeleton

VOCAB = 2048


def get_config():
  config = skeleton()
  config.steps = 4500
  config.data.update(batch=64, length=32, tokenizer_vocab=VOCAB)
  # Short rows, of which the few positions are learnt sooner.
  config.data.task = ConfigDict(
    bert.TASK | dict(share=0.3, edges=False, next_sentence=False)
  )
  config.model = ConfigDict(
    bert.MODEL | dict(
      vocab=VOCAB, layers=2, dim=128, heads=4, mlp_dim=512, position_length=32,
      pooler=False, next_sentence=False, dropout=0.0,
      init_std=None,
    )
  )  # fmt: skip
  config.compute.unroll = None
  config.objective = ConfigDict(
    dict(kind="masked", chunk=None, logits="float32", next_sentence=False)
  )
  # Positions keep the rate of all else: at a tenth of it attention had
  # not found the neighbours after 1,500 steps.
  config.optim.update(
    kind="muon", learning_rate=1e-2, schedule="linear", warmup_steps=50,
    final_fraction=0.0,
  )  # fmt: skip
  config.evaluate.heldout.update(every_steps=250, batches=16)
  config.checkpoint.every_steps = None
  return config
