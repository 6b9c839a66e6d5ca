"""The evaluators a config names, made for its run."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aigc_jax.errors import BadConfig, choose
from aigc_jax.evaluators import samples
from aigc_jax.evaluators.drawn import Comparison, Grid, Scores
from aigc_jax.evaluators.loss import RAW, Loss
from aigc_jax.evaluators.samples import Samples
from aigc_jax.evaluators.spoken import Spoken, SpokenScores
from aigc_jax.run import compute, embedded
from aigc_jax.run.build import Run, model_of
from aigc_jax.run.drawing import check_told, sampler_of, told_rows
from aigc_jax.run.inputs import check_heldout_paths, open_eval
from aigc_jax.run.load import load
from aigc_jax.run.settings import (
  Config,
  check_weights,
  data_of,
  most_positions,
)
from aigc_jax.run.speaking import said_of, synthesiser_of
from aigc_jax.sampling.decodes import check_decodes
from aigc_jax.sampling.images import SAMPLERS, check_draws
from aigc_jax.sampling.speech import check_speaks
from aigc_jax.signature import (
  call,
  check_call,
  expect,
  keys_of,
  kind_of,
)

WHOLE = {"split": "validation"}
LATER = ("weights", "prompts")  # keys that entries of before lack


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
  section, make, rest = _parts(place.name, entry)
  return entry["every_steps"], call(make, section, rest, place=place)


def evaluations(config: Config) -> dict[str, Mapping]:
  """The entries of config.evaluate but those that are `left_out`."""
  out = left_out(config)
  return {k: entry for k, entry in config["evaluate"].items() if k not in out}


def left_out(config: Config) -> dict[str, str]:
  """{name: why} of the entries of config.evaluate that nothing is told by.

  A preset has entries for the data that it has: with data.validation=0 one of
  a split that is not there, with captions of one's own one of a package.
  """
  nothing, found = data_of(config).holds_nothing_out, {}
  for name, entry in config["evaluate"].items():
    if entry["kind"] == "loss":
      if nothing and entry["data"] == {"split": "validation"}:
        found[name] = (
          "data.validation=0 holds nothing out "
          "(--config.data.validation_path=FILE measures text of your own)"
        )
    elif why := embedded.not_of_data(name, entry, config):
      found[name] = why
  return found


def check_evaluators(config: Config, *, prepared: bool = False) -> None:
  """Raises BadConfig for an entry that no evaluator could be made of.

  BadData where its files are not there; of what a run has `prepared` none are
  needed any more.
  """
  for name, entry in config["evaluate"].items():
    section, make, rest = _parts(name, entry)
    check_call(make, section, rest, "place")
    # The defaults are for another kind on the command line alone.
    wanted = [key for key in keys_of(make) if key not in ("place", *LATER)]
    expect(section, rest, wanted, among=(*wanted, *LATER), called=make)
    if entry["kind"] in embedded.KINDS:
      embedded.check(name, entry, config, model_of(config))
    if make is _loss:
      _check_batches(name, rest["batches"])
      check_weights(f"{section}.weights", rest.get("weights", RAW), config)
      data_of(config).check_heldout(f"{section}.data", rest["data"])
    elif make is _samples:
      _check_samples(section, rest, config)
    elif make in (_images, _image_scores):
      check_draws(model_of(config), section)
      _check_drawn(name, rest, config)
    elif make is _spoken:
      check_speaks(model_of(config), section)
      _check_drawn(name, rest, config)
  if not prepared:
    check_heldout_paths(config)


def _parts(name: str, entry: Mapping) -> tuple[str, Callable, dict]:
  """(section, function, its keys) of an entry."""
  section = f"evaluate.{name}"
  rest = {k: v for k, v in entry.items() if k != "every_steps"}
  return (section, *kind_of(section, rest, EVALUATORS))


def _check_batches(name: str, batches: int | None) -> None:
  if batches is not None and batches < 1:
    raise BadConfig(
      f"evaluate.{name}.batches={batches}: expected how many, or None for the "
      "whole set"
    )


def _loss(
  *,
  data: Mapping = WHOLE,
  batches: int | None = None,
  weights: str = RAW,
  place: Place,
) -> Loss:
  """Every metric of the objective, over a held-out set.

  data: {"split": ...}, of the training sources; with "sources", of those.
  weights: which parameters, see WEIGHTS.
  """
  check_weights(f"evaluate.{place.name}.weights", weights, place.run.config)
  r = place.run
  found = open_eval(
    r.config,
    batches=batches,
    tokenizer=place.tokenizer,
    say=place.say,
    **data,
  )
  return Loss(
    r.score, found, r.mesh, name=place.name, poll=place.poll, weights=weights
  )


def _samples(
  *,
  prompts: list[str] = ("",),
  max_tokens: int = 64,
  temperature: float = 0.8,
  top_p: float = 1.0,
  num_samples: int = 1,
  place: Place,
) -> Samples:
  """Texts the model writes, below DIR/samples."""
  config = place.run.config
  check_decodes(place.run.model, f"evaluate.{place.name}")
  start = config["model"].get("start_token")
  return Samples(
    # Unrolled, a token costs no loop; parameters are the same either way.
    model_of(compute.changed(config, unroll=None)),
    place.tokenizer,
    place.run.mesh,
    place.workdir / "samples",
    prompts=prompts,
    max_tokens=max_tokens,
    temperature=temperature,
    top_p=top_p,
    num_samples=num_samples,
    seed=config["seed"],
    positions=most_positions(config["model"]),
    unrolled=True,
    start=place.tokenizer.eot if start is None else start,
    poll=place.poll,
  )


def _check_samples(section: str, given: Mapping, config: Config) -> None:
  """Raises BadConfig for texts that could not be written."""
  numbers = {k: given[k] for k in keys_of(samples.checked) if k in given}
  most = most_positions(config["model"])
  try:
    samples.checked(**numbers)
    if 0 < most < given["max_tokens"]:
      raise BadConfig(f"max_tokens: the model has {most} positions")
  except BadConfig as refusal:
    raise BadConfig(f"{section}.{refusal}") from None


def _images(
  *,
  rows: int = 4,
  columns: int = 8,
  labels: Sequence[str] = (),
  prompts: Sequence[str] = (),
  sampler: str = "heun",
  steps: int = 50,
  guidance: float = 1.0,
  weights: str = RAW,
  place: Place,
) -> Grid:
  """Grids of images that the model draws, below DIR/samples.

  labels: of the rows in turn; () is all there are. prompts: the captions of the
  rows in turn, of a model that reads such; () is none.
  """
  r = place.run
  return Grid(
    _sampler(place, sampler, steps, guidance),
    place.run.mesh,
    place.workdir / "samples",
    name=place.name,
    rows=rows,
    columns=columns,
    told=told_rows(
      r.config,
      r.model,
      place.tokenizer,
      rows=rows,
      labels=labels,
      prompts=prompts,
    ),
    average=weights != RAW,
    poll=place.poll,
  )


def _image_scores(
  *,
  features: str,
  data: Mapping = WHOLE,
  images: int | None = None,
  sampler: str = "heun",
  steps: int = 50,
  guidance: float = 1.0,
  weights: str = RAW,
  place: Place,
) -> Scores:
  """FID, KID, precision and recall of drawn images beside held-out ones.

  features: the work directory, or hf:FOLDER, of a network of images with
  labels. images: how many of each at most; None is all that are held out.
  """
  config = place.run.config
  held = open_eval(config, tokenizer=place.tokenizer, say=place.say, **data)
  return Scores(
    _sampler(place, sampler, steps, guidance),
    place.run.mesh,
    Comparison(
      load(features, remat="none").features(), held,
      mean=config["data"]["mean"], std=config["data"]["std"], most=images,
    ),
    name=place.name,
    average=weights != RAW,
    poll=place.poll,
  )  # fmt: skip


def _spoken(
  *,
  recogniser: str,
  data: Mapping = WHOLE,
  utterances: int | None = None,
  sampler: str = "heun",
  steps: int = 50,
  guidance: float = 1.0,
  weights: str = RAW,
  place: Place,
) -> SpokenScores:
  """Word errors in what the model says of held-out texts.

  recogniser: the work directory, or hf:FOLDER, of a model that hears.
  utterances: how many at most; None is all that are held out.
  """
  r = place.run
  held = open_eval(r.config, tokenizer=place.tokenizer, say=place.say, **data)
  said = said_of(held, r.config, utterances)
  judge = load(recogniser, remat="none").recogniser()
  return SpokenScores(
    synthesiser_of(
      r.config, r.model, None, sampler=sampler, steps=steps, guidance=guidance,
      seed=r.config["seed"],
    ),
    r.mesh, Spoken(said, judge, r.model.bins), name=place.name,
    average=weights != RAW, fingerprint=held.fingerprint, poll=place.poll,
  )  # fmt: skip


def _sampler(place: Place, sampler: str, steps: int, guidance: float):
  r = place.run
  return sampler_of(
    r.config, r.model, None, sampler=sampler, steps=steps, guidance=guidance,
    seed=r.config["seed"],
  )  # fmt: skip


def _check_drawn(name: str, given: Mapping, config: Config) -> None:
  """Raises BadConfig for what nothing could be drawn or spoken by."""
  section = f"evaluate.{name}"
  check_weights(f"{section}.weights", given.get("weights", RAW), config)
  choose(given["sampler"], SAMPLERS, f"{section}.sampler")
  counts = {
    key: given[key] for key in ("rows", "columns", "steps") if key in given
  }
  for key in ("images", "utterances"):
    if given.get(key) is not None:
      counts[key] = given[key]
  for key, value in counts.items():
    if value < 1:
      raise BadConfig(f"{section}.{key}={value}: expected 1 or more")
  if "rows" in given:
    check_told(
      model_of(config), given.get("labels", ()), given.get("prompts", ())
    )
  if "data" in given:
    data_of(config).check_heldout(f"{section}.data", given["data"])


EVALUATORS = {
  "loss": _loss,
  "samples": _samples,
  "images": _images,
  "image_scores": _image_scores,
  "spoken": _spoken,
  **embedded.KINDS,
}
