"""Config to Run: mesh, model, objective and optimizer joined into the step.

Nothing is computed: training, planning and benchmarks compile this same step.
"""

import dataclasses
import functools
import math
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from aigc_jax import flops, optim, sharding, tree
from aigc_jax.data.spec import sizes
from aigc_jax.errors import BadConfig, choose, nearest
from aigc_jax.layers.cpu import onednn
from aigc_jax.layers.products import copies, with_copies
from aigc_jax.layers.report import REPORTS, STATS, told
from aigc_jax.models import MODELS
from aigc_jax.objectives import OBJECTIVES
from aigc_jax.objectives.tokens import LOGITS
from aigc_jax.run import budget, compute
from aigc_jax.run.parts import check_parts
from aigc_jax.run.settings import Config, data_of
from aigc_jax.signature import (
  EMPTY,
  call,
  check_call,
  check_type,
  check_types,
  expect,
  keys_of,
  kind_of,
)
from aigc_jax.terminal import counted
from aigc_jax.trainer.consumed import EXAMPLES, Consumed
from aigc_jax.trainer.state import Fixed, State, fresh
from aigc_jax.trainer.step import make_step, repeat_step

# Of optim, for the step.
SPIKES = {"spike_sigma": float | None, "spike_window": int}
# Keys of config.optim that are the step's, and what no config can say.
OURS = (*SPIKES, "average")
MADE = {"steps", "params", "limits", "factors"}

# How the program of fresh parameters is compiled, by platform: on a CPU less
# optimised, which takes a third of the time and gives the same bits as fast.
INIT_OPTIONS = {"cpu": {"xla_backend_optimization_level": 1}}
# How steps are. Half as wide, the vectors of what rounds to bfloat16 are stored
# 16 bytes at a time, at half the pace (experiments/speed).
STEP_OPTIONS = {"cpu": {"xla_cpu_prefer_vector_width": 512}}
NOTHING = Fixed()  # besides parameters
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
  each: Consumed  # what one step takes, by unit of the data, and its FLOPs
  init: Callable[[], State]
  treatments: Mapping[str, optim.Treatment]  # of each parameter, by path
  steps: int = 0  # updates in the whole run, see `budget`
  cost: flops.PerToken | None = None  # of a token, where there is a closed form

  @property
  def unit(self) -> str:
    """What the data counts of itself: tokens, where there are any."""
    return "tokens" if "tokens" in self.each.units else EXAMPLES

  @property
  def units_per_step(self) -> int:
    return self.each.units[self.unit]

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
    return float(self.each.flops)

  def advance(self) -> Callable:
    """The step as training runs it: compiled, its state donated.

    Raises BadConfig where the library that shall multiply cannot.
    """
    step = self.step
    how = self.config["compute"]
    if choose(how["library"], LIBRARIES, "compute.library"):
      step = _by_onednn(step, self.mesh, self.model.operand_dtype)
    many = repeat_step(step, how["steps_per_call"])
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
  batch, parts = config["data"]["batch"], config["compute"]["microbatches"]
  if batch % parts:
    raise BadConfig(
      f"data.batch={batch} is not divisible by compute.microbatches={parts}: "
      f"the nearest batches that are: {_around(batch, parts)}; or leave the "
      "batch, which a run that goes on must: --config.compute.microbatches="
      f"{math.gcd(batch, parts)}"
    )
  shards = sharding.batch_shards(mesh)
  if (batch // parts) % shards:
    raise BadConfig(
      f"data.batch={batch} in {counted(parts, 'microbatch')} does not divide "
      f"over {shards} parts of the mesh: the nearest batches that do: "
      f"{_around(batch, parts * shards)}"
    )
  over = sharding.length_shards(mesh)
  for length in sizes(data_of(config).spec, "T"):
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
  make, rest = kind_of("model", compute.keywords(config), MODELS)
  return call(make, "model", rest)


def declared_params(model: nn.Module):
  """Shapes of the parameters, each a `sharding.Declared`."""
  return declared(model)["params"]


def deviations(model: nn.Module) -> dict[str, float]:
  """{path: deviation} of fresh parameters; 0 where all are the same number."""
  boxed = jax.tree_util.tree_leaves_with_path(
    declared_params(model), is_leaf=lambda x: isinstance(x, sharding.Declared)
  )
  # The box is a node of the tree; its path is that of the parameter.
  return {tree.name_of(path): box.deviation for path, box in boxed}


def declared(model: nn.Module) -> dict:
  """{collection: shapes} of all that the model has: "params", "stats"."""
  return jax.eval_shape(model.init, jax.random.key(0), model.example())


def abstract_params(model: nn.Module, mesh: jax.sharding.Mesh):
  """Shapes and shardings of the parameters; nothing is computed."""
  return abstract_variables(model, mesh)[0]


def abstract_variables(model: nn.Module, mesh: jax.sharding.Mesh) -> tuple:
  """(parameters, what reports move or None), as `abstract_params` has them."""
  boxed = declared(model)
  stats = boxed.get(STATS)
  return (
    _abstract(boxed["params"], mesh),
    None if stats is None else _abstract(stats, mesh),
  )


def _abstract(boxed, mesh: jax.sharding.Mesh):
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    nn.unbox(boxed),
    sharding.of_tree(boxed, mesh),
  )


