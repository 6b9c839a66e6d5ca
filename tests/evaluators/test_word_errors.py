"""Word and character error rates are those of others, to the last digit."""

import itertools
import math
import random

import numpy as np
import pytest

from aigc_jax.evaluators.word_errors import alike, distance, word_errors


def texts(seed: int, n: int) -> list[str]:
  draw = random.Random(seed)
  words = ["one", "two", "three", "a", "and", "band", "hand"]
  return [" ".join(draw.choices(words, k=draw.randrange(9))) for _ in range(n)]


def slowest(a, b) -> int:
  """By the definition alone."""
  if not a or not b:
    return len(a) + len(b)
  if a[0] == b[0]:
    return slowest(a[1:], b[1:])
  return 1 + min(slowest(a[1:], b), slowest(a, b[1:]), slowest(a[1:], b[1:]))


def test_a_distance_is_the_least_number_of_changes():
  words = [
    "".join(w) for n in range(5) for w in itertools.product("ab", repeat=n)
  ]
  for a in words:
    for b in words[::3]:
      assert distance(a, b) == distance(b, a) == slowest(a, b)
  assert distance("kitten", "sitting") == 3


def test_rates_are_those_of_jiwer():
  jiwer = pytest.importorskip("jiwer", reason="needs the extra [scores]")
  pairs = [(a, b) for a, b in zip(texts(0, 60), texts(1, 60), strict=True) if b]
  ours = word_errors(*map(list, zip(*pairs, strict=True)))
  said, heard = [b for _, b in pairs], [a for a, _ in pairs]
  assert ours["wer"].value == pytest.approx(jiwer.wer(said, heard), rel=1e-12)
  assert ours["cer"].value == pytest.approx(jiwer.cer(said, heard), rel=1e-12)
  assert ours["wer"].items == len(pairs) and ours["wer"].error > 0


def test_rates_count_all_utterances_together_and_may_be_above_one():
  found = word_errors(["a b c d", ""], ["x", "y z"])
  # Four of one word, and two of two that are missing.
  assert found["wer"].value == 2.0 and found["cer"].value == 10 / 4
  assert word_errors(["same", "too"], ["Same.", "TOO!"])["wer"].value == 0
  assert np.isnan(word_errors(["a"], ["..."])["wer"].value)


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("Hello,  World!", "hello world"),
    ("Don\u2019t 'quote' rock-n-roll", "don't quote rock n roll"),
    (
      "\uff21\uff22\uff23 \u00c9t\u00e9 Stra\u00dfe",
      "abc \u00e9t\u00e9 strasse",
    ),
    ("100 % \u2014 $5", "100 5"),
    ("'", ""),
  ],
)
def test_texts_are_written_alike(text, expected):
  assert alike(text) == expected


def test_an_utterance_in_which_nothing_is_said_leaves_rates_their_errors():
  found = word_errors(["x", "a b", "c"], ["", "a b", "d"])
  assert found["wer"].value == 2 / 3 and found["wer"].error > 0
  assert found["cer"].error > 0
  silent = word_errors(["x", "y"], ["", ""])["wer"]
  assert math.isnan(silent.value) and math.isnan(silent.error)
