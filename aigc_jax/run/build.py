"""Config to Run: mesh, model, objective and optimizer joined into the step.

Nothing is computed: training, planning and benchmarks compile this same step.
"""

import dataclasses
import functools
import math
import warnings
import zlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from aigc_jax import flops, optim, sharding, tree
from aigc_jax.errors import BadConfig, choose
from aigc_jax.layers.cpu import onednn
from aigc_jax.layers.products import copies, with_copies
from aigc_jax.models import MODELS
from aigc_jax.objectives import OBJECTIVES
from aigc_jax.objectives.tokens import LOGITS
from aigc_jax.run import budget
from aigc_jax.run.settings import Config
from aigc_jax.signature import (
  EMPTY,
  call,
  check_call,
  check_types,
  keys_of,
  kind_of,
)
from aigc_jax.trainer.consumed import EXAMPLES, Consumed
from aigc_jax.trainer.state import State, fresh
from aigc_jax.trainer.step import make_step, repeat_step

# Of optim, for the step.
SPIKES = {"spike_sigma": float | None, "spike_window": int}

# How the program of fresh parameters is compiled, by platform: on a CPU less
# optimised, which takes a third of the time and gives the same bits as fast.
INIT_OPTIONS = {"cpu": {"xla_backend_optimization_level": 1}}
# How steps are. Half as wide, the vectors of what rounds to bfloat16 are stored
# 16 bytes at a time, at half the pace (experiments/speed).
STEP_OPTIONS = {"cpu": {"xla_cpu_prefer_vector_width": 512}}
LIBRARIES = {"xla": False, "onednn": True}


@dataclasses.dataclass(frozen=True)
class Run:
  """Everything a run is made of, before anything is computed."""

  config: Config
  mesh: jax.sharding.Mesh
  model: nn.Module
  score: Callable
  optimizer: optax.GradientTransformation
  schedule: Callable
  step: Callable  # (state, batch) -> (state, metrics), one optimizer step
  state: State  # abstract, with shardings
  batch: dict[str, jax.ShapeDtypeStruct]  # abstract, with shardings
  cost: flops.PerToken
  init: Callable[[], State]
  steps: int = 0  # updates in the whole run, see `budget`

  @property
  def tokens_per_step(self) -> int:
    return math.prod(self.batch["tokens"].shape)

  @property
  def each(self) -> Consumed:
    """What one step takes, by unit of the data, and its FLOPs."""
    return _each(self.batch, self.cost)

  def going_on(self, step: int, consumed: Consumed) -> "Run":
    """This run where it stands: with the steps, and the schedule, it has left.

    consumed: up to `step`. The same object where nothing else is settled.
    """
    parameters = tree.count(self.state.params)
    steps = budget.settle(self.config, self.each, parameters, consumed, step)
    if steps == self.steps:
      return self
    return build(self.config, self.mesh, steps)

  @property
  def flops_per_step(self) -> float:
    return self.cost.train * self.tokens_per_step

  def advance(self) -> Callable:
    """The step as training runs it: compiled, its state donated.

    Raises BadConfig where the library that shall multiply cannot.
    """
    step = self.step
    if choose(self.config["library"], LIBRARIES, "library"):
      step = _by_onednn(step, self.mesh, self.model.operand_dtype)
    many = repeat_step(step, self.config["steps_per_call"])
    shardings = jax.tree.map(lambda x: x.sharding, self.state)
    return jax.jit(
      many,
      donate_argnums=0,
      out_shardings=(shardings, None),
      compiler_options=STEP_OPTIONS.get(self.mesh.devices.flat[0].platform),
    )