def scorer(
  model: nn.Module, objective: Callable, frozen: Iterable[str] = ()
) -> Callable:
  """score(params, batch, key) -> {name: Mean}: where model meets objective.

  Without a key nothing is dropped or reported: that is evaluation. A fourth
  argument is weights already in the model's dtype, as `copies` makes them;
  `fixed` what else the model reads. With a key the entry REPORTS is what its
  layers report, where they do. frozen: parts that nothing moves; a role that is
  one always predicts as in evaluation.
  """
  unmoved = frozenset(frozen)

  def score(params, batch, key, rounded=(), fixed=NOTHING):
    variables = {
      "params": tree.joined(with_copies(params, rounded), fixed.frozen)
    }
    if fixed.stats is not None:
      variables[STATS] = fixed.stats
    reports: dict = {}

    def predict(batch, role=None, *, still=False, heard=True):
      """still: no gradient reaches its parameters. heard: its reports count."""
      how, given = {} if role is None else {"role": role}, variables
      if still:
        given = given | {"params": jax.lax.stop_gradient(given["params"])}
      if key is None or role in unmoved:
        return model.apply(given, batch, **how)
      output, new = model.apply(
        given, batch, rngs={"dropout": key}, mutable=[REPORTS], **how
      )
      if heard:
        _add_reports(reports, new.get(REPORTS, {}))
      return output

    # For objectives that leave something out in training alone, or ask parts.
    predict.trains = key is not None
    predict.roles = getattr(model, "roles", ())
    means = objective(predict, batch)
    if not reports:
      return means
    return means | told(reports) | {REPORTS: reports}

  return score


def _add_reports(total: dict, new: Mapping) -> None:
  """Adds the reports of one prediction to those of the others."""
  for name, value in new.items():
    if isinstance(value, Mapping):
      _add_reports(total.setdefault(name, {}), value)
    elif name in total:
      total[name] = jax.tree.map(jnp.add, total[name], value)
    else:
      total[name] = value


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


def abstract_batch(config: Config, mesh: jax.sharding.Mesh) -> dict:
  """Shapes, dtypes and shardings of a batch, without its data."""
  spec = data_of(config).spec
  return {name: array.abstract(mesh) for name, array in spec.items()}


def check_reads(config: Config, model: nn.Module, batch: Mapping) -> None:
  """Raises BadConfig where the data does not give what the model takes.

  What the objective `makes` by itself need not be in the data.
  """
  objective, _ = kind_of("objective", config["objective"], OBJECTIVES)
  given = {*batch, *getattr(objective, "makes", ())}
  lacking = [name for name in model.example() if name not in given]
  if lacking:
    raise BadConfig(
      f"model.kind={config['model']['kind']!r} takes {', '.join(lacking)}, and "
      f"data.kind={config['data']['kind']!r} with this task gives "
      f"{', '.join(batch)}: choose data or a task for this model"
    )
  spec = data_of(config).spec
  if "masks" in spec and "masks" not in getattr(model, "may_read", ()):
    raise BadConfig(
      "data.augment.times and bands hide parts of a spectrogram, which "
      f"model.kind={config['model']['kind']!r} would not read: set both to 0"
    )
  source = [name for name, array in spec.items() if "S" in array.letters]
  if source and not set(source) & set(model.example()):
    raise BadConfig(
      f"data.kind={config['data']['kind']!r} with this task gives sources, "
      f"{', '.join(source)}, which model.kind={config['model']['kind']!r} "
      "would not read: take an encoder_decoder, or other data"
    )
  if source:
    _check_ids(config["model"], config["data"].get("task", {}))


