r"""Is a decay from a constant rate as good as a cosine made for the length?

  python -m aigc_jax.sweep --sweep=experiments/schedules/sweep.py \
    --out=runs/schedules --together=8
  python -m experiments.schedules.lengths runs/schedules

A cosine is a run of its own for each length. The other lengths are branches of
one trunk at a constant rate, which decay in a line over their last fifth: each
is the WSD run of its length from the start.
"""

from aigc_jax.scaling.space import Sweep, arms, grid, product, repeat, zipped

LENGTHS = (200, 400, 800)  # steps
DECAY = 5  # one part of so many of a run
RATES = {
  "cosine": (2.0**-7, 2.0**-6, 2.0**-5),
  "wsd": (2.0**-8, 2.0**-7, 2.0**-6),
}
SEEDS = 4

SHARED = {
  "data.tokenizer": "bytes", "data.batch": 8, "data.length": 64,
  "model.vocab": 257, "model.layers": 2, "model.dim": 32, "model.heads": 4,
  "model.kv_heads": 4, "optim.kind": "adamw", "optim.weight_decay": 0.0,
  "log.every_steps": 10,
  "evaluate": dict(
    heldout=dict(
      kind="loss", data=dict(split="validation"), every_steps=40, batches=32
    )
  ),
}  # fmt: skip


def stable(steps):
  """The steps at the constant rate of a run of this length."""
  return steps - steps // DECAY


def get_sweep():
  cosine = product(
    arms(cosine={"optim.schedule": "cosine", "checkpoint.every_steps": None}),
    grid({"steps": LENGTHS}),
  )
  trunk = arms(
    trunk={
      "optim.schedule": "constant", "steps": stable(LENGTHS[-1]),
      "checkpoint.every_steps": stable(LENGTHS[0]),
      "checkpoint.keep_every_steps": stable(LENGTHS[0]),
    }
  )  # fmt: skip
  branches = product(
    arms(wsd={"branch_from": "trunk", "optim.schedule": "wsd"}),
    zipped(
      {
        "steps": LENGTHS,
        "branch_step": [stable(n) for n in LENGTHS],
        "optim.decay_steps": [n - stable(n) for n in LENGTHS],
        "checkpoint.every_steps": [None] * len(LENGTHS),
      }
    ),
  )
  rates = {
    name: grid({"optim.learning_rate": values})
    for name, values in RATES.items()
  }
  points = product(
    product(cosine, rates["cosine"]) + product(trunk + branches, rates["wsd"]),
    grid({key: [value] for key, value in SHARED.items()}),
  )
  return Sweep("configs/quickstart.py", repeat(points, SEEDS))
