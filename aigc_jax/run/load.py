"""A model and its parameters, from a work directory or hf:FOLDER."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
from absl import logging
from flax import linen as nn

from aigc_jax import data, files, hf, sharding, tree
from aigc_jax.data.listing import check_local
from aigc_jax.errors import BadConfig, StorageFailure
from aigc_jax.layers.report import STATS
from aigc_jax.models import MODELS
from aigc_jax.run import compute, spelling
from aigc_jax.run.build import (
  Run,
  abstract_params,
  abstract_variables,
  fresh_params,
  model_of,
)
from aigc_jax.run.loaded import Loaded
from aigc_jax.run.origin import (
  check_frozen_there,
  check_saved,
  hf_folder,
  identity_in,
  tokenizer_in,
)
from aigc_jax.run.parts import below, nested
from aigc_jax.run.places import as_meant
from aigc_jax.run.settings import (
  WEIGHTS,
  Config,
  check_weights,
  config_in,
  usable_config_in,
)
from aigc_jax.signature import keys_of
from aigc_jax.trainer import history
from aigc_jax.trainer.state import Fixed

# The data kinds that have a tokenizer.
TEXTS = ("text", "pairs", "sound", "captions")


def everywhere(config: Config) -> Config:
  """The config with a mesh of whatever devices there are here."""
  sizes = {axis: 1 for axis in sharding.AXES}
  return config | {"mesh": sizes | {sharding.REST: None}}


def load(
  where: str,
  *,
  step: int | None = None,
  weights: str = "raw",
  part: str = "",
  suits: Callable[[nn.Module, Config], None] | None = None,
  **how,
) -> Loaded:
  """The run in a work directory, or the model in "hf:FOLDER".

  weights: "raw", or "average" where a run keeps one. part: of a model of
  several roles, that one alone. suits: is given the model and its config before
  parameters are read, which may take long, to refuse what does not serve. how:
  keys of config.compute, such as unroll, for where the model takes them. Raises
  BadConfig where there is none, StorageFailure where no checkpoint is valid.
  """
  check_local(where, "--workdir")
  folder = hf_folder(where)
  check_step(step, folder)
  check = None
  if folder is not None:
    imported = hf.load(folder)
    config = spelling.modern_model(
      {"kind": imported.family.kind} | imported.kwargs
    )
    has = imported.tokenizer or imported.family.pipeline not in hf.WORDLESS
    tokenizer = data.load_tokenizer(where) if has else None
  else:
    config = as_meant(usable_config_in(where), where)
    check_weights("weights", weights, config)
    tokenizer = tokenizer_in(where, missing=not reads_text(config))
    check = functools.partial(check_saved, where, config, tokenizer)
  config = compute.changed(config, **how)
  mesh = sharding.make_mesh(**everywhere(config)["mesh"])
  model = model_of(config)
  if suits is not None:
    own = config_of_part(where, config, part) if part else config
    suits(model_of(own) if part else model, own)
  with jax.set_mesh(mesh):
    params, fixed, step = read_variables(
      where, config, model, mesh, step, check, weights
    )
  found = Loaded(model, params, tokenizer, config, mesh, step, where, fixed)
  return part_of(found, part) if part else found


def part_of(whole: Loaded, part: str) -> Loaded:
  """One role of a model of several, as a model. Raises BadConfig."""
  config = config_of_part(whole.name, whole.config, part)
  fixed = whole.fixed
  if fixed is not None:
    fixed = Fixed(None, fixed.stats.get(part))
  return dataclasses.replace(
    whole,
    model=model_of(config),
    params=whole.params[part],
    config=config,
    fixed=fixed,
  )


def config_of_part(name: str, config: Config, part: str) -> Config:
  """The config with that part for a model. Raises BadConfig without one."""
  parts = parts_in(config["model"])
  if part not in parts:
    known = f"it has {', '.join(parts)}" if parts else "it has no parts"
    raise BadConfig(f"part={part}: the model in {name}: {known}")
  return config | {"model": parts[part]}


def parts_in(model: Mapping) -> Mapping[str, Mapping]:
  """{name: a config.model of its own} of the roles of a config.model.

  Of a vqgan its first player, which is a vq by itself.
  """
  if model.get("kind") != "vqgan":
    return model.get("parts", {})
  own = {k: v for k, v in model.items() if k in keys_of(MODELS["vq"])}
  return {"generator": dict(own, kind="vq")}


def reads_text(config: Config) -> bool:
  """Whether a run has a tokenizer."""
  return config["data"].get("kind", "text") in TEXTS


def read_variables(
  where: str, config: Config, model, mesh, step, check, weights: str
):
  """(parameters, what else the model reads or None, step) of a run or folder.

  What is frozen is read from where the run had it, and stands among the
  parameters.
  """
  whole, stats = abstract_variables(model, mesh)
  if hf_folder(where) is not None:
    if stats is None:
      params, step = read_params(where, whole, step, check)
      return params, None, step
    both, step = read_params(where, whole | {STATS: stats}, step, check)
    return both, Fixed(None, both.pop(STATS)), step
  frozen = config.get("frozen") or {}
  trained, still = tree.split(whole, frozen)
  name = WEIGHTS[weights]
  wanted = {name: trained} | ({} if stats is None else {"stats": stats})
  averaged = stats is not None and name == "average"
  if averaged:
    wanted["average_stats"] = stats
  workdir = files.expanded(where)
  saved = history.checkpoints_in(workdir, identity_in(workdir))
  found, content = saved.restore_parts(wanted, step, check)
  params = found[name]
  if frozen:
    values = read_frozen_of(content, config, model, mesh, still)
    params = tree.joined(params, values)
  step = int(content["step"])
  if averaged and "average_stats" not in found:
    note_older_average(f"{where}, step {step}")
  if name == WEIGHTS["average"]:
    note_young_average(f"{where}, step {step}", config, step)
  own = found.get("average_stats", found.get("stats"))
  return params, None if own is None else Fixed(None, own), step


def note_young_average(what: str, config: Config, step: int) -> None:
  """Tells that an average reaches back to before the first step."""
  keep = config["optim"]["average"]
  if not averaged_enough(keep, step):
    logging.warning(
      "%s: optim.average=%g reaches back about %d steps, so that its average "
      "is mostly of the parameters of the start; --weights=raw are the last",
      what, keep, round(1 / (1 - keep)),
    )  # fmt: skip


def averaged_enough(keep: float, step: int) -> bool:
  """Whether so many steps are as many as an average reaches back."""
  return round(step * (1 - keep), 6) >= 1


def note_older_average(what: str) -> None:
  """Tells that a checkpoint has an average without stats of its own."""
  logging.warning(
    "%s is from before an average of the parameters had stats of its own: it "
    "is read with those of the last parameters, such as batch norm's running "
    "moments, and may be the worse for it", what,
  )  # fmt: skip


def read_frozen(
  config: Config,
  model: nn.Module,
  mesh,
  abstract,
  steps: Mapping[str, int] = MappingProxyType({}),
) -> tree.Tree:
  """The parameters of the frozen parts, from where the config has them.

  Those of None are of the start: of init_from, or fresh ones of the seed.
  steps: of the runs that are read, {absolute work directory: step}; of others
  the last.
  """
  return read_frozen_parts(config, model, mesh, abstract, None, steps)[0]


def read_frozen_parts(
  config: Config,
  model: nn.Module,
  mesh,
  abstract,
  stats,
  steps: Mapping[str, int] = MappingProxyType({}),
  say: Callable[[str], None] = lambda text: None,
) -> tuple[tree.Tree, tree.Tree, dict[str, int]]:
  """`read_frozen`, the stats of those parts that are read from a place, and
  {work directory: step} of what was read.

  stats: abstract, of the whole run, or None where they are not wanted. What is
  read of a run is of one step of it: it may save another at any moment, or have
  a last one that is damaged in a part. say: is told that step.
  """
  found: tree.Tree = {}
  moved: tree.Tree = {}
  read: dict[str, int] = {}
  for part, where in config["frozen"].items():
    own, wanted = below(abstract, part), where or config["init_from"]
    step = steps.get(place_of(wanted)) if wanted else None
    if where:
      check_frozen_there(part, where)
      has = stats is not None and _has(stats, part)
      values, beside, step = _read_part(
        where, own, below(stats, part) if has else None, step
      )
      if has:
        moved = tree.joined(moved, nested(part, beside))
      if hf_folder(where) is None:
        say(f"frozen {part} from {where}, step {step}")
        read[place_of(where)] = step
    elif wanted:
      whole, step = read_params(wanted, abstract_params(model, mesh), step)
      values = below(whole, part)
      if hf_folder(wanted) is None:
        read[place_of(wanted)] = step
    else:
      values = below(fresh_params(config, model, mesh), part)
    found = tree.joined(found, nested(part, values))
  return found, moved, read


def _read_part(where: str, params, stats, step: int | None):
  """(parameters, stats or None, step) of a run or "hf:FOLDER", of one step."""
  if stats is None:
    values, step = read_params(where, params, step)
    return values, None, step
  if hf_folder(where) is not None:
    both, step = read_params(where, params | {STATS: stats})
    return both, both.pop(STATS), step
  saved, check = _saved_in(where)
  found, content = saved.restore_parts(
    {"params": params, "stats": stats}, step, check
  )
  return found["params"], found["stats"], int(content["step"])


def read_frozen_of(
  content: Mapping, config: Config, model: nn.Module, mesh, abstract
) -> tree.Tree:
  """`read_frozen`, as it was when a checkpoint was trained beside it.

  See `frozen_of`.
  """
  return frozen_of(content, config, model, mesh, abstract)[0]


def frozen_of(
  content: Mapping, config: Config, model: nn.Module, mesh, abstract
) -> tuple[tree.Tree, dict[str, int]]:
  """(the frozen parts of a checkpoint, {work directory: step} of them).

  content: the manifest of the checkpoint. A run that was read from may have
  gone on since then: the steps are those of the manifest, or of one from before
  there were any in it the one that is meant is looked for; {} is the last one
  of each. Raises BadConfig where there is none.
  """
  known = steps_there(content, config)
  for steps in (known, {}) if known else ({},):
    found = read_frozen(config, model, mesh, abstract, steps)
    if _beside(content, found):
      return found, dict(steps)
  origins = {x or config["init_from"] for x in config["frozen"].values()}
  tried = []
  for where in sorted(x for x in origins if x and hf_folder(x) is None):
    workdir = files.expanded(where)
    saved = history.checkpoints_in(workdir, identity_in(workdir))
    for step in reversed(saved.steps()):
      tried.append(f"{where} step {step}")
      try:
        found = read_frozen(
          config, model, mesh, abstract, {place_of(where): step}
        )
      except (BadConfig, StorageFailure):
        continue  # of another model, or damaged: not the one that is meant
      if _beside(content, found):
        logging.warning(
          "%s has gone on since step %d was trained beside its step %d, which "
          "is read", where, content["step"], step,
        )  # fmt: skip
        return found, {place_of(where): step}
  looked = f" (looked at: {', '.join(tried)})" if tried else ""
  raise BadConfig(
    f"the frozen parts are not those that step {content['step']} was trained "
    f"beside{looked}: put back what `frozen` and `init_from` of the config "
    "name as it was, or name a copy of that with --config.frozen.PART=DIR"
  )


def steps_there(content: Mapping, config: Config) -> dict[str, int]:
  """{work directory: step} of what a run was begun from, as far as it is there.

  content: the manifest of a checkpoint of that run. Nothing is opened but what
  the config names.
  """
  told, found = content["meta"].get("origins", {}), {}
  words = {config["init_from"], *config["frozen"].values()}
  for where in {place_of(word) for word in words if word} & told.keys():
    workdir = files.expanded(where)
    if not (workdir / "run.json").is_file():
      continue
    saved = history.checkpoints_in(workdir, identity_in(workdir))
    if told[where] in saved.steps():
      found[where] = told[where]
  return found


def place_of(where: str) -> str:
  """A work directory, however a config has it: a repeated run's is absolute."""
  return str(files.expanded(where).absolute())


