"""State: everything a step changes, and nothing else."""

import jax
import jax.numpy as jnp
import optax
from flax import struct

from aigc_jax.tree import Tree


@struct.dataclass
class State:
  """What a checkpoint holds.

  step counts optimizer steps taken or skipped; the data position is this
  number. Random keys are made from (seed, step), so none is kept. skipped
  counts the steps that a non-finite loss or gradient left without update.
  """

  step: jax.Array  # int32
  seed: jax.Array  # uint32
  skipped: jax.Array  # int32
  params: Tree
  opt_state: Tree


def fresh(
  params: Tree, optimizer: optax.GradientTransformation, seed: int
) -> State:
  """The state at step 0; runs under jit."""
  return State(
    step=jnp.zeros((), jnp.int32),
    seed=jnp.asarray(seed, jnp.uint32),
    skipped=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
  )
