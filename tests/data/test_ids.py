"""The flags that give a model more ids or labels are all that it takes."""

import copy
import functools

import pytest

from aigc_jax.data.ids import flags_of, vocab_of
from aigc_jax.models import MODELS
from tests.kinds import KINDS

DECODER = KINDS["decoder"].model
STUDENT = dict(kind="roles", parts=dict(teacher=DECODER, student=DECODER))
TOLD = {name: kind.model for name, kind in KINDS.items()}
TOLD["student and teacher"] = STUDENT
LABELLED = [name for name, model in TOLD.items() if model.get("classes")]
OF_TEXT = [n for n, m in TOLD.items() if vocab_of(m, 0) and n not in LABELLED]


def with_flags(model, key, value):
  """The section with what the flags say."""
  config = dict(model=copy.deepcopy(model))
  for word in flags_of(model, key, value).split():
    path, _, number = word.removeprefix("--config.").partition("=")
    *sections, last = path.split(".")
    section = functools.reduce(dict.__getitem__, sections, config)
    assert last in section
    section[last] = int(number)
  return config["model"]


def built(model):
  rest = {key: value for key, value in model.items() if key != "kind"}
  return MODELS[model["kind"]](**rest)


@pytest.mark.parametrize("name", OF_TEXT)
def test_flags_give_every_part_of_a_model_that_many_ids(name):
  more = vocab_of(TOLD[name], 0) + 5
  model = with_flags(TOLD[name], "vocab", more)
  built(model)
  assert vocab_of(model, 0) == more


@pytest.mark.parametrize("name", LABELLED)
@pytest.mark.parametrize("labels", [2, 9])
def test_flags_give_every_part_of_a_model_that_many_labels(name, labels):
  found = built(with_flags(TOLD[name], "classes", labels))
  assert found.classes == labels


def test_a_whole_without_ids_is_asked_of_its_parts():
  assert "config.model.vocab" not in flags_of(STUDENT, "vocab", 99)
