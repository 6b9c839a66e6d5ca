"""Which optimizer gets furthest in as many steps, each at a rate of its own?

  python -m aigc_jax.sweep --sweep=experiments/optimizers/sweep.py \
    --out=runs/optimizers --together=20
  python -m experiments.optimum runs/optimizers

Each has five rates and four seeds: the rate is chosen by the first seed, and
the others, which were not tuned on, compare the optimizers.
"""

from aigc_jax.scaling.space import Sweep, arm, chain, grid, product, repeat

# Muon's updates are scaled to AdamW's size; Lion's are signs, and its rates
# eight times lower; Adafactor keeps a first moment, as the others do.
KINDS = {
  "AdamW": ({"optim.kind": "adamw"}, 1),
  "Muon": ({"optim.kind": "muon"}, 1),
  "Lion": ({"optim.kind": "lion", "optim.b2": 0.99}, 1 / 8),
  "Adafactor": ({"optim.kind": "adafactor"}, 1),
}
RATES = tuple(2.0**-k for k in range(8, 3, -1))

SHARED = {
  "data.tokenizer": "bytes", "data.batch": 8, "data.length": 64,
  "model.vocab": 257, "model.layers": 2, "model.dim": 32, "model.heads": 4,
  "model.kv_heads": 4, "optim.schedule": "cosine", "optim.weight_decay": 0.0,
  "steps": 150, "checkpoint.every_steps": None, "log.every_steps": 10,
  "evaluate": dict(
    heldout=dict(
      kind="loss", data=dict(split="validation"), every_steps=None, batches=32
    )
  ),
}  # fmt: skip


def tried(name):
  keys, factor = KINDS[name]
  rates = grid({"optim.learning_rate": [rate * factor for rate in RATES]})
  return product(arm(name, keys), rates)


def get_sweep():
  points = product(
    chain(*map(tried, KINDS)),
    grid({key: [value] for key, value in SHARED.items()}),
  )
  return Sweep("configs/quickstart.py", repeat(points, seeds=4))
