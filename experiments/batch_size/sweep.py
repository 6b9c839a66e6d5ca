r"""How many steps does a loss take at each batch size, and how many tokens?

  python -m aigc_jax.sweep --sweep=experiments/batch_size/sweep.py \
    --out=runs/batch_size --together=9
  python -m experiments.batch_size.critical runs/batch_size

At each batch three learning rates, of which the one counts that is first at the
loss; they are constant after a warm-up, so that a curve has no end to be near.
"""

from aigc_jax.scaling.space import Sweep, arms, grid, product, repeat

# Steps enough for the loss that critical.py asks for, by batch.
STEPS = {4: 600, 8: 360, 16: 240, 32: 160, 64: 120}
WINDOWS = 128
RATES = tuple(2.0**-k for k in range(6, 3, -1))

SHARED = {
  "data.tokenizer": "bytes", "data.length": 64, "model.vocab": 257,
  "model.layers": 2, "model.dim": 16, "model.heads": 2, "model.kv_heads": 2,
  "optim.kind": "adamw", "optim.schedule": "constant",
  "optim.weight_decay": 0.0, "checkpoint.every_steps": None,
  "log.every_steps": 20,
}  # fmt: skip


def batches_of(rows, steps):
  """Keys of a run; 20 times in it the loss over the same 128 windows."""
  heldout = dict(
    kind="loss", data=dict(split="validation"), every_steps=steps // 20,
    batches=WINDOWS // rows,
  )  # fmt: skip
  evaluate = dict(heldout=heldout)
  return {"data.batch": rows, "steps": steps, "evaluate": evaluate}


def get_sweep():
  batches = arms(
    **{f"batch {rows}": batches_of(rows, n) for rows, n in STEPS.items()}
  )
  points = product(
    batches,
    grid({"optim.learning_rate": RATES}),
    grid({key: [value] for key, value in SHARED.items()}),
  )
  return Sweep("configs/quickstart.py", repeat(points, seeds=3))
