"""A model and its parameters, from a work directory or hf:FOLDER."""

import dataclasses
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from absl import logging
from flax import linen as nn

from aigc_jax import data, files, hf, sharding, tree
from aigc_jax.data import special
from aigc_jax.data.listing import check_local
from aigc_jax.errors import BadConfig, BadData, StorageFailure
from aigc_jax.evaluators.features import Features, check_features
from aigc_jax.evaluators.spoken import Recogniser
from aigc_jax.layers.report import STATS
from aigc_jax.run import compute, spelling
from aigc_jax.run.alike import differences, differing
from aigc_jax.run.build import (
  Run,
  abstract_params,
  abstract_variables,
  fresh_params,
  model_of,
)
from aigc_jax.run.drawing import (
  PIXELS,
  check_own,
  note_pixels,
  pixels_in,
  sampler_of,
  told_rows,
)
from aigc_jax.run.parts import below, nested
from aigc_jax.run.settings import (
  WEIGHTS,
  Config,
  check_weights,
  config_file,
  config_in,
  most_positions,
  provenance_in,
  usable_config_in,
  written_fingerprint,
)
from aigc_jax.run.speaking import synthesiser_of
from aigc_jax.sampling.beam import Beams, BeamSearch
from aigc_jax.sampling.decode import Engine
from aigc_jax.sampling.decodes import check_decodes
from aigc_jax.sampling.images import (
  Batches,
  check_draws,
  check_reconstructs,
  pixels_of,
)
from aigc_jax.sampling.logits import Sampling
from aigc_jax.sampling.speech import Line, Synthesiser, check_speaks, line_of
from aigc_jax.sampling.transcripts import Aligns, Greedy, check_transcribes
from aigc_jax.trainer import changes, history, identity
from aigc_jax.trainer.changes import Change
from aigc_jax.trainer.identity import Identity
from aigc_jax.trainer.state import Fixed, State

