r"""What is a token worth that was seen before?

  python experiments/repeated_data/texts.py runs/texts
  python -m aigc_jax.sweep --sweep=experiments/repeated_data/sweep.py \
    --out=runs/repeated_data --together=3
  python -m experiments.repeated_data.worth runs/repeated_data

Runs of two lengths on texts of four and five sizes; a text that is shorter than
the run is gone through again, in another order. A third length sees no token
twice, for what fewer fresh ones give.
"""

from aigc_jax.scaling.space import Sweep, chain, grid, product, repeat, zipped

BATCH, LENGTH = 8, 64
LONGEST = 2**18  # bytes, each of them a token
TEXTS = "runs/texts"

SHARED = {
  "data.tokenizer": "bytes", "data.batch": BATCH, "data.length": LENGTH,
  "data.validation_path": f"{TEXTS}/heldout.txt",
  "model.vocab": 257, "model.layers": 2, "model.dim": 32, "model.heads": 2,
  "model.kv_heads": 2, "optim.kind": "adamw", "optim.learning_rate": 2.0**-6,
  "optim.schedule": "cosine", "optim.warmup_steps": None,
  "optim.warmup_fraction": 0.1, "optim.weight_decay": 0.0,
  "checkpoint.every_steps": None, "log.every_steps": 10,
  "evaluate": dict(
    heldout=dict(
      kind="loss", data=dict(split="validation"), every_steps=None, batches=None
    )
  ),
}  # fmt: skip


def length(tokens, texts):
  """Runs of so many tokens on a text as long, a half, a quarter ... of it."""
  sizes = [tokens // 2**k for k in range(texts)]
  return zipped(
    {
      "data.path": [f"{TEXTS}/{size}.txt" for size in sizes],
      "steps": [tokens // (BATCH * LENGTH)] * len(sizes),
    }
  )


def get_sweep():
  lengths = chain(
    length(LONGEST, 5), length(LONGEST // 2, 4), length(LONGEST // 4, 1)
  )
  shared = grid({key: [value] for key, value in SHARED.items()})
  points = product(lengths, shared)
  return Sweep("configs/quickstart.py", repeat(points, seeds=3))
