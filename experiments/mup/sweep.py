r"""Does the best learning rate stay where it is when the model gets wider?

  python -m aigc_jax.sweep --sweep=experiments/mup/sweep.py --out=runs/mup \
    --together=18
  python -m experiments.optimum runs/mup

At the base's own width muP is the standard parametrization to the bit, so that
one arm stands for both there.
"""

from aigc_jax.scaling.space import Sweep, arms, grid, product, repeat

BASE = 16
WIDTHS = (16, 32, 64)
HEAD = 8
RATES = tuple(2.0**-k for k in range(8, 2, -1))

SHARED = {
  "data.tokenizer": "bytes", "data.batch": 8, "data.length": 64,
  "model.vocab": 257, "model.layers": 2,
  "optim.kind": "adamw", "optim.schedule": "cosine", "steps": 150,
  "checkpoint.every_steps": None, "log.every_steps": 10,
  "evaluate": dict(
    heldout=dict(
      kind="loss", data=dict(split="validation"), every_steps=None, batches=32
    )
  ),
}  # fmt: skip


def width(dim):
  heads = dim // HEAD
  return {"model.dim": dim, "model.heads": heads, "model.kv_heads": heads}


def mup(dim):
  return width(dim) | {
    "model.parametrization": "mup", "model.base_dim": BASE,
    "model.base_layers": 2, "model.base_heads": BASE // HEAD,
  }  # fmt: skip


def get_sweep():
  tried = arms(
    **{f"base, width {BASE}": width(BASE)},
    **{f"standard, width {dim}": width(dim) for dim in WIDTHS[1:]},
    **{f"muP, width {dim}": mup(dim) for dim in WIDTHS[1:]},
  )
  points = product(
    tried,
    grid({"optim.learning_rate": RATES}),
    grid({key: [value] for key, value in SHARED.items()}),
  )
  return Sweep("configs/quickstart.py", repeat(points, seeds=3))
