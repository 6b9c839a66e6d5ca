"""RoBERTa (arXiv:1907.11692): other tokens masked each time, no pairs of texts.

Presets: base, large; a second word names the dataset (lm1b, c4, stdlib). As in
the paper (table 9): 500,000 steps of 8,192 rows of 512 tokens, Adam with b2 =
0.98, linear after a warm-up of 24,000 and 30,000 steps. The published tokenizer
is a file that one must have: --config.data.tokenizer=hf:FOLDER; without one a
SentencePiece of as many pieces is trained.
"""

from ml_collections import ConfigDict

from aigc_jax.presets import bert
from aigc_jax.presets.published import choose

SIZES = {
  "base": bert.BASE | dict(vocab=50_265),
  "large": bert.LARGE | dict(vocab=50_265),
}
RATES = {"base": (6e-4, 24_000), "large": (4e-4, 30_000)}

MODEL = bert.MODEL | dict(
  norm_eps=1e-5, position_start=2, types=1, pooler=False, next_sentence=False
)
TASK = bert.TASK | dict(next_sentence=False)


def get_config(preset="base") -> ConfigDict:
  found, sources = choose(preset, SIZES, "lm1b")
  config = bert.encoder(found, MODEL, TASK, sources)
  config.steps = 500_000
  config.data.update(batch=8192, length=512)
  rate, warmup = RATES[preset.partition(",")[0]]
  config.optim.update(
    learning_rate=rate, schedule="linear", warmup_steps=warmup,
    final_fraction=0.0, weight_decay=0.01, clip=None, b2=0.98, eps=1e-6,
  )  # fmt: skip
  return config