def _beside(content: Mapping, frozen: tree.Tree) -> bool:
  """Whether these are the frozen parts that a checkpoint was trained beside."""
  saved = content["meta"].get("frozen_digest")
  return saved is None or frozen_digest(frozen) == saved


def with_stats(stats, moved: tree.Tree) -> tree.Tree:
  """The stats of a run that begins, with those of what its parts are read from.

  moved: as `read_frozen_parts` has them. Those of frozen parts that the config
  reads from nowhere stay.
  """
  if not moved:
    return stats
  return tree.joined(tree.split(stats, tree.names(moved))[0], moved)


def _has(whole: tree.Tree, part: str) -> bool:
  return any(name.startswith(f"{part}/") for name in tree.names(whole))


def read_trained(where: str, r: Run, step: int | None = None):
  """(parameters a run trains, stats or None, step) of a run or a folder.

  step: None is the last one.
  """
  origin, check = {}, None
  if hf_folder(where) is None:
    origin = config_in(where)
    tokenizer = tokenizer_in(where, missing=True)
    check = functools.partial(check_saved, where, origin, tokenizer)
  params, fixed, step = read_variables(
    where, origin, r.model, r.mesh, step, check, "raw"
  )
  trained, _ = tree.split(params, r.config["frozen"])
  return trained, None if fixed is None else fixed.stats, step


