r"""Do qk-norm and z-loss widen the range of learning rates that train well?

  python -m aigc_jax.sweep --sweep=experiments/sensitivity/sweep.py \
    --out=runs/sensitivity --together=18
  python -m experiments.optimum runs/sensitivity
"""

from aigc_jax.scaling.space import Sweep, arms, grid, product, repeat

RATES = tuple(2.0**-k for k in range(8, 2, -1))
Z_LOSS = 1e-4  # as in arXiv:2309.14322

SHARED = {
  "data.tokenizer": "bytes", "data.batch": 8, "data.length": 64,
  "model.vocab": 257, "model.layers": 2, "model.dim": 16, "model.heads": 2,
  "model.kv_heads": 2, "optim.kind": "adamw", "optim.schedule": "cosine",
  "steps": 150, "checkpoint.every_steps": None, "log.every_steps": 10,
  "evaluate": dict(
    heldout=dict(
      kind="loss", data=dict(split="validation"), every_steps=None, batches=32
    )
  ),
}  # fmt: skip


def get_sweep():
  norm, z_loss = {"model.qk_norm": True}, {"objective.z_loss": Z_LOSS}
  tried = arms(plain={}, qk_norm=norm, z_loss=z_loss, both=norm | z_loss)
  points = product(
    tried,
    grid({"optim.learning_rate": RATES}),
    grid({key: [value] for key, value in SHARED.items()}),
  )
  return Sweep("configs/quickstart.py", repeat(points, seeds=3))
