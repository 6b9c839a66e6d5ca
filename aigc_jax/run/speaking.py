"""What a run says of the speech that its model makes."""

from flax import linen as nn

from aigc_jax.data import EvalSet
from aigc_jax.data.sound import Sound
from aigc_jax.errors import BadConfig
from aigc_jax.evaluators.spoken import Said
from aigc_jax.layers.mel import HOP
from aigc_jax.run.settings import Config, data_of
from aigc_jax.sampling.speech import Line, Synthesiser


def synthesiser_of(
  config: Config,
  model: nn.Module,
  variables,
  *,
  sampler: str,
  steps: int,
  guidance: float,
  seed: int,
) -> Synthesiser:
  """What speaks with a model of a run, as long as its data's rows."""
  data = data_of(config)
  return Synthesiser(
    model, variables, frames=-(data.samples // -HOP),
    tokens=data.target_length, sampler=sampler, steps=steps,
    guidance=guidance, seed=seed,
  )  # fmt: skip


def said_of(held: EvalSet, config: Config, most: int | None) -> list[Said]:
  """The utterances of a held-out set, `most` of them, evenly from all."""
  if not isinstance(data_of(config), Sound):
    raise BadConfig(
      "what is spoken anew has been recorded: the data is not of sound "
      f"(data.kind={config['data']['kind']!r})"
    )
  places = [(view, i) for view in held.views for i in range(len(view))]
  places = places[: len(held)]
  count = min(len(places), most or len(places))
  anyone = config["model"].get("speakers", 0)
  found = []
  for n in range(count):
    view, i = places[n * len(places) // count]
    clip, text = view.utterance(i)
    speaker = view.speaker(i)
    speaker = anyone if speaker is None else speaker
    ids = view.ids[view.numbers[i]].tolist()
    found.append(Said(clip, text, Line(ids, speaker)))
  return found
