"""From a clone to a trained model, on a laptop, without downloads.

  python -m aigc_jax.train --config=configs/quickstart.py --workdir=DIR

A small Llama-like decoder on the source of Python's standard library, with a
SentencePiece tokenizer trained on it; the files held out are never seen.
"""

from aigc_jax.presets import skeleton


def get_config():
  config = skeleton()
  # Two layers that see many tokens beat four that see fewer in the same time:
  # experiments/quickstart has the runs that say so.
  config.steps = 600
  config.data.update(batch=8, length=256, tokenizer_vocab=2048)
  config.model.update(
    vocab=2048, layers=2, dim=128, heads=4, kv_heads=2,
  )  # fmt: skip
  config.compute.unroll = None
  config.objective.chunk = None
  config.optim.update(
    kind="muon", learning_rate=2e-2, schedule="linear", warmup_steps=20,
    final_fraction=0.0,
  )  # fmt: skip
  # The whole held-out set costs as much as 30 steps: at the end only.
  config.evaluate.heldout.every_steps = None
  config.evaluate.samples = dict(
    kind="samples", prompts=("def main(", "import ", "class "), max_tokens=64,
    temperature=0.8,
    top_p=0.95, num_samples=1, every_steps=None,
  )  # fmt: skip
  config.checkpoint.every_steps = 300
  return config