HEARD = 200  # tokens of what is heard, where nothing says how many
# The data kinds that have a tokenizer.
TEXTS = ("text", "pairs", "sound", "captions")


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
  fixed: Fixed | None = None  # what the model reads besides parameters

  @property
  def length(self) -> int:
    """How many tokens the model was made to read at once; 0 if it is unsaid."""
    made = self.config["model"].get("position_length") or 0
    if made or "data" not in self.config:
      return made
    return self.config["data"].get("length", 0)

  def engine(self, sampling: Sampling, *, seed: int, group: int) -> Engine:
    """Decoding with this model; see sampling/decode.py."""
    check_decodes(self.model, "writing text")
    return Engine(
      self.model, self.params, sampling=sampling, group=group, seed=seed,
      **decoding_of(self.config, self.tokenizer),
    )  # fmt: skip

  def search(self, beams: Beams) -> BeamSearch:
    """Beam search with this model; see sampling/beam.py."""
    check_decodes(self.model, "beam search")
    return BeamSearch(
      self.model, self.params, beams=beams,
      **decoding_of(self.config, self.tokenizer),
    )  # fmt: skip

  def hearing(self, beams: Beams | None = None) -> Greedy | Engine | BeamSearch:
    """What makes text of sound; see sampling/transcripts.py.

    beams: of a model that writes; None takes the likeliest.
    """
    check_transcribes(self.model, "transcribing")
    if isinstance(self.model, Aligns):
      if beams is not None:
        raise BadConfig(
          "beams are of a model that writes; this one says the likeliest of "
          "each step: leave them out"
        )
      return Greedy(self.model, self.params)
    if beams is not None:
      return self.search(beams)
    return self.engine(Sampling(temperature=0.0), seed=0, group=32)

  def sampler(
    self, *, sampler: str, steps: int, guidance: float, seed: int
  ) -> Batches:
    """Drawing images with this model; see sampling/images.py."""
    check_draws(self.model, "drawing")
    check_own(self.config)
    return sampler_of(
      self.config, self.model, self.variables, sampler=sampler, steps=steps,
      guidance=guidance, seed=seed,
    )  # fmt: skip

  def told_rows(
    self, rows: int, *, labels: Sequence[str], prompts: Sequence[str]
  ) -> np.ndarray:
    """What the rows of a grid are drawn of; see run/drawing.py."""
    check_own(self.config)
    return told_rows(
      self.config, self.model, self.tokenizer, rows=rows, labels=labels,
      prompts=prompts,
    )  # fmt: skip

  def synthesiser(
    self, *, sampler: str, steps: int, guidance: float, seed: int
  ) -> Synthesiser:
    """Speaking with this model; see sampling/speech.py."""
    check_speaks(self.model, "speaking")
    return synthesiser_of(
      self.config, self.model, self.variables, sampler=sampler, steps=steps,
      guidance=guidance, seed=seed,
    )  # fmt: skip

  def line(self, text: str, speaker: int) -> Line:
    """A text as this model is to say it. Raises BadData."""
    return line_of(
      self.tokenizer, text, speaker, self.config["data"]["target_length"]
    )

  def recogniser(self) -> Recogniser:
    """This model as one that judges speech; see evaluators/spoken.py."""
    most = trained_length(self.config)
    words = np.asarray(jax.jit(tree.digest)(self.variables)).tolist()
    made = files.sha256_json(
      ["recogniser 1", words, self.tokenizer.fingerprint]
    )
    return Recogniser(self.hearing(), self.tokenizer, most or HEARD, made)

  def features(self) -> Features:
    """Of images, by this model of their labels; see evaluators/features.py."""
    check_features(self.model, self.name)
    if "data" in self.config:
      check_own(self.config)
      pixels = {key: self.config["data"].get(key) for key in ("mean", "std")}
    else:
      pixels = pixels_in(hf_folder(self.name))
    return Features(self.model, self.variables, name=self.name, **pixels)

  def reconstructed(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images in the units of the data, as uint8, and what is made of them."""
    check_reconstructs(self.model, "--reconstruct")
    check_own(self.config)
    scale = {key: self.config["data"][key] for key in ("mean", "std")}
    make = jax.jit(functools.partial(self.model.apply, method="reconstruct"))
    made = np.asarray(make(self.variables, images))
    return pixels_of(images, **scale), pixels_of(made, **scale)

  @property
  def variables(self) -> dict[str, tree.Tree]:
    """All that the model reads, by collection."""
    found = {"params": self.params}
    if self.fixed is not None and self.fixed.stats is not None:
      found[STATS] = self.fixed.stats
    return found


def trained_length(config: Config) -> int:
  """How many tokens a run was trained to write; 0 where there is none."""
  data = config.get("data", {})
  return data.get("target_length", data.get("length", 0))


def decoding_of(config: Config, tokenizer) -> dict:
  """What decoding has to know beside a model and its parameters."""
  model = compute.keywords(config)
  start = model.get("start_token")
  return dict(
    stop_ids=special.stops(tokenizer),
    positions=most_positions(model),
    unrolled=not model["unroll"],
    start=tokenizer.eot if start is None else start,
  )


def hf_folder(where: str) -> str | None:
  """The folder of "hf:FOLDER", or None for anything else."""
  if not where.startswith("hf:"):
    return None
  if not where.removeprefix("hf:").strip():
    raise BadConfig("hf: names no folder: expected hf:FOLDER")
  return where.removeprefix("hf:")


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
  **how,
) -> Loaded:
  """The run in a work directory, or the model in "hf:FOLDER".

  weights: "raw", or "average" where a run keeps one. part: of a model of
  several roles, that one alone. how: keys of config.compute, such as unroll,
  for where the model takes them. Raises BadConfig where there is none,
  StorageFailure where no checkpoint is valid.
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
    config = usable_config_in(where)
    check_weights("weights", weights, config)
    tokenizer = tokenizer_in(where, missing=not reads_text(config))
    check = functools.partial(check_saved, where, config, tokenizer)
  config = compute.changed(config, **how)
  mesh = sharding.make_mesh(**everywhere(config)["mesh"])
  model = model_of(config)
  with jax.set_mesh(mesh):
    params, fixed, step = read_variables(
      where, config, model, mesh, step, check, weights
    )
  found = Loaded(model, params, tokenizer, config, mesh, step, where, fixed)
  return part_of(found, part) if part else found


def part_of(whole: Loaded, part: str) -> Loaded:
  """One role of a model of several, as a model. Raises BadConfig."""
  parts = whole.config["model"].get("parts", {})
  if part not in parts:
    known = f"it has {', '.join(parts)}" if parts else "it has no parts"
    raise BadConfig(f"part={part}: the model in {whole.name}: {known}")
  config = whole.config | {"model": parts[part]}
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
  workdir = files.expanded(where)
  saved = history.checkpoints_in(workdir, identity_in(workdir))
  found, content = saved.restore_parts(wanted, step, check)
  params = found[name]
  if frozen:
    values = read_frozen_of(content, config, model, mesh, still)
    params = tree.joined(params, values)
  fixed = None if stats is None else Fixed(None, found["stats"])
  return params, fixed, int(content["step"])


def read_frozen(
  config: Config,
  model: nn.Module,
  mesh,
  abstract,
  steps: Mapping[str, int] = MappingProxyType({}),
) -> tree.Tree:
  """The parameters of the frozen parts, from where the config has them.

  Those of None are of the start: of init_from, or fresh ones of the seed.
  steps: of the runs that are read, {work directory: step}; of others the last.
  """
  found: tree.Tree = {}
  for part, where in config["frozen"].items():
    own, wanted = below(abstract, part), where or config["init_from"]
    step = steps.get(wanted)
    if where:
      values, _ = read_params(where, own, step)
    elif wanted:
      whole, _ = read_params(wanted, abstract_params(model, mesh), step)
      values = below(whole, part)
    else:
      values = below(fresh_params(config, model, mesh), part)
    found = tree.joined(found, nested(part, values))
  return found


def read_frozen_of(
  content: Mapping, config: Config, model: nn.Module, mesh, abstract
) -> tree.Tree:
  """`read_frozen`, as it was when a checkpoint was trained beside it.

  content: the manifest of the checkpoint. A run that was read from may have
  gone on since then: the step of it is looked for that is meant. Raises
  BadConfig where there is none.
  """
  found = read_frozen(config, model, mesh, abstract)
  if _beside(content, found):
    return found
  origins = {x or config["init_from"] for x in config["frozen"].values()}
  tried = []
  for where in sorted(x for x in origins if x and hf_folder(x) is None):
    workdir = files.expanded(where)
    saved = history.checkpoints_in(workdir, identity_in(workdir))
    for step in reversed(saved.steps()):
      tried.append(f"{where} step {step}")
      try:
        found = read_frozen(config, model, mesh, abstract, {where: step})
      except (BadConfig, StorageFailure):
        continue  # of another model, or damaged: not the one that is meant
      if _beside(content, found):
        logging.warning(
          "%s has gone on since step %d was trained beside its step %d, which "
          "is read", where, content["step"], step,
        )  # fmt: skip
        return found
  looked = f" (looked at: {', '.join(tried)})" if tried else ""
  raise BadConfig(
    f"the frozen parts are not those that step {content['step']} was trained "
    f"beside{looked}: put back what `frozen` and `init_from` of the config "
    "name as it was, or name a copy of that with --config.frozen.PART=DIR"
  )


def _beside(content: Mapping, frozen: tree.Tree) -> bool:
  """Whether these are the frozen parts that a checkpoint was trained beside."""
  saved = content["meta"].get("frozen_digest")
  return saved is None or frozen_digest(frozen) == list(saved)


def with_frozen_stats(config: Config, stats, abstract: State) -> tree.Tree:
  """The stats of a run that begins, with those of what its parts are read from.

  Those of frozen parts that the config reads from nowhere stay.
  """
  for part, where in config["frozen"].items():
    if not where or not _has(abstract.stats, part):
      continue
    values = _read_stats(
      where, below(abstract.frozen, part), below(abstract.stats, part)
    )
    apart, _ = tree.split(stats, [part])
    stats = tree.joined(apart, nested(part, values))
  return stats


def _has(whole: tree.Tree, part: str) -> bool:
  return any(name.startswith(f"{part}/") for name in tree.names(whole))


def _read_stats(where: str, params, stats) -> tree.Tree:
  """The stats of a model in a work directory or "hf:FOLDER"."""
  if hf_folder(where) is not None:
    return read_params(where, params | {STATS: stats})[0][STATS]
  workdir = files.expanded(where)
  saved = history.checkpoints_in(workdir, identity_in(workdir))
  return saved.restore_parts({"stats": stats})[0]["stats"]


def read_trained(where: str, r: Run):
  """(parameters a run trains, stats or None, step) of a run or a folder."""
  origin, check = {}, None
  if hf_folder(where) is None:
    origin = config_in(where)
    tokenizer = tokenizer_in(where, missing=True)
    check = functools.partial(check_saved, where, origin, tokenizer)
  params, fixed, step = read_variables(
    where, origin, r.model, r.mesh, None, check, "raw"
  )
  trained, _ = tree.split(params, r.config["frozen"])
  return trained, None if fixed is None else fixed.stats, step


def frozen_digest(frozen) -> list[int]:
  """The digest of the frozen parts, as a checkpoint's meta holds it."""
  return [int(word) for word in jax.jit(tree.digest)(frozen)]


def tokenizer_in(where: str | Path, missing: bool = False):
  """The tokenizer of the run in a work directory.

  Nothing outside that directory is read. missing: None where there is none.
  Raises BadData.
  """
  folder = files.expanded(where) / "tokenizer"
  if missing and not os.path.lexists(folder):
    return None
  if folder.is_symlink():
    raise BadData(
      f"{folder} is a link to {os.path.realpath(folder)}: only what lies in "
      "the work directory itself is read; put a copy in its place (cp -rL)"
    )
  return data.load(folder)


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


def check_origin(
  config: Config, tokenizer=None, allowed: Iterable[str] = ()
) -> list[Change]:
  """Refuses to train on with another model than that of init_from.

  Shapes do not tell a rotary base, an epsilon or a window: the weights would
  be read, and mean something else. tokenizer: of the run, where it is known.
  allowed: keys that are changed on purpose, as --allow_change names them; a
  key that the shapes follow cannot be. Returns what is changed so, to be
  journalled. Raises BadConfig with what to set instead.
  """
  where = config["init_from"]
  if not where:
    return []
  theirs, words = _model_of(where)
  changed = _changed_on_purpose(where, config["model"], theirs, set(allowed))
  if tokenizer is None or words is None:
    return changed
  if data.load_tokenizer(words).fingerprint != tokenizer.fingerprint:
    raise BadConfig(
      f"init_from={where} has a tokenizer of its own, and data.tokenizer="
      f"{config['data']['tokenizer']!r} is another: set "
      f"--config.data.tokenizer={words}"
    )
  return changed


def note_origin(config: Config) -> None:
  """Tells what of the data is other than that of init_from, if anything."""
  where = config["init_from"]
  if not where or "mean" not in config["data"]:
    return
  folder, pixels = hf_folder(where), None
  if folder is None:
    pixels = config_in(where).get("data")
  elif (files.expanded(folder) / PIXELS).is_file():
    pixels = pixels_in(folder)
  note_pixels(where, pixels, config)


def _model_of(where: str) -> tuple[Mapping, str | None]:
  """(config.model, the tokenizer's place or None) of a run or a folder."""
  folder = hf_folder(where)
  if folder is not None:
    imported = hf.load(folder)
    found = spelling.modern_model(
      {"kind": imported.family.kind} | imported.kwargs
    )
    return found["model"], imported.tokenizer
  words = None  # of images, say
  if tokenizer_in(where, missing=True) is not None:
    words = str(files.expanded(where) / "tokenizer")
  return usable_config_in(where)["model"], words


def check_frozen_origins(config: Config) -> None:
  """Refuses frozen parts that are read from another model than they are.

  Raises BadConfig with what to set instead, BadData for a folder that is none.
  """
  parts = config["model"].get("parts", {})
  for part, where in config["frozen"].items():
    if not where:
      continue
    theirs, _ = _model_of(where)
    if part not in parts:
      continue  # a piece of one: its shapes are all that is compared
    lines = differences(parts[part], theirs, f"model.parts.{part}")
    if lines:
      raise BadConfig(
        f"frozen.{part}={where} is another model than model.parts.{part}:\n  "
        + "\n  ".join(lines)
      )


def _changed_on_purpose(
  where: str, model: Mapping, theirs: Mapping, allowed: set[str]
) -> list[Change]:
  """The allowed differences of two models; BadConfig where there are others."""
  found = [
    Change(f"model.{key}", value, model.get(key))
    for key, value in differing(model, theirs).items()
  ]
  never = [change.key for change in found if changes.fits_never(change.key)]
  if not never and all(change.key in allowed for change in found):
    return found
  ways = [change.key for change in found if change.key not in never]
  lines = differences(model, theirs)
  raise BadConfig(
    f"init_from={where} is another model than the configured one:\n  "
    + "\n  ".join(lines)
    + (f"\nor, on purpose, --allow_change={','.join(ways)}" if ways else "")
    + (
      f"\n{', '.join(never)} cannot be changed, the parameters would not fit"
      if never
      else ""
    )
  )


def saved_model(content: Mapping) -> dict | None:
  """config.model of when a checkpoint was saved; None where it has none."""
  saved = content["meta"].get("model")
  if not isinstance(saved, Mapping):
    return None
  return spelling.modern_model(saved)["model"]


def check_saved(
  where: str, config: Config, tokenizer, content: Mapping
) -> None:
  """Refuses parameters that were trained as another model than config.json's.

  content: the manifest of their checkpoint, which holds the model and the
  fingerprint of the tokenizer that they were trained with. tokenizer: that of
  the work directory, or None where there is none. Raises BadConfig.
  """
  step, meta = content["step"], content["meta"]
  saved = saved_model(content)
  if saved is not None:
    model = config["model"]
    lines = [
      f"model.{key}={model.get(key)!r}, there it is {value!r}"
      for key, value in differing(model, saved).items()
    ]
    if lines:
      raise BadConfig(
        f"{where}/config.json is not of the model that step {step} was saved "
        "of:\n  "
        + "\n  ".join(lines)
        + "\nPut back the config.json of that run (a config.before-STEP.json "
        "beside it is from before a change)"
      )
    note_edited(where, content)
  elif meta.get("config_sha256") not in (None, written_fingerprint(where)):
    logging.warning(
      "step %d is from before checkpoints held their model, and "
      "%s/config.json is not as it was then: it is taken as it is", step, where
    )  # fmt: skip
  words = meta.get("tokenizer_fingerprint")
  if tokenizer is None or words in (None, tokenizer.fingerprint):
    return
  raise BadConfig(
    f"{where}/tokenizer is not the tokenizer that step {step} was trained with "
    f"({tokenizer.fingerprint[:12]}, there it was {words[:12]}): put back that "
    "of this run"
  )


def note_edited(where: str | Path, content: Mapping) -> None:
  """Tells where no config of a work directory is that of a checkpoint.

  content: its manifest. Of the model that would be refused; the rest says how
  a run goes on, or how its pixels were scaled.
  """
  sha256 = content["meta"].get("config_sha256")
  if sha256 is not None and config_file(where, sha256) is None:
    logging.warning(
      "%s/config.json is not the one that step %d was saved with: it was "
      "edited, and is taken as it is now", where, content["step"],
    )  # fmt: skip


def check_resumed(
  model: Mapping, allowed: Iterable[str], content: Mapping
) -> None:
  """Refuses to train a checkpoint on as another model than it was saved of.

  model: config.model. allowed: keys that may change. Raises BadConfig.
  """
  saved = saved_model(content)
  if saved is None:
    return
  keys = [f"model.{key}" for key in differing(model, saved)]
  if set(keys) <= set(allowed):
    return
  lines, flag = differences(model, saved), f"--allow_change={','.join(keys)}"
  raise BadConfig(
    f"the checkpoint of step {content['step']} is of another model than the "
    "config:\n  " + "\n  ".join(lines) + f"\nor, to change it now, {flag}"
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
  workdir = files.expanded(where)
  if check is None:
    tokenizer = tokenizer_in(where, missing=True)
    check = functools.partial(check_saved, where, config_in(where), tokenizer)
  saved = history.checkpoints_in(workdir, identity_in(workdir))
  params, content = saved.restore_params(abstract, step, check)
  return params, int(content["step"])


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


def identity_in(workdir: Path) -> Identity | None:
  """Which run a work directory holds; None where it has no run.json."""
  if not (workdir / "run.json").is_file():
    return None
  return identity.of(provenance_in(workdir))