def make_mesh(config: Config) -> jax.sharding.Mesh:
  """The mesh, checked against the batch; quick, so that it can come first."""
  mesh = sharding.make_mesh(**config["mesh"])
  batch, parts = config["data"]["batch"], config["microbatches"]
  if batch % parts:
    raise BadConfig(
      f"data.batch={batch} is not divisible by microbatches={parts}: "
      f"the nearest batches that are: {_around(batch, parts)}; or leave the "
      f"batch, which a run that goes on must: --config.microbatches="
      f"{math.gcd(batch, parts)}"
    )
  shards = sharding.batch_shards(mesh)
  if (batch // parts) % shards:
    raise BadConfig(
      f"data.batch={batch} in {parts} microbatch(es) does not divide over "
      f"{shards} parts of the mesh: the nearest batches that do: "
      f"{_around(batch, parts * shards)}"
    )
  length, over = config["data"]["length"], sharding.length_shards(mesh)
  if length % over:
    raise BadConfig(
      f"data.length={length} is not divisible by mesh.sequence={over}"
    )
  return mesh


def _around(value: int, divisor: int) -> str:
  below, above = value // divisor * divisor, -(-value // divisor) * divisor
  return f"{below} and {above}" if below else str(above)


def reached(config: Config, mesh: jax.sharding.Mesh, result: Mapping) -> bool:
  """Whether a run with this result.json is at its end."""
  found = budget.total(config, 0)
  if found is None:
    return result.get("step", 0) >= config["steps"]
  if config["tokens_per_parameter"]:
    count = tree.count(abstract_params(model_of(config), mesh))
    found = budget.total(config, count)
  unit, amount = found
  return result.get(unit, 0) >= amount


def model_of(config: Config) -> nn.Module:
  """The model a config describes."""
  make, rest = kind_of("model", config["model"], MODELS)
  return call(make, "model", rest)


def declared_params(model: nn.Module):
  """Shapes of the parameters, each a `sharding.Declared`."""
  tokens = {"tokens": jax.ShapeDtypeStruct((1, 1), jnp.int32)}
  return jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]


def abstract_params(model: nn.Module, mesh: jax.sharding.Mesh):
  """Shapes and shardings of the parameters; nothing is computed."""
  boxed = declared_params(model)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    nn.unbox(boxed),
    sharding.of_tree(boxed, mesh),
  )


def scorer(model: nn.Module, objective: Callable) -> Callable:
  """score(params, batch, key) -> {name: Mean}: where model meets objective.

  Without a key nothing is dropped: that is evaluation. A fourth argument is
  weights already in the model's dtype, as `copies` makes them.
  """

  def score(params, batch, key, rounded=()):
    params = with_copies(params, rounded)
    rngs = {} if key is None else {"dropout": key}

    def predict(batch):
      return model.apply({"params": params}, batch, rngs=rngs)

    return objective(predict, batch)

  return score


def objective_of(config: Config) -> Callable:
  """The objective of a config, its settings filled in.

  Work directories of before have no key for a setting with a default.
  """
  f, rest = kind_of("objective", config["objective"], OBJECTIVES)
  check_call(f, "objective", rest)
  keys = {k: p.default for k, p in keys_of(f).items()}
  rest = {k: v for k, v in keys.items() if v is not EMPTY} | rest
  if "logits" in rest:
    choose(rest["logits"], LOGITS, "objective.logits")
  return functools.partial(f, **rest)


def batch_spec(config: Config, mesh: jax.sharding.Mesh):
  """Shapes, dtypes and shardings of a batch, without its data."""
  d = config["data"]
  shape = (d["batch"], d["length"])
  kinds = dict(tokens=jnp.int32, targets=jnp.int32, weights=jnp.float32)
  if d["segments"]:
    kinds |= dict(positions=jnp.int32, segments=jnp.int32)
  laid = sharding.shardings("BT", shape, mesh)
  return {
    name: jax.ShapeDtypeStruct(shape, kind, sharding=laid)
    for name, kind in kinds.items()
  }


