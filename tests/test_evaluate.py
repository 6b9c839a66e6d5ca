"""The command: texts and tasks to a table and a JSON file."""

import dataclasses
import json
import math

import pytest

from aigc_jax import evaluate, run
from aigc_jax.errors import BadConfig, BadData
from aigc_jax.evaluators.choices import Estimate
from aigc_jax.evaluators.formats import Reference
from aigc_jax.evaluators.likelihood import Scorer
from aigc_jax.presets import skeleton
from tests.test_generate import loaded  # noqa: F401


@pytest.fixture(scope="module")
def scorer(loaded):  # noqa: F811
  return Scorer(
    loaded.model, loaded.params, loaded.tokenizer, length=16, batch=4
  )


def test_a_text_is_scored_by_the_byte(scorer):
  text = "the cat sat on the mat é\n" * 9
  found = evaluate.score_text(scorer, text)
  nats = -scorer.rolling(text).logprob
  size = len(text.encode())
  assert found["loss"].value == pytest.approx(nats / size)
  bits = nats / math.log(2)
  assert found["bits_per_byte"].value == pytest.approx(bits / size)
  assert found["loss"].items == size
  assert 0 < found["gzip_bits_per_byte"].value < 8


def test_a_task_of_references_is_written_greedily(
  loaded,
  scorer,
  monkeypatch,
  capsys,  # noqa: F811
):
  class Flags:
    max_tokens, stop, batch, beams = 3, ["\n"], 2, 0

  monkeypatch.setattr(evaluate, "FLAGS", Flags)
  items = [Reference("ab", ("x",)), Reference("a" * 40, ("y", "z"))]
  found = evaluate.score_task(loaded, scorer, "references", items)
  assert found["exact_match"].items == 2


def test_scores_are_kept_beside_others_of_the_same_step(
  loaded,
  tmp_path,
  capsys,  # noqa: F811
):
  path = tmp_path / "deep" / "7.json"
  loss = Estimate(1.0, math.nan, 9)
  one = {"a": {"acc": Estimate(0.5, 0.1, 4), "loss": loss}}
  evaluate.save(path, loaded, one)
  evaluate.save(path, loaded, {"b": {"bleu": Estimate(3.0, 1.0, 2, "v:1")}})
  found = json.loads(path.read_text())
  assert found["scores"] == {
    "a": {
      "acc": {"value": 0.5, "error": 0.1, "items": 4},
      "loss": {"value": 1.0, "items": 9},
    },
    "b": {"bleu": dict(value=3.0, error=1.0, items=2, signature="v:1")},
  }
  later = dataclasses.replace(loaded, step=8)
  evaluate.save(path, later, one)
  assert set(json.loads(path.read_text())["scores"]) == {"a"}


def test_flags_are_checked(tmp_path):
  assert evaluate.tasks_of(["a=x.jsonl", "b=y=z"]) == [
    ("a", "x.jsonl"), ("b", "y=z"),
  ]  # fmt: skip
  for wrong in (["a"], ["=x"], ["a=x", "a=y"]):
    with pytest.raises(BadConfig, match="--tasks"):
      evaluate.tasks_of(wrong)
  empty = tmp_path / "empty"
  empty.touch()
  for path in (str(empty), str(tmp_path / "none")):
    with pytest.raises(BadData, match="--text"):
      evaluate.text_of(path)


def test_the_length_is_that_of_the_model(loaded):  # noqa: F811
  def length(**config):
    return dataclasses.replace(loaded, config=config).length

  model = {"position_length": 0}
  assert length(model=model, data={"length": 33}) == 33
  assert length(model={"position_length": 9}) == 9
  assert length(model=model) == 0


def test_a_batch_that_could_never_fit_is_refused_before_it_is_made(loaded):  # noqa: F811
  config, dim = run.read(skeleton()), loaded.config["model"]["dim"]
  config["model"] |= {"dim": dim}
  for sizes in ({}, {"batch": 2**30}, {"length": 2**30}, {"batch": 10**6}):
    changed = config | {"data": config["data"] | sizes}
    one = dataclasses.replace(loaded, config=changed)
    if not sizes:
      evaluate.check_batch(one, 2**30)
      continue
    with pytest.raises(BadConfig, match="config.json: data: a batch of"):
      evaluate.check_batch(one, 2**30)
  need = 8 * 16 * 4 * (1 + dim)
  evaluate.check_room("x", (8, 16), dim, need)
  with pytest.raises(BadConfig, match="8 x 16 takes"):
    evaluate.check_room("x", (8, 16), dim, need - 1)
