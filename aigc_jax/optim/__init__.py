"""From gradients to updates: schedules, optimizers, parameter groups.

`build` chains, in this order: frozen groups out; clip by the global norm; each
parameter's factor of epsilon; the optimizer's direction; decoupled weight
decay; the group's learning-rate factor; the schedule; the limits that a model
sets to some of its parameters. So a step changes p, within those, by

  -schedule(step) * factor * (direction + weight_decay * p)

as `optax.adamw` does, and the decay follows the schedule. A group that is a
player (optim/groups.py) goes through clip, direction, decay and factor alone.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax

from aigc_jax import tree
from aigc_jax.errors import BadConfig, choose
from aigc_jax.layers import sums
from aigc_jax.layers.parametrization import Factors
from aigc_jax.optim import schedules
from aigc_jax.optim.groups import Player, Treatment, treatments
from aigc_jax.optim.optimizers import OPTIMIZERS, at_once
from aigc_jax.optim.schedules import SCHEDULES, Schedule

__all__ = [
  "OPTIMIZERS",
  "SCHEDULES",
  "Schedule",
  "Treatment",
  "at_once",
  "build",
  "global_norm",
  "state_shardings",
  "treatments",
]

# Of the first moment.
MU_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def build(
  *,
  kind: str,
  learning_rate: float,
  schedule: str,
  warmup_steps: int | None,
  decay_steps: int | None,
  final_fraction: float,
  weight_decay: float,
  clip: float | None,
  b1: float,
  b2: float,
  eps: float,
  groups: Sequence[Mapping],
  mu_dtype: str,
  steps: int,
  params: tree.Tree,
  limits: Mapping[str, float] | None = None,
  warmup_fraction: float | None = None,
  factors: Mapping[str, Factors] | None = None,
) -> tuple[optax.GradientTransformation, Schedule]:
  """The optimizer of a run of `steps`, and its learning rate by step.

  params: the parameters or their shapes, for the paths that `groups` match.
  limits: the most that parameters may be after an update, by path. factors: of
  a model's parametrization, by path.
  clip: the largest global norm of the gradients; None is no clipping. The
  optimizer counts the updates it has made, so after `skipped` skipped steps
  the rate in use at a step is schedule(step - skipped). Raises BadConfig.
  """
  rate = schedules.build(
    kind=schedule,
    learning_rate=learning_rate,
    warmup_steps=warmup_steps,
    decay_steps=decay_steps,
    final_fraction=final_fraction,
    steps=steps,
    warmup_fraction=warmup_fraction,
  )
  make = choose(kind, OPTIMIZERS, "optim.kind")
  dtype = choose(mu_dtype, MU_DTYPES, "optim.mu_dtype")
  for name, value in (("b1", b1), ("b2", b2)):
    if not 0 <= value < 1:
      raise BadConfig(f"optim.{name}={value}: expected from 0 to below 1")
  if not eps > 0:
    raise BadConfig(f"optim.eps={eps}: expected a positive number")
  if clip is not None and not clip >= 0:
    raise BadConfig(
      f"optim.clip={clip}: expected the largest norm, or None for no clipping"
    )
  treat = treatments(params, groups, weight_decay, factors)
  small = {n: t.epsilon for n, t in treat.items() if t.epsilon != 1}
  frozen = {n for n, t in treat.items() if t.learning_rate_factor == 0}

  def move(clip: float | None) -> list:
    return [
      _clip(clip) if clip else None,
      _epsilon(small) if small else None,
      make(b1=b1, b2=b2, eps=eps, mu_dtype=dtype),
      _decay_and_factor(treat),
    ]

  moves = move(clip)
  if any(t.player for t in treat.values()):
    moves = [_each_by_itself(treat, clip, lambda c: _chain(move(c)))]
  parts = [
    _freeze(frozen, 0.0) if frozen else None,
    *moves,
    optax.scale_by_learning_rate(rate),
    # Not 0.0, which would turn a parameter of -0.0 into 0.0.
    _freeze(frozen, -0.0) if frozen else None,
    _limit(limits) if limits else None,
  ]
  return _chain(parts), rate


def _chain(parts: Sequence) -> optax.GradientTransformation:
  return optax.chain(*(part for part in parts if part is not None))


def _each_by_itself(
  treat: Mapping[str, Treatment], clip: float | None, move: Callable
) -> optax.GradientTransformation:
  """move(clip) for each player alone, and for all others together."""
  others = "others"
  moves, labels = {others: move(clip)}, {}
  for name, t in treat.items():
    labels[name] = others if t.player is None else _word(t.player)
    if t.player is not None and labels[name] not in moves:
      own = move(clip if t.player.clip is None else t.player.clip)
      moves[labels[name]] = _every(t.player.every_steps, own)
  if others not in labels.values():
    del moves[others]

  def labels_of(params):
    return jax.tree_util.tree_map_with_path(
      lambda path, _: labels[tree.name_of(path)], params
    )

  return optax.partition(moves, labels_of)


def _word(player: Player) -> str:
  """What a player's state is called in a checkpoint."""
  return f"player{player.group}"