def frozen_digest(frozen) -> list[int]:
  """The digest of the frozen parts, as a checkpoint's meta holds it."""
  return [int(word) for word in jax.jit(tree.digest)(frozen)]


def check_step(step: int | None, folder: str | None) -> None:
  """Raises BadConfig for a step that no checkpoint can have."""
  if step is None:
    return
  if folder is not None:
    raise BadConfig(
      f"step={step}: hf:{folder} holds one model, not steps; leave it out"
    )
  if isinstance(step, bool) or not isinstance(step, int) or step < 0:
    raise BadConfig(
      f"step={step!r}: expected 0 or more, the number of a checkpoint; the "
      "newest where it is left out"
    )


def read_params(where: str, abstract, step: int | None = None, check=None):
  """(parameters, their step) from a work directory or "hf:FOLDER".

  check: is given the manifest of the checkpoint before its arrays are read; by
  default it must be of the model and tokenizer of its work directory.
  """
  folder = hf_folder(where)
  if folder is not None:
    laid = jax.tree.map(lambda x: x.sharding, abstract)
    return hf.read_params(folder, abstract, laid), 0
  saved, own = _saved_in(where, check)
  params, content = saved.restore_params(abstract, step, own)
  return params, int(content["step"])


def _saved_in(where: str, check: Callable | None = None):
  """(the checkpoints of a work directory, the check of what is read of them).

  check: another one than `check_saved`.
  """
  workdir = files.expanded(where)
  if check is None:
    tokenizer = tokenizer_in(where, missing=True)
    check = functools.partial(check_saved, where, config_in(where), tokenizer)
  return history.checkpoints_in(workdir, identity_in(workdir)), check


def heldout_prints(where: str, step: int) -> dict[str, list[str]]:
  """{name: fingerprints} of the held-out sets that a run was measured on.

  As its checkpoints noted them: that of `step` first, then the later first.
  """
  workdir = files.expanded(where)
  saved = history.checkpoints_in(workdir, identity_in(workdir))
  found: dict[str, list[str]] = {}
  for s in sorted(saved.steps(), key=lambda s: (s != step, -s)):
    meta = (saved.manifest(s) or {"meta": {}})["meta"]
    prints = meta.get("heldout_fingerprints")
    for key, value in (prints if isinstance(prints, Mapping) else {}).items():
      known = found.setdefault(key.removeprefix("evaluate."), [])
      if isinstance(value, str) and value not in known:
        known.append(value)
  return found
