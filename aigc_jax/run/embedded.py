"""Evaluators of models that embed images and texts, of a run's config."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from aigc_jax.data.captions import Captions
from aigc_jax.errors import BadConfig
from aigc_jax.evaluators.embedded import Recall, ZeroShot, check_embeds
from aigc_jax.evaluators.loss import RAW
from aigc_jax.run.inputs import note_few
from aigc_jax.run.settings import Config, check_weights, data_of
from aigc_jax.signature import check_type
from aigc_jax.terminal import counted

WHOLE = {"split": "validation"}
TEMPLATES = ("a photo of a {}",)


def recall(
  *,
  data: Mapping = WHOLE,
  batches: int | None = None,
  weights: str = RAW,
  at: Sequence[int] = (1, 5, 10),
  place,
) -> Recall:
  """Recall at k over held-out captions, both ways.

  data: as of a loss. at: the k. weights: which parameters, see WEIGHTS.
  """
  entry = dict(kind="recall", data=data, batches=batches, at=at)
  check_weights(f"evaluate.{place.name}.weights", weights, place.run.config)
  return of_run(place, entry, weights)


def zero_shot(
  *,
  data: Mapping = WHOLE,
  batches: int | None = None,
  weights: str = RAW,
  names: Sequence[str] | None = None,
  templates: Sequence[str] = TEMPLATES,
  place,
) -> ZeroShot:
  """Held-out labels told by the texts of their names.

  data: {"split": ..., "sources": ...} of labelled images, as of data.kind=
  'images'. names: of the labels, None as the data has them. templates: texts
  with "{}" where the name stands; the label is the mean of them.
  """
  entry = dict(
    kind="zero_shot", data=data, batches=batches, names=names,
    templates=templates,
  )  # fmt: skip
  check_weights(f"evaluate.{place.name}.weights", weights, place.run.config)
  return of_run(place, entry, weights)


def of_run(place, entry: Mapping, weights: str):
  """The evaluator of an entry, what it is measured on prepared."""
  r = place.run
  eval_set = opened(r.config, entry, place.tokenizer, place.say)
  return made(
    r.config, r.model, r.mesh, place.name, entry, eval_set, place.tokenizer,
    weights=weights, poll=place.poll,
  )  # fmt: skip


def made(
  config: Config, model, mesh, name: str, entry: Mapping, eval_set, tokenizer,
  **keys,
):  # fmt: skip
  """The evaluator of an entry on a held-out set of `opened` or `known`."""
  keys = dict(keys, name=name)
  if entry["kind"] == "recall":
    return Recall(model, eval_set, mesh, at=entry["at"], **keys)
  labels = eval_set.views[0].about["labels"]
  names = entry["names"] or labels
  if len(names) != len(labels):
    raise BadConfig(
      f"evaluate.{name}.names has {counted(len(names), 'name')}, and the data "
      f"{counted(len(labels), 'label')} ({', '.join(labels[:5])}...): one for "
      "each, in that order"
    )
  texts = [t.replace("{}", word) for word in names for t in entry["templates"]]
  tokens = captions_of(config).tokens_of(tokenizer, texts)
  shape = (len(names), len(entry["templates"]), -1)
  return ZeroShot(
    model, eval_set, mesh, tokens_CPT=np.reshape(tokens, shape), **keys
  )


def captions_of(config: Config) -> Captions:
  """The data of a config, which must be of captions."""
  found = data_of(config)
  if not isinstance(found, Captions):
    raise BadConfig(
      "images and texts are compared as data.kind='captions' has them: this "
      f"config has data.kind={config['data']['kind']!r}"
    )
  return found


def _data(config: Config, entry: Mapping):
  """(data, the model's sizes that it is to have) of an entry."""
  captions = captions_of(config)
  if entry["kind"] == "recall":
    return captions, config["model"]
  return captions.labelled(entry["data"]["sources"]), {}


def opened(config: Config, entry: Mapping, tokenizer, say: Callable):
  """The held-out set of an entry, prepared where it is missing."""
  source, model = _data(config, entry)
  found = source.heldout(
    model=model, tokenizer=tokenizer, say=say, **entry["data"]
  )
  note_few(found, say)
  batches = entry["batches"]
  return found if batches is None else found.first(batches)


def known(config: Config, entry: Mapping, tokenizer, fingerprints):
  """The set that `opened` gave a run, or None where it is gone."""
  source, model = _data(config, entry)
  return source.known(
    batches=entry["batches"], model=model, tokenizer=tokenizer,
    fingerprints=fingerprints, **entry["data"],
  )  # fmt: skip


def not_of_data(name: str, entry: Mapping, config: Config) -> str:
  """Why labels tell nothing of a run's captions, or "": of another package."""
  if entry["kind"] != "zero_shot":
    return ""
  labelled, captioned = (
    {
      str(source.get("name"))
      for source in section.get("sources") or ()
      if source["kind"] == "package"
    }
    for section in (entry["data"], config["data"])
  )
  if not labelled or labelled & captioned:
    return ""
  source = f"--config.evaluate.{name}.data.sources[0]"
  names = f" --config.evaluate.{name}.names=None" * bool(entry["names"])
  return (
    f"it tells the labels of {', '.join(sorted(labelled))}, of which the data "
    f"has none (labelled images of your own: {source}.kind=folder "
    f"{source}.path=FOLDER{names})"
  )


def check(name: str, entry: Mapping, config: Config, model) -> None:
  """Raises BadConfig for an entry that could not be measured."""
  section = f"evaluate.{name}"
  captions = captions_of(config)
  check_embeds(model, section)
  if entry["batches"] is not None and entry["batches"] < 1:
    raise BadConfig(
      f"{section}.batches={entry['batches']}: expected how many, or None for "
      "the whole set"
    )
  if entry["kind"] == "recall":
    captions.check_heldout(f"{section}.data", entry["data"])
    for k in entry["at"]:
      check_type(f"{section}.at", k, int)
    if not entry["at"] or min(entry["at"]) < 1:
      raise BadConfig(f"{section}.at={entry['at']}: expected numbers from 1")
    return
  if not entry["data"].get("sources"):
    raise BadConfig(
      f"{section}.data has no sources: name labelled images, such as "
      "dict(split='validation', sources=(dict(kind='folder', path=PATH, "
      "split='train'),))"
    )
  labelled = captions.labelled(entry["data"]["sources"])
  labelled.check_heldout(f"{section}.data", entry["data"])
  if not entry["templates"]:
    raise BadConfig(f"{section}.templates is empty: such as {TEMPLATES[0]!r}")
  for template in entry["templates"]:
    if "{}" not in template:
      raise BadConfig(
        f"{section}.templates: {template!r} has no {{}}, where the name of a "
        "label is to stand"
      )


KINDS = {"recall": recall, "zero_shot": zero_shot}
