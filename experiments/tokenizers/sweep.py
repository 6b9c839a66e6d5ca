"""Which tokenizer gives a tiny model the fewest bits per byte?

  python -m aigc_jax.sweep --sweep=experiments/tokenizers/sweep.py \
    --out=runs/tokenizers --together=3
  python -m aigc_jax.report table runs/tokenizers \
    --metric=eval/heldout/bits_per_byte

All arms have the same blocks and the same FLOPs; a row is as many tokens, which
are more bytes where the vocabulary is larger. Held out is the whole set, which
is the same text for all.
"""

from aigc_jax.scaling.space import Sweep, arms, grid, product, repeat

VOCABS = (512, 1024, 2048)
FLOPS = 1e11

SHARED = {
  "data.batch": 16, "data.length": 64, "model.layers": 2, "model.dim": 48,
  "model.heads": 3, "model.kv_heads": 3, "optim.kind": "adamw",
  "optim.learning_rate": 2.0**-6, "optim.schedule": "cosine",
  "optim.warmup_steps": None, "optim.warmup_fraction": 0.1,
  "optim.weight_decay": 0.0, "steps": None, "total_flops": FLOPS,
  "checkpoint.every_steps": None, "log.every_steps": 10,
}  # fmt: skip


def get_sweep():
  tried = arms(
    bytes={"data.tokenizer": "bytes", "model.vocab": 257},
    **{
      f"sentencepiece {vocab}": {
        "data.tokenizer_vocab": vocab, "model.vocab": vocab,
      }
      for vocab in VOCABS
    },
  )  # fmt: skip
  points = product(tried, grid({key: [v] for key, v in SHARED.items()}))
  return Sweep(
    "configs/quickstart.py", repeat(points, seeds=3), baseline="bytes",
    metric="eval/heldout/bits_per_byte",
  )  # fmt: skip
