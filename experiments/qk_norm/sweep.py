"""Does qk-norm help a tiny model at a rate that is too high for it?

  python -m aigc_jax.sweep --sweep=experiments/qk_norm/sweep.py --out=runs/qk
  python -m aigc_jax.report table runs/qk

Six runs of 150 steps, of bytes of the source of Python's standard library.
"""

from aigc_jax.scaling.space import Sweep, arms, grid, product, repeat

MODEL = {
  "data.tokenizer": "bytes", "data.batch": 16, "data.length": 64,
  "model.vocab": 257, "model.dim": 32, "model.heads": 2, "model.kv_heads": 2,
}  # fmt: skip
RATE = {
  "optim.kind": "adamw", "optim.learning_rate": 0.1, "optim.schedule": "cosine",
  "steps": 150,
}  # fmt: skip
HELD_OUT = dict(
  kind="loss", data=dict(split="validation"), every_steps=50, batches=32
)


def get_sweep():
  shared = {**MODEL, **RATE, "evaluate": dict(heldout=HELD_OUT)}
  shared |= {"checkpoint.every_steps": None, "log.every_steps": 5}
  tried = arms(plain={}, qk_norm={"model.qk_norm": True})
  points = product(tried, grid({key: [value] for key, value in shared.items()}))
  return Sweep(
    "configs/quickstart.py", repeat(points, seeds=3), baseline="plain"
  )
