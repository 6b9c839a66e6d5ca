"""The evaluators a config names, made for its run."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from aigc_jax.errors import BadConfig
from aigc_jax.evaluators.loss import Loss
from aigc_jax.evaluators.samples import Samples
from aigc_jax.run.build import Run, model_of
from aigc_jax.run.inputs import open_eval
from aigc_jax.run.settings import call, expect, kind_of


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
  """Loss, perplexity and bits per byte of a held-out set.

  data: {"split": ...}, of the training sources; with "sources", of those.
  """
  wanted = ("split", "sources") if "sources" in data else ("split",)
  expect(f"evaluate.{place.name}.data", data, wanted)
  r = place.run
  found = open_eval(
    r.config,
    batches=batches,
    tokenizer=place.tokenizer,
    say=place.say,
    **data,
  )
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
