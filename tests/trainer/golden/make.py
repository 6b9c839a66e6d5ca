"""A state of every dtype from integers alone, the same for ever.

The checkpoint beside this file was made by

  python -m tests.trainer.golden.make FOLDER

at commit f5e5c38, whose digest was of version 1.
"""

import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from aigc_jax.trainer.checkpoint import Checkpoints

STEP = 7
DTYPES = (
  "float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "int32",
  "int16", "int8", "uint32", "uint16", "uint8", "bool",
)  # fmt: skip


def state() -> dict:
  """Leaves (4, 3) of every dtype, their bits made of whole numbers."""
  leaves = {}
  for number, name in enumerate(DTYPES):
    values = (np.arange(12) * (2 * number + 3) % 23 - 5).reshape(4, 3)
    leaves[name] = jnp.asarray(values % 2 if name == "bool" else values, name)
  return {
    "step": jnp.int32(STEP),
    "params": leaves,
    "opt_state": {"empty": jnp.zeros((0, 2)), "zero": jnp.asarray(-0.0)},
  }


if __name__ == "__main__":
  saved = Checkpoints(
    Path(sys.argv[1]), every_steps=1, keep=1, keep_every_steps=0
  )
  saved.commit(STEP, state(), {"config_sha256": "0" * 64})
