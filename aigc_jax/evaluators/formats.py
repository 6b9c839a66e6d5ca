"""Formats: how a record of a task becomes context, choices and label.

The prompts are those of the tasks of the same name in lm-evaluation-harness
(lm_eval 0.4), which follow the papers. A format is known by its keys.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from aigc_jax import files
from aigc_jax.errors import BadData

LARGEST = 2**30  # bytes of a file of records


@dataclasses.dataclass(frozen=True)
class Item:
  """One question: which of the choices, appended to the context, is likeliest?

  between: what stands between the context and a choice; it is scored with the
  choice but does not count in its length.
  """

  context: str
  choices: tuple[str, ...]
  label: int
  between: str = " "


@dataclasses.dataclass(frozen=True)
class Reference:
  """A prompt and the texts that would be right answers to it."""

  prompt: str
  references: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Format:
  """How the records of one kind of task are read.

  scores: "choices" (accuracies), "last_word" (accuracy and perplexity of one
  continuation), "references" (generated text). source: where it is defined.
  """

  keys: tuple[str, ...]
  read: Callable[[Mapping], Item | Reference]
  scores: str
  source: str


def lambada(r: Mapping) -> Item:
  """The last word of a passage, by single spaces."""
  context, _, word = r["text"].rpartition(" ")
  return Item(context, (word,), 0)


def hellaswag(r: Mapping) -> Item:
  """The most plausible ending of an activity."""
  context = f"{r['activity_label']}: {r['ctx_a']} {r['ctx_b'].capitalize()}"
  endings = tuple(_unbracketed(e) for e in _texts(r["endings"]))
  return Item(_unbracketed(context), endings, _label(r["label"]))


def _unbracketed(text: str) -> str:
  """Without the [markers] that WikiHow left in HellaSwag."""
  text = text.strip().replace(" [title]", ". ")
  return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def arc(r: Mapping) -> Item:
  """A science question, as released by AI2 or in columns."""
  question, choices = r["question"], r.get("choices")
  if isinstance(question, Mapping):
    question, choices = question["stem"], question["choices"]
  if isinstance(choices, Mapping):
    labels, texts = choices["label"], choices["text"]
  else:
    labels = [c["label"] for c in choices]
    texts = [c["text"] for c in choices]
  label = list(labels).index(r["answerKey"])
  return Item(f"Question: {question}\nAnswer:", tuple(texts), label)


def piqa(r: Mapping) -> Item:
  """The better of two ways to reach a goal."""
  choices = (r["sol1"], r["sol2"])
  return Item(f"Question: {r['goal']}\nAnswer:", choices, _label(r["label"]))


def blimp(r: Mapping) -> Item:
  """A minimal pair: the acceptable sentence should be likelier."""
  return Item("", (r["sentence_good"], r["sentence_bad"]), 0)


def plain_choices(r: Mapping) -> Item:
  """Any question in our own words; "between" is " " unless given."""
  between = r["between"] if "between" in r else " "
  if not isinstance(r["label"], int):
    raise TypeError(f"label {r['label']!r} is not a whole number")
  label = _label(r["label"])
  return Item(r["context"], _texts(r["choices"]), label, between)


def references(r: Mapping) -> Reference:
  """A prompt, and one reference text or a list of them."""
  found = r["reference"]
  found = (found,) if isinstance(found, str) else _texts(found)
  return Reference(r["prompt"], found)


def _texts(found) -> tuple[str, ...]:
  """A list of texts; a single text is not the list of its letters."""
  if not isinstance(found, list) or not all(isinstance(t, str) for t in found):
    raise TypeError(f"{str(found)[:80]!r} is not a list of texts")
  return tuple(found)


def _label(found) -> int:
  """The number of the right choice; some releases write it as text."""
  if isinstance(found, bool) or not isinstance(found, int | str):
    raise TypeError(f"label {found!r} is not a whole number")
  return int(found)


# Tried in this order: more keys before fewer.
FORMATS = {
  "hellaswag": Format(
    ("activity_label", "ctx_a", "ctx_b", "endings", "label"), hellaswag,
    "choices", "arXiv:1905.07830",
  ),
  "piqa": Format(
    ("goal", "sol1", "sol2", "label"), piqa, "choices", "arXiv:1911.11641"
  ),
  "arc": Format(
    ("question", "answerKey"), arc, "choices", "arXiv:1803.05457"
  ),
  "blimp": Format(
    ("sentence_good", "sentence_bad"), blimp, "choices", "arXiv:1912.00582"
  ),
  "choices": Format(
    ("context", "choices", "label"), plain_choices, "choices", "here"
  ),
  "references": Format(
    ("prompt", "reference"), references, "references", "here"
  ),
  "lambada": Format(("text",), lambada, "last_word", "arXiv:1606.06031"),
}  # fmt: skip


def read(path: str | Path) -> tuple[str, list[Item | Reference]]:
  """(the name of the format, the items) of a file of JSON lines.

  Raises BadData, naming the line, for a record that is not of the format.
  """
  try:
    data = files.given(path, LARGEST, "--tasks")
    lines = data.decode("utf-8-sig").split("\n")  # not at U+2028
  except OSError as error:
    raise BadData(f"{path}: cannot be read: {error.strerror}") from None
  except UnicodeDecodeError as error:
    raise BadData(f"{path}: not UTF-8: {error}") from None
  records = [
    (n, _record(path, n, line))
    for n, line in enumerate(lines, 1)
    if line.strip()
  ]
  if not records:
    raise BadData(f"{path}: no record in it")
  name = format_of(records[0][1], path)
  return name, [_item(name, path, n, record) for n, record in records]


def format_of(record: Mapping, path: str | Path) -> str:
  """The first format whose keys a record has; BadData lists them if none."""
  for name, form in FORMATS.items():
    if all(key in record for key in form.keys):
      return name
  known = "; ".join(f"{n}: {', '.join(f.keys)}" for n, f in FORMATS.items())
  raise BadData(
    f"{path}: keys {', '.join(record)} are of no format that is known ({known})"
  )


def _record(path, number: int, line: str) -> dict:
  return files.parse_json(line.encode(), f"{path}, line {number}")


def _item(name: str, path, number: int, record: Mapping) -> Item | Reference:
  try:
    item = FORMATS[name].read(record)
    check(item)
    return item
  except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
    raise BadData(
      f"{path}, line {number}: not a record of {name}: "
      f"{type(error).__name__}: {error}"
    ) from None


def check(item: Item | Reference) -> None:
  """Raises ValueError for an item that cannot be scored."""
  if isinstance(item, Reference):
    texts: Sequence[str] = (item.prompt, *item.references)
    if not item.references:
      raise ValueError("no reference")
  else:
    texts = (item.context, item.between, *item.choices)
    if not 0 <= item.label < len(item.choices):
      raise ValueError(f"label {item.label} of {len(item.choices)} choices")
    if not all(item.choices):
      raise ValueError("an empty choice")
  if not all(isinstance(text, str) for text in texts):
    raise TypeError("a text that is not a string")
  for text in texts:
    if any("\ud800" <= c <= "\udfff" for c in text):
      raise ValueError(f"half a character (a lone surrogate) in {text[:80]!a}")
