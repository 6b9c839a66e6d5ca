"""From a clone to a trained model, on a laptop, without downloads.

  python -m aigc_jax.train --config=configs/quickstart.py --workdir=DIR

A small Llama-like decoder on the source of Python's standard library, with a
SentencePiece tokenizer trained on it; the files held out are never seen.
"""

from aigc_jax.presets import skeleton


def get_config():
  config = skeleton()
  config.steps = 400
  config.data.update(batch=16, length=128, tokenizer_vocab=2048)
  config.model.update(
    vocab=2048, layers=4, dim=128, heads=4, kv_heads=2, unroll=None,
  )  # fmt: skip
  config.objective.chunk = None
  config.optim.update(
    learning_rate=4e-3, schedule="linear", warmup_steps=40, final_fraction=0.0
  )
  config.evaluate.heldout.every_steps = 200
  config.evaluate.samples = dict(
    kind="samples", prompts=("def main(", "import ", "class "), max_tokens=64,
    temperature=0.8,
    top_p=0.95, num_samples=1, every_steps=None,
  )  # fmt: skip
  config.checkpoint.every_steps = 200
  return config