def _check_ids(model: Mapping, task: Mapping) -> None:
  """Raises BadConfig where a task has other ids than the model."""
  known = ("span_corruption", "prefix")
  start = task.get("start_token")
  if task.get("kind") in known and start != model["start_token"]:
    raise BadConfig(
      f"data.task.start_token={start} and model.start_token="
      f"{model['start_token']}: targets are written after the same token in "
      f"training and in use: --config.data.task.start_token="
      f"{model['start_token']}"
    )
  sentinel = task.get("first_sentinel", 0)
  if sentinel >= model["vocab"]:
    raise BadConfig(
      f"data.task.first_sentinel={sentinel} is no id of model.vocab="
      f"{model['vocab']}: --config.model.vocab={sentinel + 1} or more, or "
      f"--config.data.task.first_sentinel={model['vocab'] - 1}"
    )


def check_microbatches(config: Config, model: nn.Module) -> None:
  """Raises BadConfig where rows of a batch may not be parted."""
  objective, _ = kind_of("objective", config["objective"], OBJECTIVES)
  pairs = getattr(objective, "couples_rows", "")
  pieces = config["compute"]["microbatches"]
  again = ""
  if "remat" in compute.taken(config):
    again = ", or --config.compute.remat=full"
  if pairs and pieces > 1:
    raise BadConfig(
      f"compute.microbatches={pieces}: objective.kind="
      f"{config['objective']['kind']!r} is of {pairs}, and parts have fewer: "
      "--config.compute.microbatches=1, and where that is too large for memory "
      f"a smaller data.batch, or more devices along mesh.fsdp{again}"
    )
  coupled = getattr(model, "couples_rows", "")
  if coupled and pieces > 1:
    raise BadConfig(
      f"compute.microbatches={pieces}: the {coupled} of "
      f"model.kind={config['model']['kind']!r} takes its moments over all rows "
      "of a batch, and of parts they are others: "
      "--config.compute.microbatches=1, and where that is too large for memory "
      f"a smaller data.batch, or more devices along mesh.fsdp{again}"
    )


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
  model, how = model_of(config), config["compute"]
  check_microbatches(config, model)
  params, stats = abstract_variables(model, mesh)
  settings = dict(config["optim"])
  taken = keys_of(optim.build)
  needed = [k for k, p in taken.items() if p.default is EMPTY and k not in MADE]
  expect("optim", settings, [*needed, *SPIKES], among={*taken, *OURS} - MADE)
  spikes = {key: settings.pop(key) for key in SPIKES}
  check_types("optim", spikes, SPIKES)
  if (spikes["spike_sigma"] or 1.0) < 0:
    raise BadConfig(
      f"optim.spike_sigma={spikes['spike_sigma']}: expected a positive number, "
      "or None: below 0 it would skip most steps"
    )
  average = settings.pop("average", None)
  check_type("optim.average", average, float | None)
  if average is not None and not 0 < average < 1:
    raise BadConfig(
      f"optim.average={average}: expected what is kept of the average in a "
      "step, such as 0.999, or None for no average"
    )
  batch = abstract_batch(config, mesh)
  check_reads(config, model, batch)
  score = scorer(model, objective_of(config), config["frozen"])
  whole = params
  params, frozen = tree.split(whole, config["frozen"])
  _check_frozen(config, whole, params)
  check_parts(config, whole)
  frozen = frozen or None
  cost = _closed_cost(config, whole) if frozen is None else None
  each = _each(config, batch, cost, score, params, Fixed(frozen, stats))
  if steps is None:
    count = tree.count(params)
    steps = budget.settle(config, each, count, Consumed(), 0)
  factors = _factors(model, params, settings)
  optimizer, schedule = call(
    optim.build,
    "optim",
    settings,
    steps=steps,
    params=params,
    limits=getattr(model, "limits", {}),
    factors=factors,
  )
  treated = optim.treatments(
    params, settings["groups"], settings["weight_decay"], factors
  )
  step = make_step(
    score,
    optimizer,
    schedule,
    how["microbatches"],
    spikes["spike_sigma"] or 0.0,
    functools.partial(copies, dtype=model.operand_dtype)
    if how["cast_once"]
    else None,
    at_once=optim.at_once(
      **config["optim"],
      epsilon=min([t.epsilon for t in treated.values()], default=1.0),
    ),
    average=average,
  )
  choose(how["library"], LIBRARIES, "compute.library")
  window = spikes["spike_window"] if spikes["spike_sigma"] else 0
  start = functools.partial(
    _init_state,
    model,
    optimizer,
    config["seed"],
    window,
    tuple(config["frozen"]),
    average is not None,
  )
  state = _with_shardings(
    jax.eval_shape(start),
    params,
    optimizer,
    sharding.replicated(mesh),
    frozen,
    stats,
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
    each=each,
    treatments=treated,
    cost=cost,
    steps=steps,
    init=jax.jit(
      start,
      out_shardings=laid,
      compiler_options=INIT_OPTIONS.get(mesh.devices.flat[0].platform),
    ),
  )


