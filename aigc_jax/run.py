"""Config to Run: the only file of the package that reads a config.

A config is checked against the keyword arguments of what it configures, so a
missing or unknown key is an error that names the nearest one. `build` computes
nothing: it joins mesh, model, objective and optimizer into the step that
training, planning and benchmarks share.
"""

import dataclasses
import functools
import hashlib
import inspect
import json
import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from aigc_jax import data, flops, hf, optim, sharding, tree
from aigc_jax.errors import BadConfig, choose, nearest
from aigc_jax.evaluators.loss import Loss
from aigc_jax.evaluators.samples import Samples
from aigc_jax.models import MODELS
from aigc_jax.objectives import OBJECTIVES
from aigc_jax.sampling.decode import Engine
from aigc_jax.sampling.logits import Sampling
from aigc_jax.trainer.checkpoint import Checkpoints
from aigc_jax.trainer.state import State, fresh
from aigc_jax.trainer.step import make_step, repeat_step

Config = dict[str, Any]  # plain JSON values, nested by section

# Sections whose keys are not all keyword arguments of one function.
SECTIONS = (
  "seed",
  "steps",
  "total_tokens",
  "microbatches",
  "steps_per_call",
  "mesh",
  "data",
  "model",
  "objective",
  "optim",
  "evaluate",
  "checkpoint",
  "log",
  "init_from",
)
SPIKES = ("spike_sigma", "spike_window")  # of optim, for the step
CHECKPOINT = ("every_steps", "keep", "keep_every_steps")
LOG = ("every_steps",)
MOST_JSON = 16 << 20  # bytes of a JSON file of a work directory


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

  @property
  def tokens_per_step(self) -> int:
    return math.prod(self.batch["tokens"].shape)

  @property
  def flops_per_step(self) -> float:
    return self.cost.train * self.tokens_per_step

  def advance(self) -> Callable:
    """The step as training runs it: compiled, its state donated."""
    many = repeat_step(self.step, self.config["steps_per_call"])
    shardings = jax.tree.map(lambda x: x.sharding, self.state)
    return jax.jit(
      many, donate_argnums=0, out_shardings=(shardings, None)
    )


# Reading.


def read(config: ConfigDict | Mapping) -> Config:
  """The config as plain values, with `steps` settled; raises BadConfig."""
  plain = json.loads(
    config.to_json() if isinstance(config, ConfigDict) else json.dumps(config)
  )
  _expect("config", plain, SECTIONS)
  _expect("checkpoint", plain["checkpoint"], CHECKPOINT)
  _expect("log", plain["log"], LOG)
  _expect("mesh", plain["mesh"], sharding.AXES)
  _check_data(plain)
  _check_sizes(plain)
  return plain


def _expect(where: str, given: Iterable[str], wanted: Iterable[str]) -> None:
  """Raises BadConfig unless `given` are just the keys `wanted`."""
  given, wanted = list(given), list(wanted)
  prefix = "" if where == "config" else f"{where}."
  for key in given:
    if key not in wanted:
      raise BadConfig(
        f"config key {prefix}{key} is unknown{nearest(key, wanted)} "
        f"(there are: {', '.join(wanted)})"
      )
  for key in wanted:
    if key not in given:
      raise BadConfig(f"config key {prefix}{key} is missing")


def _check_sizes(config: Config) -> None:
  """Settles `steps` and checks what concerns more than one section."""
  batch, length = config["data"]["batch"], config["data"]["length"]
  positive = {
    "microbatches": config["microbatches"],
    "steps_per_call": config["steps_per_call"],
    "data.batch": batch,
    "data.length": length,
    "log.every_steps": config["log"]["every_steps"],
  }
  for name, value in positive.items():
    if not isinstance(value, int) or value < 1:
      raise BadConfig(f"{name}={value!r}: expected a positive integer")
  if config["total_tokens"]:
    config["steps"] = math.ceil(config["total_tokens"] / (batch * length))
  if config["steps"] < 0:
    raise BadConfig(f"steps={config['steps']}: expected 0 or more")
  call = config["steps_per_call"]
  if call > 1:
    intervals = {
      "steps": config["steps"],
      "checkpoint.every_steps": config["checkpoint"]["every_steps"],
      **{
        f"evaluate.{name}.every_steps": entry["every_steps"]
        for name, entry in config["evaluate"].items()
      },
    }
    for name, value in intervals.items():
      if value > 0 and value % call:
        raise BadConfig(
          f"{name}={value} is not a multiple of steps_per_call={call}: the "
          "host acts only between calls"
        )


