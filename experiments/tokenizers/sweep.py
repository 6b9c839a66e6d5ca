r"""Which tokenizer gives a tiny model the fewest bits per byte?

  python experiments/repeated_data/texts.py runs/texts
  python -m aigc_jax.sweep --sweep=experiments/tokenizers/sweep.py \
    --out=runs/tokenizers --together=12
  python -m experiments.optimum runs/tokenizers \
    --metric=eval/heldout/bits_per_byte

All arms have the same blocks and the same FLOPs; a row is as many tokens, which
are more bytes where the vocabulary is larger. Held out is 64 KiB of text, the
same for all, and tokenizers are trained on what the models are trained on. The
rate is chosen by the first seed, and the others compare.
"""

from aigc_jax.scaling.space import Sweep, arms, grid, product, repeat

TEXTS = "runs/texts"
VOCABS = (512, 1024, 2048)
FLOPS = 3e10
RATES = tuple(2.0**-k for k in range(7, 3, -1))

SHARED = {
  "data.path": f"{TEXTS}/262144.txt",
  "data.validation_path": f"{TEXTS}/heldout.txt",
  "data.batch": 8, "data.length": 64, "model.layers": 2, "model.dim": 32,
  "model.heads": 4, "model.kv_heads": 4, "optim.kind": "adamw",
  "optim.schedule": "cosine", "optim.warmup_steps": None,
  "optim.warmup_fraction": 0.1, "optim.weight_decay": 0.0, "steps": None,
  "total_flops": FLOPS, "checkpoint.every_steps": None, "log.every_steps": 10,
  "evaluate": dict(
    heldout=dict(
      kind="loss", data=dict(split="validation"), every_steps=None, batches=None
    )
  ),
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
  points = product(
    tried,
    grid({"optim.learning_rate": RATES}),
    grid({key: [value] for key, value in SHARED.items()}),
  )
  return Sweep(
    "configs/quickstart.py", repeat(points, seeds=4),
    metric="eval/heldout/bits_per_byte",
  )  # fmt: skip
