"""The best text in known words: a search, and all alignments counted out."""

import itertools
import math

import numpy as np
import pytest

from aigc_jax.data import tokenizers
from aigc_jax.errors import BadConfig, BadData
from aigc_jax.sampling.transcripts import collapsed
from aigc_jax.sampling.words import END, Known, NGrams, WordSearch, known

SIGNS = "ab "
TEXTS = ("ab a", "a ba", "ba ba a", "b")
GRAMS = NGrams(text.split() for text in TEXTS)
BLANK = len(SIGNS)


def logs_of(seed: int, steps: int) -> np.ndarray:
  logits = 2 * np.random.default_rng(seed).normal(size=(steps, BLANK + 1))
  return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def worth(text: str, log_p: float, weight: float, reward: float) -> float:
  context: tuple[str, ...] = ()
  for word in text.split():
    log_p += weight * GRAMS.log_p(word, context) + reward
    context = (*context, word)
  return log_p + weight * GRAMS.log_p(END, context)


def counted_out(logs_TV, weight: float, reward: float) -> str:
  """The best of all texts that there are, by every alignment."""
  found: dict[str, float] = {}
  for path in itertools.product(range(BLANK + 1), repeat=len(logs_TV)):
    text = "".join(SIGNS[i] for i in collapsed(np.array(path), BLANK))
    log_p = sum(logs_V[i] for logs_V, i in zip(logs_TV, path, strict=True))
    found[text] = np.logaddexp(found.get(text, -np.inf), log_p)
  known_ones = [t for t in found if t == " ".join(t.split())]
  known_ones = [t for t in known_ones if set(t.split()) <= set(GRAMS.words)]
  return max(known_ones, key=lambda t: worth(t, found[t], weight, reward))


def search_of(width: int, weight: float, reward: float) -> WordSearch:
  return WordSearch(
    GRAMS, lambda text: [SIGNS.index(c) for c in text], blank=BLANK,
    width=width, weight=weight, reward=reward,
  )  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_a_wide_search_finds_the_best_text_that_counting_out_finds(seed):
  logs_TV = logs_of(seed, 5)
  for weight, reward in ((0.0, 0.0), (0.5, 1.0), (1.5, -0.5)):
    found = search_of(10**6, weight, reward)(logs_TV)
    text = "".join(SIGNS[i] for i in found)
    assert text == counted_out(logs_TV, weight, reward)


def test_a_narrow_search_still_writes_known_words_alone():
  texts = set()
  for seed in range(20):
    text = "".join(SIGNS[i] for i in search_of(3, 0.5, 1.0)(logs_of(seed, 9)))
    assert set(text.split()) <= set(GRAMS.words)
    assert text == " ".join(text.split())
    texts.add(text)
  assert len(texts) > 5


@pytest.mark.parametrize(
  "context", [(), ("ba",), ("ba", "ba"), ("never",), ("a", "b", "ba")]
)
def test_what_may_follow_a_context_has_a_likelihood_of_one(context):
  words = [*GRAMS.words, END]
  total = sum(math.exp(GRAMS.log_p(word, context)) for word in words)
  assert total == pytest.approx(1.0)


def test_a_likelihood_is_that_of_witten_and_bell():
  grams = NGrams([["a", "b"], ["a", "a"]], order=2)
  # Of no context: a three times, b once, the end twice; three kinds of six.
  alone = (3 + 3 * (1 / 3)) / (6 + 3)
  assert grams.log_p("a", ()) == pytest.approx(math.log(alone))
  # Behind a: a, b and the end, once each.
  behind = (1 + 3 * alone) / (3 + 3)
  assert grams.log_p("a", ("b", "a")) == pytest.approx(math.log(behind))


def test_texts_are_read_a_line_each_and_spelt_in_bytes(tmp_path):
  path = tmp_path / "texts.txt"
  path.write_text("press one\n\nhello\n")
  some = known(str(path), 0.5, 1.0)
  assert some == Known(["press one", "hello"], 0.5, 1.0)
  logs_TV = np.full((3, 257), -20.0)
  logs_TV[[0, 1, 2], [ord("o"), ord("m"), ord("e")]] = 0.0
  logs_TV[1, ord("n")] = -5.0
  found = some.search(tokenizers.Bytes(), 256, 8)(logs_TV)
  assert bytes(found) == b"one"
  path.write_text("\n")
  with pytest.raises(BadData, match="no text in it"):
    known(str(path), 0.5, 1.0)
  with pytest.raises(BadData, match="No such file"):
    known(str(tmp_path / "none"), 0.5, 1.0)


def test_words_of_another_tokenizer_than_bytes_are_refused():
  class Pieces:
    name = "sentencepiece"

  with pytest.raises(BadConfig, match="tokenizer=bytes"):
    Known(["a"]).search(Pieces(), 0, 8)