def call(f: Callable, section: str, values: Mapping, /, **more):
  """f(**values, **more); keys that do not fit are BadConfig, by name."""
  signature = inspect.signature(f).parameters.values()
  keys = [p.name for p in signature if p.kind is p.KEYWORD_ONLY]
  required = [
    p.name
    for p in signature
    if p.kind is p.KEYWORD_ONLY and p.default is p.empty
  ]
  wanted = [k for k in keys if k not in more]
  for key in values:
    if key not in wanted:
      raise BadConfig(
        f"config key {section}.{key} is unknown{nearest(key, wanted)} "
        f"(there are: {', '.join(wanted)})"
      )
  for key in required:
    if key not in values and key not in more:
      raise BadConfig(f"config key {section}.{key} is missing")
  return f(**values, **more)


def kind_of(section: str, values: Mapping, table: Mapping) -> tuple:
  """(table[kind], the other keys) of a section that has a kind."""
  if "kind" not in values:
    raise BadConfig(f"config key {section}.kind is missing")
  rest = {k: v for k, v in values.items() if k != "kind"}
  return choose(values["kind"], table, f"{section}.kind"), rest


def fingerprint(config: Mapping) -> str:
  """A hash of all that a config says."""
  text = json.dumps(config, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


# Building.


def make_mesh(config: Config) -> jax.sharding.Mesh:
  """The mesh, checked against the batch; quick, so that it can come first."""
  mesh = sharding.make_mesh(**config["mesh"])
  batch, parts = config["data"]["batch"], config["microbatches"]
  if batch % parts:
    raise BadConfig(
      f"data.batch={batch} is not divisible by microbatches={parts}: "
      f"the nearest batches that are: {_around(batch, parts)}"
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


def model_of(config: Config) -> nn.Module:
  """The model a config describes."""
  make, rest = kind_of("model", config["model"], MODELS)
  return call(make, "model", rest)


def abstract_params(model: nn.Module, mesh: jax.sharding.Mesh):
  """Shapes and shardings of the parameters; nothing is computed."""
  tokens = {"tokens": jax.ShapeDtypeStruct((1, 1), jnp.int32)}
  boxed = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    nn.unbox(boxed),
    sharding.of_tree(boxed, mesh),
  )


def scorer(model: nn.Module, objective: Callable) -> Callable:
  """score(params, batch, key) -> {name: Mean}: where model meets objective.

  Without a key nothing is dropped: that is evaluation.
  """

  def score(params, batch, key):
    rngs = {} if key is None else {"dropout": key}

    def predict(batch):
      return model.apply({"params": params}, batch, rngs=rngs)

    return objective(predict, batch)

  return score


def objective_of(config: Config) -> Callable:
  """The objective of a config, its settings filled in."""
  f, rest = kind_of("objective", config["objective"], OBJECTIVES)
  keys = inspect.signature(f).parameters.values()
  keys = [p.name for p in keys if p.kind is p.KEYWORD_ONLY]
  _expect("objective", rest, keys)
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


def build(config: Config, mesh: jax.sharding.Mesh | None = None) -> Run:
  """Joins the parts; computes nothing but shapes.

  Raises BadConfig for whatever cannot work together.
  """
  mesh = mesh or make_mesh(config)
  model = model_of(config)
  params = abstract_params(model, mesh)
  settings = dict(config["optim"])
  spikes = {key: _take(settings, key) for key in SPIKES}
  optimizer, schedule = call(
    optim.build, "optim", settings, steps=config["steps"], params=params
  )
  score = scorer(model, objective_of(config))
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
    step=make_step(
      score,
      optimizer,
      schedule,
      config["microbatches"],
      spikes["spike_sigma"],
    ),
    state=state,
    batch=batch_spec(config, mesh),
    cost=flops.per_token(
      params,
      length=config["data"]["length"],
      windows=config["model"]["windows"],
    ),
    init=jax.jit(start, out_shardings=laid),
  )


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


