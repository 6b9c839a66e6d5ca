r"""Where is the best size at a budget of compute, and does a fit foretell it?

  python -m aigc_jax.sweep --sweep=experiments/isoflop/sweep.py \
    --out=runs/isoflop --together=3
  python -m aigc_jax.fit runs/isoflop --law=isoflop --holdout=1

Written by `python -m aigc_jax.sweep ladder` (the line is in README.md), but for
`evaluate`. FLOPs are those that training counts of its own steps; the largest
budget is the one to foretell.
"""

from aigc_jax.scaling.space import Sweep, arm, chain, product, repeat

CONFIG = "configs/quickstart.py"
# The peak learning rate of the config, at its width.
RATE, WIDTH = 0.02, 32
WARMUP = 0.1  # share of the steps
SEEDS = 3

# Name: what the size is; parameters and FLOPs of a step.
SIZES = {
  # 1,368 parameters, 5.7385e+06 FLOPs a step
  "2x4": dict(
    layers=2,
    dim=4,
    kv_heads=1,
    head_dim=4,
    heads=1,
    mlp_dim=8,
  ),
  # 3,760 parameters, 1.46227e+07 FLOPs a step
  "2x8": dict(
    layers=2,
    dim=8,
    kv_heads=2,
    head_dim=4,
    heads=2,
    mlp_dim=24,
  ),
  # 6,600 parameters, 2.48832e+07 FLOPs a step
  "2x12": dict(
    layers=2,
    dim=12,
    kv_heads=3,
    head_dim=4,
    heads=3,
    mlp_dim=32,
  ),
  # 10,848 parameters, 3.94691e+07 FLOPs a step
  "2x16": dict(
    layers=2,
    dim=16,
    kv_heads=4,
    head_dim=4,
    heads=4,
    mlp_dim=48,
  ),
  # 20,112 parameters, 7.10001e+07 FLOPs a step
  "2x24": dict(
    layers=2,
    dim=24,
    kv_heads=6,
    head_dim=4,
    heads=6,
    mlp_dim=64,
  ),
  # 33,472 parameters, 1.15114e+08 FLOPs a step
  "2x32": dict(
    layers=2,
    dim=32,
    kv_heads=8,
    head_dim=4,
    heads=8,
    mlp_dim=88,
  ),
  # 67,872 parameters, 2.26935e+08 FLOPs a step
  "2x48": dict(
    layers=2,
    dim=48,
    kv_heads=12,
    head_dim=4,
    heads=12,
    mlp_dim=128,
  ),
}
# Budget, size, steps; how near they come, and tokens per parameter.
RUNS = (
  (4e9, "2x4", 697),  # 4e+09 FLOPs, 260.9
  (4e9, "2x8", 274),  # 4.007e+09 FLOPs, 37.3
  (4e9, "2x12", 161),  # 4.006e+09 FLOPs, 12.5
  (4e9, "2x16", 101),  # 3.986e+09 FLOPs, 4.8
  (4e9, "2x24", 56),  # 3.976e+09 FLOPs, 1.4
  (1e10, "2x8", 684),  # 1e+10 FLOPs, 93.1
  (1e10, "2x12", 402),  # 1e+10 FLOPs, 31.2
  (1e10, "2x16", 253),  # 9.986e+09 FLOPs, 11.9
  (1e10, "2x24", 141),  # 1.001e+10 FLOPs, 3.6
  (1e10, "2x32", 87),  # 1.001e+10 FLOPs, 1.3
  (2.5e10, "2x8", 1710),  # 2.5e+10 FLOPs, 232.9
  (2.5e10, "2x12", 1005),  # 2.501e+10 FLOPs, 78.0
  (2.5e10, "2x16", 633),  # 2.498e+10 FLOPs, 29.9
  (2.5e10, "2x24", 352),  # 2.499e+10 FLOPs, 9.0
  (2.5e10, "2x32", 217),  # 2.498e+10 FLOPs, 3.3
  (7.5e10, "2x12", 3014),  # 7.5e+10 FLOPs, 233.8
  (7.5e10, "2x16", 1900),  # 7.499e+10 FLOPs, 89.7
  (7.5e10, "2x24", 1056),  # 7.498e+10 FLOPs, 26.9
  (7.5e10, "2x32", 652),  # 7.505e+10 FLOPs, 10.0
  (7.5e10, "2x48", 330),  # 7.489e+10 FLOPs, 2.5
)
# Keys that all runs share.
SHARED = {
  "data.tokenizer": "bytes",
  "data.batch": "8",
  "data.length": "64",
  "model.vocab": "257",
  "optim.kind": "adamw",
  "optim.schedule": "cosine",
  "optim.weight_decay": "0.0",
  "checkpoint.every_steps": "None",
  "log.every_steps": "10",
  "evaluate": dict(
    heldout=dict(
      kind="loss", data=dict(split="validation"), every_steps=None, batches=64
    )
  ),
}


def learning_rate(dim):
  """Falls as one over the width, as muP has it for Adam and hidden weights."""
  return RATE * WIDTH / dim


def run(budget, size, steps):
  """One run, whose schedule ends where it does."""
  model = SIZES[size]
  keys = {f"model.{key}": value for key, value in model.items()}
  keys |= {
    "steps": steps,
    "optim.learning_rate": learning_rate(model["dim"]),
    "optim.warmup_steps": 0,
    "optim.warmup_fraction": WARMUP,
    "optim.decay_steps": None,
  }
  return arm(f"{size} at {budget:g}", keys)


def get_sweep():
  runs = chain(*(run(*row) for row in RUNS))
  shared = arm("", SHARED)
  return Sweep(CONFIG, repeat(product(runs, shared), seeds=SEEDS))
