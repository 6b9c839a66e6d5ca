"""Choices and formats against values worked out by hand."""

import json
import math

import numpy as np
import pytest

from aigc_jax.errors import BadData
from aigc_jax.evaluators import choices, formats
from aigc_jax.evaluators.formats import Item, Reference
from aigc_jax.evaluators.likelihood import Likelihood


def test_accuracies_are_those_worked_out_by_hand():
  items = [
    # log p -4 and -6; per character -4 and -1; per byte -4 and -0.6
    Item("c", ("a", "éééébb"), 0),
    # log p -3 and -4; per character -1.5 and -2; per byte -0.75 and -2
    Item("c", ("éé", "bb"), 1),
  ]
  found = choices.accuracies(items, [[-4.0, -6.0], [-3.0, -4.0]])
  assert {k: e.value for k, e in found.items()} == {
    "acc": 0.5, "acc_norm": 0.0, "acc_bytes": 0.0,
  }  # fmt: skip
  assert found["acc"].items == 2
  assert found["acc"].error == pytest.approx(0.5)  # sqrt(1/2) / sqrt(2)


def test_characters_and_bytes_can_disagree():
  # per character -1 and -1.2: the first; per byte -0.5 and -0.4: the second.
  item = Item("c", ("éé", "日日日"), 0)
  found = choices.accuracies([item, item], [[-2.0, -3.6]] * 2)
  assert found["acc_norm"].value == 1.0 and found["acc_bytes"].value == 0.0
  assert found["acc"].value == 1.0 and found["acc"].error == 0.0


def test_last_words():
  logs = (math.log(0.5), True), (math.log(0.125), False)
  found = [Likelihood(*log, tokens=1) for log in logs]
  scores = choices.last_words(found)
  assert scores["acc"].value == 0.5
  assert scores["perplexity"].value == pytest.approx(4.0)
  assert scores["perplexity"].error > 0


def test_the_bootstrap_of_a_mean_is_its_standard_error():
  values = np.random.default_rng(1).normal(size=400)
  found = choices.bootstrap(lambda i: float(values[i].mean()), 400)
  assert found.value == pytest.approx(values.mean())
  assert found.error == pytest.approx(choices.mean(values).error, rel=0.1)


RECORDS = {
  "lambada": (
    dict(text="He sat on the mat"), Item("He sat on the", ("mat",), 0),
  ),
  "hellaswag": (
    dict(
      activity_label="Cooking", ctx_a="A man [x] cuts.", ctx_b="then he",
      ctx="unused", endings=["eats  it [title] now", "runs."], label="1",
    ),
    Item("Cooking: A man cuts. Then he", ("eats it. now", "runs."), 1),
  ),
  "arc": (
    dict(
      question="Why?", choices=dict(text=["x", "y"], label=["A", "B"]),
      answerKey="B",
    ),
    Item("Question: Why?\nAnswer:", ("x", "y"), 1),
  ),
  "piqa": (
    dict(goal="go", sol1="walk", sol2="sit", label=0),
    Item("Question: go\nAnswer:", ("walk", "sit"), 0),
  ),
  "blimp": (
    dict(sentence_good="He is.", sentence_bad="He are."),
    Item("", ("He is.", "He are."), 0),
  ),
  "choices": (
    dict(context="1+1=", choices=["2", "3"], label=0, between=""),
    Item("1+1=", ("2", "3"), 0, ""),
  ),
  "references": (
    dict(prompt="Say", reference=["hi", "ho"]), Reference("Say", ("hi", "ho")),
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDS)
def test_records_are_read_as_the_harness_reads_them(name, tmp_path):
  record, item = RECORDS[name]
  path = tmp_path / "x.jsonl"
  path.write_text(json.dumps(record) + "\n\n" + json.dumps(record) + "\n")
  assert formats.read(path) == (name, [item, item])


def test_arc_as_released_is_the_same_question():
  stem = dict(
    stem="Why?",
    choices=[dict(text="x", label="A"), dict(text="y", label="B")],
  )
  released = dict(id="1", question=stem, answerKey="B")
  assert formats.format_of(released, "f") == "arc"
  assert formats.arc(released) == RECORDS["arc"][1]


@pytest.mark.parametrize(
  "text, message",
  [
    ("", "no record"),
    ("{", "line 1 is not JSON"),
    ("[1]", "expected a JSON object"),
    ('{"foo": 1}', "keys foo"),
    ('{"goal": "g", "sol1": "a", "sol2": "b", "label": 2}', "label 2 of 2"),
    ('{"goal": "g", "sol1": "", "sol2": "b", "label": 0}', "empty choice"),
    ('{"goal": "g", "sol1": 3, "sol2": "b", "label": 0}', "not a record"),
    ('{"text": "a b"}\n{"txet": "a"}', "line 2: not a record of lambada"),
    ('{"question": "q", "choices": [], "answerKey": "A"}', "not a record"),
    ('{"context": "", "choices": "ab", "label": 0}', "not a list of texts"),
    ('{"context": "", "choices": ["a", 1], "label": 0}', "not a list of texts"),
    ('{"context": "", "choices": ["a"], "label": false}', "whole number"),
    ('{"context": "", "choices": ["a"], "label": 0.0}', "whole number"),
    ('{"context": "", "choices": ["\\ud800"], "label": 0}', "surrogate"),
    ('{"a":' * 100_000, "line 1: JSON nested too deep"),
  ],
)
def test_what_is_no_record_is_refused_by_line(text, message, tmp_path):
  path = tmp_path / "x.jsonl"
  path.write_text(text)
  with pytest.raises(BadData, match=message):
    formats.read(path)


def test_only_the_end_of_a_line_ends_a_record(tmp_path):
  lines = [
    json.dumps({"text": t}, ensure_ascii=False) for t in ("a\u2028 b", "c d")
  ]
  path = tmp_path / "x.jsonl"
  path.write_bytes("\ufeff{}\r\n \r\n\n{}\n".format(*lines).encode())
  _, items = formats.read(path)
  assert items == [Item("a\u2028", ("b",), 0), Item("c", ("d",), 0)]


def test_a_file_of_questions_without_an_end_is_refused(monkeypatch):
  """It would fill the memory of the machine."""
  monkeypatch.setattr(formats, "LARGEST", 1000)
  with pytest.raises(BadData, match="--tasks=/dev/zero: more than"):
    formats.read("/dev/zero")