# Data.


def sources_of(config: Config) -> list[dict]:
  """The sources; `data.path` is short for one source of text."""
  d = config["data"]
  if d["path"]:
    source = dict(kind="text", path=d["path"], split="train")
    return [source | dict(field=d["field"], weight=1.0)]
  if not d["sources"]:
    raise BadConfig(
      "no data: set --config.data.path=PATH (a file, folder or glob), or "
      "data.sources in the config"
    )
  return [dict(s) for s in d["sources"]]


def config_in(workdir: str | Path) -> Config:
  """The config a run was started with, read as data."""
  return _json_in(workdir, "config.json")


def provenance_in(workdir: str | Path) -> dict:
  """What a run recorded of its code, data and machine."""
  return _json_in(workdir, "run.json")


def _json_in(workdir: str | Path, name: str) -> dict:
  path = Path(workdir) / name
  if not path.is_file():
    raise BadConfig(
      f"{workdir} holds no run: there is no {name} in it "
      "(expected the --workdir that training was given)"
    )
  if path.stat().st_size > MOST_JSON:
    raise BadConfig(f"{path} is larger than {MOST_JSON} bytes: not read")
  try:
    found = json.loads(path.read_text())
  except (ValueError, RecursionError) as error:
    raise BadConfig(f"{path} is not readable JSON: {error}") from None
  if not isinstance(found, dict):
    raise BadConfig(f"{path} holds no JSON object")
  return found


def data_arguments(config: Config) -> dict:
  """What says which stores a config reads."""
  names = ("tokenizer", "tokenizer_vocab", "validation", "root")
  return {"sources": sources_of(config)} | {
    name: config["data"][name] for name in names
  }


DATA = (
  "sources", "path", "field", "tokenizer", "tokenizer_vocab", "task", "batch",
  "length", "segments", "shuffle", "validation", "root", "skip_steps",
)  # fmt: skip


def _check_data(config: Config) -> None:
  """Raises BadConfig for an unknown or missing key of the data section."""
  _expect("data", config["data"], DATA)
  _expect("data.task", config["data"]["task"], ("kind",))


def open_stream(config: Config, say=print):
  """The training data, prepared where it is missing."""
  d = config["data"]
  names = ("task", "batch", "length", "segments", "shuffle", "skip_steps")
  stream = data.build(
    **data_arguments(config),
    **{name: d[name] for name in names},
    seed=config["seed"],
    say=say,
  )
  data.check_vocab(stream, config["model"]["vocab"])
  return stream


def open_eval(config: Config, split: str, batches: int = -1, say=print):
  """A held-out set of the sources of a config."""
  d = config["data"]
  names = ("task", "batch", "length", "segments")
  found = data.build_eval(
    **data_arguments(config),
    **{name: d[name] for name in names},
    split=split,
    say=say,
  )
  data.check_vocab(found, config["model"]["vocab"])
  return found.first(batches)


def prepared_data(config: Config) -> list[dict] | None:
  """The manifests of the training stores, or None where one is missing."""
  return data.prepared(**data_arguments(config))


# Evaluators.


@dataclasses.dataclass(frozen=True)
class Place:
  """Where an evaluator works: its run and what it may touch there."""

  name: str
  run: Run
  tokenizer: Any
  workdir: Path
  poll: Callable[[], None]  # called between batches; may raise, as a stop does
  say: Callable


def evaluator(place: Place, entry: Mapping) -> tuple[int, Callable]:
  """(every_steps, evaluate(step, state)) of one entry of config.evaluate."""
  section = f"evaluate.{place.name}"
  if "every_steps" not in entry:
    raise BadConfig(f"config key {section}.every_steps is missing")
  rest = {k: v for k, v in entry.items() if k != "every_steps"}
  make, rest = kind_of(section, rest, EVALUATORS)
  return entry["every_steps"], call(make, section, rest, place=place)