def build(
  config: Config,
  mesh: jax.sharding.Mesh | None = None,
  steps: int | None = None,
) -> Run:
  """Joins the parts; computes nothing but shapes.

  steps: of the whole run; None is what the config says of a new one. Raises
  BadConfig for whatever cannot work together.
  """
  mesh = mesh or make_mesh(config)
  model = model_of(config)
  params = abstract_params(model, mesh)
  settings = dict(config["optim"])
  spikes = {key: _take(settings, key) for key in SPIKES}
  check_types("optim", spikes, SPIKES)
  if (spikes["spike_sigma"] or 1.0) < 0:
    raise BadConfig(
      f"optim.spike_sigma={spikes['spike_sigma']}: expected a positive number, "
      "or None: below 0 it would skip most steps"
    )
  batch = batch_spec(config, mesh)
  cost = flops.per_token(
    params,
    length=config["data"]["length"],
    windows=config["model"]["windows"],
  )
  if steps is None:
    count = tree.count(params)
    steps = budget.settle(config, _each(batch, cost), count, Consumed(), 0)
  optimizer, schedule = call(
    optim.build, "optim", settings, steps=steps, params=params
  )
  score = scorer(model, objective_of(config))
  step = make_step(
    score,
    optimizer,
    schedule,
    config["microbatches"],
    spikes["spike_sigma"] or 0.0,
    functools.partial(copies, dtype=model.operand_dtype)
    if config["cast_once"]
    else None,
    at_once=optim.at_once(**config["optim"]),
  )
  choose(config["library"], LIBRARIES, "library")
  init_params = functools.partial(_init_params, model)
  window = spikes["spike_window"] if spikes["spike_sigma"] else 0
  start = functools.partial(
    _init_state, init_params, optimizer, config["seed"], window
  )
  state = _with_shardings(
    jax.eval_shape(start), params, optimizer, sharding.replicated(mesh)
  )
  laid = jax.tree.map(lambda x: x.sharding, state)
  return Run(
    config=config,
    mesh=mesh,
    model=model,
    score=score,
    optimizer=optimizer,
    schedule=schedule,
    step=step,
    state=state,
    batch=batch,
    cost=cost,
    steps=steps,
    init=jax.jit(
      start,
      out_shardings=laid,
      compiler_options=INIT_OPTIONS.get(mesh.devices.flat[0].platform),
    ),
  )


def _each(batch: Mapping, cost: flops.PerToken) -> Consumed:
  """What a step on this batch takes, by unit."""
  rows, tokens = batch["tokens"].shape[0], math.prod(batch["tokens"].shape)
  units = {EXAMPLES: rows, "tokens": tokens}
  return Consumed(units, round(cost.train * tokens))


def _by_onednn(step: Callable, mesh: jax.sharding.Mesh, dtype) -> Callable:
  """The step with its products by oneDNN; BadConfig where that cannot be."""
  instead = "train with --config.library=xla"
  if mesh.size > 1 or mesh.devices.flat[0].platform != "cpu":
    raise BadConfig(
      f"library=onednn multiplies on a single CPU device, and here are "
      f"{mesh.size} of {mesh.devices.flat[0].device_kind!r}: {instead}"
    )
  if not onednn.usable(jnp.dtype(dtype).name):
    raise BadConfig(
      f"library=onednn: this JAX on this CPU has no oneDNN for products of "
      f"{jnp.dtype(dtype).name}: {instead}"
    )

  # XLA has no form on disk for its calls: each start compiles anew.
  warnings.filterwarnings(
    "ignore",
    "Error writing persistent compilation cache entry for 'jit_(step|many)'",
  )

  @functools.wraps(step)
  def by_onednn(*args):
    with onednn.preferred():
      return step(*args)

  return by_onednn


def _init_params(model: nn.Module, seed) -> tree.Tree:
  """Fresh parameters: the same numbers on every mesh."""
  key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(b"init") >> 1)
  tokens = {"tokens": jnp.zeros((1, 1), jnp.int32)}
  return nn.unbox(model.init(key, tokens)["params"])


def _init_state(init_params, optimizer, seed, spike_window) -> State:
  return fresh(init_params(seed), optimizer, seed, spike_window)


def _take(settings: dict, key: str):
  if key not in settings:
    raise BadConfig(f"config key optim.{key} is missing")
  return settings.pop(key)


def _with_shardings(state: State, params, optimizer, replicated) -> State:
  """The abstract state, each leaf laid out as its parameter is."""
  laid = jax.tree.map(lambda x: x.sharding, params)
  opt = optim.state_shardings(
    optimizer, state.opt_state, params, laid, replicated
  )
  shardings = State(
    step=replicated,
    seed=replicated,
    skipped=replicated,
    params=laid,
    opt_state=opt,
    recent=jax.tree.map(lambda _: replicated, state.recent),
  )
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    state,
    shardings,
  )
