r"""Which optimizer gets furthest in as many steps, each at a rate of its own?

  python -m aigc_jax.sweep --sweep=experiments/optimizers/sweep.py \
    --out=runs/optimizers --together=20
  python -m experiments.optimum runs/optimizers

Each has five rates, Lion seven, and four seeds: the rate is chosen by the first
seed, and the others, which were not tuned on, compare the optimizers. At those
rates alone there are four more seeds.
"""

from aigc_jax.scaling.space import Sweep, arm, chain, grid, product, repeat

# Rates as powers of two. Muon's updates are scaled to AdamW's size; Lion's are
# signs; Adafactor keeps a first moment, as the others do.
KINDS = {
  "AdamW": ({"optim.kind": "adamw"}, range(-8, -3)),
  "Muon": ({"optim.kind": "muon"}, range(-8, -3)),
  "Lion": ({"optim.kind": "lion", "optim.b2": 0.99}, range(-11, -4)),
  "Adafactor": ({"optim.kind": "adafactor"}, range(-8, -3)),
}

CHOSEN = {"AdamW": -6, "Muon": -5, "Lion": -7, "Adafactor": -5}

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


def tried(name, powers):
  rates = grid({"optim.learning_rate": [2.0**k for k in powers]})
  return product(arm(name, KINDS[name][0]), rates)


def get_sweep():
  shared = grid({key: [value] for key, value in SHARED.items()})
  every = chain(*(tried(name, powers) for name, (_, powers) in KINDS.items()))
  chosen = chain(*(tried(name, [power]) for name, power in CHOSEN.items()))
  points = repeat(product(every, shared), seeds=4)
  points += repeat(product(chosen, shared), seeds=range(4, 8))
  return Sweep("configs/quickstart.py", points)
