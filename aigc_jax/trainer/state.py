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
  # What layers' reports move once a step, such as running means; None where
  # the model has none, as with the two below.
  stats: Tree = None
  average: Tree = None  # of the parameters, over the steps
  average_stats: Tree = None  # the stats that are read with that
  frozen: Tree = None  # parameters that nothing moves; in no checkpoint

  @property
  def fixed(self) -> "Fixed | None":
    """What the model reads and no gradient moves, if anything."""
    if self.frozen is None and self.stats is None:
      return None
    return Fixed(self.frozen, self.stats)

  def read(self, average: bool) -> tuple[Tree, "Fixed | None"]:
    """(parameters, what else the model reads): the last, or the averages."""
    if not average:
      return self.params, self.fixed
    return self.average, self.replace(stats=self.average_stats).fixed

  def started(self) -> "State":
    """With averages, where it has some, that begin as what they are of."""
    if self.average is None:
      return self
    average, stats = jax.tree.map(jnp.copy, (self.params, self.stats))
    return self.replace(average=average, average_stats=stats)


@struct.dataclass
class Fixed:
  """What a model reads besides the parameters that are trained."""

  frozen: Tree = None
  stats: Tree = None


def kept(state: Tree) -> Tree:
  """The part of a state that checkpoints hold: all but what is frozen."""
  return state.replace(frozen=None) if isinstance(state, State) else state


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
  *,
  stats: Tree = None,
  frozen: Tree = None,
  average: bool = False,
) -> State:
  """The state at step 0; runs under jit. A window of 0 watches no spikes.

  average: whether an average of the parameters is kept; it begins as they are.
  """
  empty = jnp.full((spike_window,), jnp.nan, jnp.float32)
  return State(
    step=jnp.zeros((), jnp.int32),
    seed=jnp.asarray(seed, jnp.uint32),
    skipped=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    recent=Recent(empty, empty) if spike_window else None,
    stats=stats,
    average=jax.tree.map(jnp.copy, params) if average else None,
    average_stats=jax.tree.map(jnp.copy, stats) if average else None,
    frozen=frozen,
  )
