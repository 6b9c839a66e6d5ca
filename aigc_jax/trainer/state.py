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
  counts the steps that left parameters and optimizer as they were.
  """

  step: jax.Array  # int32
  seed: jax.Array  # uint32
  skipped: jax.Array  # int32
  params: Tree
  opt_state: Tree
  recent: "Recent | None" = None  # with a limit on spikes


@struct.dataclass
class Recent:
  """Loss and gradient norm of the last steps, in a ring; nan where empty."""

  loss: jax.Array  # (window,) float32
  norm: jax.Array


def fresh(
  params: Tree,
  optimizer: optax.GradientTransformation,
  seed: int,
  spike_window: int = 0,
) -> State:
  """The state at step 0; runs under jit. A window of 0 watches no spikes."""
  empty = jnp.full((spike_window,), jnp.nan, jnp.float32)
  return State(
    step=jnp.zeros((), jnp.int32),
    seed=jnp.asarray(seed, jnp.uint32),
    skipped=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    recent=Recent(empty, empty) if spike_window else None,
  )
