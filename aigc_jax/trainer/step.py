"""The step: gradients of the sum, one division, one gated update."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from aigc_jax import sharding, tree
from aigc_jax.layers.report import REPORTS, are_averaged, averaged, moved
from aigc_jax.metrics import Mean
from aigc_jax.optim import global_norm
from aigc_jax.trainer.state import Recent, State

Metrics = dict[str, jax.Array]

# The entry of the metrics that has the sum and the weight of each that is a
# mean, in the order of their sorted names: what a mean over steps is made of.
MEANS = "means"


def make_step(
  score: Callable,
  optimizer: optax.GradientTransformation,
  schedule: Callable,
  microbatches: int = 1,
  spike_sigma: float = 0.0,
  once: Callable | None = None,
  at_once: bool = False,
  average: float | None = None,
) -> Callable:
  """The update (state, batch) -> (state, metrics); pure, for jit.

  score(params, batch, key) -> {name: Mean}; "loss" is differentiated. The
  batch is taken in `microbatches` interleaved parts whose sums are added, so
  any number of them gives the gradient of the whole batch, however its weights
  are spread. A non-finite loss, gradient or update leaves parameters and
  optimizer state exactly as they were; so does, where state.recent is kept, a
  loss or gradient norm more than `spike_sigma` standard deviations above the
  mean of the recent ones.

  Where the state has some, `score` is given it as `fixed`, and what layers
  report under REPORTS moves `stats`, once a step, from the sums over the whole
  batch. average: what is kept each step of state.average, the rest is of the
  new parameters (optax.incremental_update). Where stats follow from parameters,
  as batch norm's moments do, the average predicts the batch too, and what its
  layers report moves state.average_stats: neither the moments of the last
  parameters nor means of those are its own.

  once(params), where given, is computed before the batch is parted, and is one
  more argument of `score`; no gradient flows through it.

  at_once: an update is made of a few numbers each, and is finite wherever the
  gradients' norm is (`optim.at_once`). Then nothing has to know of the update
  before it is applied, and but on a CPU it is, in the pass that makes it: even
  one of finite numbers whose norm is not.
  """

  def loss_sum(params, batch, key, *more):
    *more, fixed = more
    known = {} if fixed is None else {"fixed": fixed}
    means = score(params, batch, key, *more, **known)
    return means["loss"].sum, means

  def heard(state: State, batch, key):
    """What layers report of the average; no other result of it is computed."""
    params, fixed = state.read(average=True)
    more = (once(params),) if once else ()

    def measure(part, key):
      return score(params, part, key, *more, fixed=fixed)[REPORTS]

    return sum_over(measure, batch, key, microbatches)

  def step(state: State, batch) -> tuple[State, Metrics]:
    key = jax.random.fold_in(jax.random.key(state.seed), state.step)
    more = (*((once(state.params),) if once else ()), state.fixed)

    def measure(part, key):
      take = jax.value_and_grad(loss_sum, has_aux=True)
      (_, means), grads = take(state.params, part, key, *more)
      return grads, means

    grads, means = sum_over(measure, batch, key, microbatches)
    reports = means.pop(REPORTS, {})
    weight = means["loss"].weight
    scale = 1.0 / jnp.where(weight == 0, 1.0, weight)
    grads = jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
    grad_norm = global_norm(grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    update_norm = global_norm(updates)
    finite = jnp.isfinite(means["loss"].sum) & jnp.isfinite(grad_norm)
    one_pass = at_once and sharding.platform() != "cpu"
    if not one_pass:
      # This also tells the compiler that all of the update is made before any
      # old value is written over: no copies of those are needed.
      finite &= jnp.isfinite(update_norm)
    recent, spiked = watch_spikes(
      state, means["loss"].value(), grad_norm, spike_sigma
    )
    ok = finite & ~spiked

    if not one_pass:
      opt_state = made_again(optimizer, state, grads, ok)
    params, opt_state = jax.tree.map(
      lambda new, old: jnp.where(ok, new, old),
      (optax.apply_updates(state.params, updates), opt_state),
      (state.params, state.opt_state),
    )
    stats, mean = state.stats, state.average
    if stats is not None:
      stats = _where(ok, moved(stats, reports), stats)
    if mean is not None:
      mean = optax.incremental_update(params, mean, 1 - average)
      mean = _where(ok, mean, state.average)
    mean_stats = state.average_stats
    if mean_stats is not None:
      after = stats
      if are_averaged(reports):
        after = averaged(mean_stats, stats, heard(state, batch, key))
      mean_stats = _where(ok, after, mean_stats)
    skipped = state.skipped + jnp.where(ok, 0, 1)
    metrics = {f"train/{name}": mean.value() for name, mean in means.items()}
    metrics |= {
      MEANS: jnp.stack(
        [jnp.stack([means[n].sum, means[n].weight]) for n in sorted(means)]
      ),
      "norm/grad": grad_norm,
      "norm/update": update_norm,
      "norm/param": global_norm(params),
      # The optimizer counts the updates it made, not the steps it was asked.
      "optim/learning_rate": jnp.asarray(
        schedule(state.step - state.skipped), jnp.float32
      ),
      "optim/skipped": jnp.where(finite, 0, 1),
      "optim/skipped_total": skipped,
      "data/batch_hash": tree.digest(batch)[0],
    }
    if recent is not None:
      metrics["optim/spiked"] = jnp.where(spiked, 1, 0)
    new = state.replace(
      step=state.step + 1,
      skipped=skipped,
      params=params,
      opt_state=opt_state,
      recent=recent,
      stats=stats,
      average=mean,
      average_stats=mean_stats,
    )
    return new, metrics

  return step


def _where(ok: jax.Array, new: tree.Tree, old: tree.Tree) -> tree.Tree:
  return jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, old)


def made_again(
  optimizer: optax.GradientTransformation,
  state: State,
  grads: tree.Tree,
  ok: jax.Array,
) -> tree.Tree:
  """The optimizer's state after the update, made where it is to be written.

  Had it been kept since the update was made, it would have been written beside
  the old one and read again. Made from zeros where it is thrown away, it is
  nothing that the compiler finds it has already.
  """
  held = jax.tree.map(lambda s: jnp.where(ok, s, 0), state.opt_state)
  return optimizer.update(grads, held, state.params)[1]


def watch_spikes(
  state: State, loss: jax.Array, norm: jax.Array, sigma: float
) -> tuple[Recent | None, jax.Array]:
  """(recent values with these, whether these are a spike).

  Spikes go into the record too: a level that stays is no spike for long. Until
  the record is full nothing is a spike, and what is not finite is not recorded.
  """
  if state.recent is None:
    return None, jnp.zeros((), bool)
  spiked = jnp.zeros((), bool)
  news = []
  for ring, value in ((state.recent.loss, loss), (state.recent.norm, norm)):
    # A record with a nan in it, not yet full, compares as false.
    spiked |= value > jnp.mean(ring) + sigma * jnp.std(ring)
    new = ring.at[state.step % ring.size].set(value)
    news.append(jnp.where(jnp.isfinite(value), new, ring))
  return Recent(*news), spiked


def sum_over(
  measure: Callable, batch, key: jax.Array, parts: int
) -> tuple[tree.Tree, dict[str, Mean]]:
  """The sum of measure(part, key) over `parts` interleaved parts of a batch.

  Interleaved: every part takes rows from every device and nothing moves.
  """
  if parts == 1:
    return measure(batch, key)

  def interleave(x):
    x = x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)
    return jax.vmap(lambda part: sharding.constrain_rows(part))(x)

  split = jax.tree.map(interleave, batch)
  keys = jax.random.split(key, parts)
  shapes = jax.eval_shape(measure, jax.tree.map(lambda x: x[0], split), keys[0])
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

  def add(total, part):
    return jax.tree.map(jnp.add, total, measure(*part)), None

  return jax.lax.scan(add, zeros, (split, keys))[0]


def repeat_step(step: Callable, times: int) -> Callable:
  """`times` steps in one dispatch, on batches with one more leading axis.

  Small models are bound by the cost of dispatch. Metrics come back with the
  same leading axis, one entry a step.
  """
  if times == 1:
    return step

  def many(state: State, batches) -> tuple[State, Metrics]:
    return jax.lax.scan(step, state, batches)

  return many