def _factors(model: nn.Module, params, settings: Mapping) -> dict:
  """{path: Factors} of the parameters that are trained.

  Of models that have a parametrization. Raises BadConfig where that says
  nothing of the optimizer.
  """
  said = getattr(model, "factors", None)
  if said is None or "kind" not in settings:
    return {}
  return {name: said(name, settings["kind"]) for name in tree.names(params)}


def _closed_cost(config: Config, params) -> flops.PerToken | None:
  """FLOPs of a token in closed form, for a kind that has one."""
  if config["model"]["kind"] != "decoder" or "length" not in config["data"]:
    return None
  return flops.per_token(
    params,
    length=config["data"]["length"],
    windows=config["model"]["windows"],
  )


def _each(
  config: Config, batch: Mapping, cost, score: Callable, params, fixed: Fixed
) -> Consumed:
  """What a step on this batch takes, by unit; its FLOPs as traced or closed."""
  units = data_of(config).units
  if cost is not None:
    return Consumed(units, round(cost.train * units["tokens"]))
  key = jax.eval_shape(jax.random.key, 0)
  take = jax.grad(
    lambda params, batch, key, fixed: (
      score(params, batch, key, fixed=fixed)["loss"].sum
    )
  )
  return Consumed(units, flops.count(take, params, dict(batch), key, fixed))


def _check_frozen(config: Config, whole, params) -> None:
  """Raises BadConfig for a part that is none, or where nothing is left."""
  names = tree.names(whole)
  for part in config["frozen"]:
    if not any(n == part or n.startswith(f"{part}/") for n in names):
      known = sorted({name.split("/")[0] for name in names})
      raise BadConfig(
        f"frozen: the model has no part {part!r}{nearest(part, known)} (there "
        f'are: {", ".join(known)}, and what is in them, as "stack/mlp")'
      )
  if not tree.count(params):
    raise BadConfig("frozen: nothing of the model is left to be trained")


def _by_onednn(step: Callable, mesh: jax.sharding.Mesh, dtype) -> Callable:
  """The step with its products by oneDNN; BadConfig where that cannot be."""
  instead = "train with --config.compute.library=xla"
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


def _init_variables(model: nn.Module, seed) -> dict[str, tree.Tree]:
  """Fresh parameters and stats: the same numbers on every mesh."""
  key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(b"init") >> 1)
  example = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), model.example())
  return nn.unbox(dict(model.init(key, example)))


def fresh_params(config: Config, model: nn.Module, mesh) -> tree.Tree:
  """The parameters that a run of this config starts with by itself."""
  laid = jax.tree.map(lambda x: x.sharding, abstract_params(model, mesh))
  make = jax.jit(
    lambda seed: _init_variables(model, seed)["params"], out_shardings=laid
  )
  return make(jnp.uint32(config["seed"]))


def _init_state(
  model, optimizer, seed, spike_window, frozen: tuple[str, ...], average: bool
) -> State:
  variables = _init_variables(model, seed)
  params, still = tree.split(variables["params"], frozen)
  return fresh(
    params,
    optimizer,
    seed,
    spike_window,
    stats=variables.get(STATS),
    frozen=still or None,
    average=average,
  )


def _with_shardings(
  state: State, params, optimizer, replicated, frozen, stats
) -> State:
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
    stats=jax.tree.map(lambda x: x.sharding, stats),
    average=laid if state.average is not None else None,
    average_stats=None
    if state.average_stats is None
    else jax.tree.map(lambda x: x.sharding, stats),
    frozen=jax.tree.map(lambda x: x.sharding, frozen),
  )
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    state,
    shardings,
  )