def _loss(*, data: Mapping, batches: int, place: Place) -> Loss:
  """Loss, perplexity and bits per byte of a held-out set."""
  _expect(f"evaluate.{place.name}.data", data, ("split",))
  r = place.run
  found = open_eval(r.config, data["split"], batches, say=place.say)
  return Loss(r.score, found, r.mesh, name=place.name, poll=place.poll)


def _samples(
  *,
  prompts: list[str],
  max_tokens: int,
  temperature: float,
  top_p: float,
  num_samples: int,
  place: Place,
) -> Samples:
  """Texts the model writes, below DIR/samples."""
  config = place.run.config
  return Samples(
    # Unrolled, a token costs no loop; parameters are the same either way.
    model_of(config | {"model": config["model"] | {"unroll": 0}}),
    place.tokenizer,
    place.run.mesh,
    place.workdir / "samples",
    prompts=prompts,
    max_tokens=max_tokens,
    temperature=temperature,
    top_p=top_p,
    num_samples=num_samples,
    seed=config["seed"],
    positions=config["model"]["position_length"],
    unrolled=True,
    poll=place.poll,
  )


EVALUATORS = {"loss": _loss, "samples": _samples}


# Parameters from elsewhere.


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A model with its parameters and tokenizer, ready to be used."""

  model: nn.Module
  params: tree.Tree
  tokenizer: Any
  config: Config
  mesh: jax.sharding.Mesh
  step: int  # updates behind the parameters; 0 for a Hugging Face folder
  name: str

  @property
  def length(self) -> int:
    """How many tokens the model was made to read at once; 0 if it is unsaid."""
    made = self.config["model"]["position_length"]
    if made or "data" not in self.config:
      return made
    return self.config["data"]["length"]

  def engine(self, sampling: Sampling, *, seed: int, group: int) -> Engine:
    """Decoding with this model; see sampling/decode.py."""
    model = self.config["model"]
    learned = model["position"] == "learned"
    return Engine(
      self.model,
      self.params,
      sampling=sampling,
      stop_ids=(self.tokenizer.eot,),
      positions=model["position_length"] if learned else 0,
      unrolled=model["unroll"] == 0,
      group=group,
      seed=seed,
    )


def hf_folder(where: str) -> str | None:
  """The folder of "hf:FOLDER", or None for anything else."""
  return where.removeprefix("hf:") if where.startswith("hf:") else None


def everywhere(config: Config) -> Config:
  """The config with a mesh of whatever devices there are here."""
  sizes = {axis: 1 for axis in sharding.AXES}
  return config | {"mesh": sizes | {sharding.REST: -1}}


def load(where: str, *, step: int | None = None, **model_changes) -> Loaded:
  """The run in a work directory, or the model in "hf:FOLDER".

  `model_changes` replace keys of config.model that do not shape parameters,
  such as unroll. Raises BadConfig where there is none, StorageFailure where
  no checkpoint is valid.
  """
  folder = hf_folder(where)
  if folder is not None:
    imported = hf.load(folder)
    model_config = {"kind": "decoder"} | imported.kwargs | model_changes
    config = {"model": model_config}
    tokenizer = data.load_tokenizer(where)
  else:
    config = config_in(where)
    config = config | {"model": config["model"] | model_changes}
    tokenizer = data.load(Path(where) / "tokenizer")
  mesh = sharding.make_mesh(**everywhere(config)["mesh"])
  model = model_of(config)
  with jax.set_mesh(mesh):
    abstract = abstract_params(model, mesh)
    params, step = read_params(where, abstract, step)
  return Loaded(model, params, tokenizer, config, mesh, step, where)


def read_params(where: str, abstract, step: int | None = None):
  """(parameters, their step) from a work directory or "hf:FOLDER"."""
  folder = hf_folder(where)
  if folder is not None:
    laid = jax.tree.map(lambda x: x.sharding, abstract)
    return hf.read_params(folder, abstract, laid), 0
  found = Checkpoints(
    Path(where) / "checkpoints", every_steps=0, keep=1, keep_every_steps=0
  ).restore_params(abstract, step)
  return found[0], int(found[1]["step"])