def _every(
  steps: int, inner: optax.GradientTransformation
) -> optax.GradientTransformation:
  """`inner` in the first of so many updates; in the others nothing at all."""
  if steps == 1:
    return inner
  return optax.conditionally_mask(inner, lambda count: count % steps == 0)


def global_norm(updates: tree.Tree) -> jax.Array:
  """The Euclidean norm of all leaves together, in float32.

  A sum over global arrays: a mesh changes the order of the summands only.
  Clipping calls this very function on the gradients as they come, so a step
  that logs it for the same gradients pays once: XLA merges the two.
  """
  squares = [
    sums.over_all(lambda x: jnp.square(x.astype(jnp.float32)), x)
    for x in jax.tree.leaves(updates)
  ]
  return jnp.sqrt(sum(squares, jnp.float32(0)))


def state_shardings(
  optimizer: optax.GradientTransformation,
  opt_state: tree.Tree,
  params: tree.Tree,
  shardings: tree.Tree,
  replicated: jax.sharding.Sharding,
) -> tree.Tree:
  """A sharding for every leaf of the abstract `opt_state`.

  What is kept for a parameter in its shape lies as the parameter does (its
  entry in `shardings`); counters and factored moments are `replicated`.
  """

  def like_param(x, param, sharding):
    if isinstance(x, optax.MaskedNode):
      return x
    return sharding if x.shape == param.shape else replicated

  return optax.tree.map_params(
    optimizer,
    like_param,
    opt_state,
    params,
    shardings,
    transform_non_params=lambda _: replicated,
    is_leaf=lambda x: isinstance(x, optax.MaskedNode),
  )


def _clip(largest: float) -> optax.GradientTransformation:
  """Scales the updates down to a global norm of `largest`."""

  def clip(updates, _):
    factor = largest / jnp.maximum(global_norm(updates), largest)
    return jax.tree.map(lambda u: u * factor.astype(u.dtype), updates)

  return optax.stateless(clip)


def _epsilon(factors: Mapping[str, float]) -> optax.GradientTransformation:
  """Gradients over their factor: to them epsilon is that many times as large.

  All that follows is the same for any size of a gradient, but for epsilon.
  """

  def one(path, u):
    return u / factors.get(tree.name_of(path), 1.0)

  return optax.stateless(
    lambda updates, _: jax.tree_util.tree_map_with_path(one, updates)
  )


def _limit(limits: Mapping[str, float]) -> optax.GradientTransformation:
  """Takes no parameter beyond its limit, of those that have one."""

  def one(path, u, p):
    most = limits.get(tree.name_of(path))
    return u if most is None else jnp.minimum(u, (most - p).astype(u.dtype))

  def apply(updates, params):
    return jax.tree_util.tree_map_with_path(one, updates, params)

  return optax.stateless(apply)


def _freeze(names: set[str], value: float) -> optax.GradientTransformation:
  """Puts `value` for the updates of `names`."""

  def freeze(updates, _):
    return jax.tree_util.tree_map_with_path(
      lambda path, u: (
        jnp.full_like(u, value) if tree.name_of(path) in names else u
      ),
      updates,
    )

  return optax.stateless(freeze)


def _decay_and_factor(
  treat: Mapping[str, Treatment],
) -> optax.GradientTransformation:
  """factor * (update + weight_decay * parameter), by path."""

  def one(path, u, p):
    t = treat[tree.name_of(path)]
    if t.weight_decay:
      u = u + t.weight_decay * p.astype(u.dtype)
    return u if t.learning_rate_factor == 1 else u * t.learning_rate_factor

  def apply(updates, params):
    return jax.tree_util.tree_map_with_path(one, updates, params)

  return optax.stateless(apply)
