"""Scores of text are those of the packages, with errors and signatures."""

import math

import pytest

from aigc_jax.errors import BadConfig
from aigc_jax.evaluators import text_scores

TEXTS = ["the cat sat on the mat", "a dog ran far away today", "yes"]
REFERENCES = [
  ["the cat sat on the mat"],
  ["a dog ran very far away", "the dog went far away today"],
  ["no"],
]


def test_exact_match_forgives_spaces_around_a_text():
  found = text_scores.exact_match([" a ", "b", "c"], [["a"], ["x", "b"], ["C"]])
  assert found["exact_match"].value == pytest.approx(2 / 3)
  assert found["exact_match"].items == 3


def test_bleu_and_chrf_are_sacrebleus():
  sacrebleu = pytest.importorskip("sacrebleu", reason="needs [scores]")
  found = text_scores.corpus_scores(TEXTS, REFERENCES)
  columns = [[r[0] for r in REFERENCES], [None, REFERENCES[1][1], None]]
  expected = {
    "bleu": sacrebleu.corpus_bleu(TEXTS, columns).score,
    "chrf": sacrebleu.corpus_chrf(TEXTS, columns).score,
  }
  for name, value in expected.items():
    assert found[name].value == pytest.approx(value)
    assert found[name].error > 0 and found[name].items == 3
    assert "version:" in found[name].signature
  one = text_scores.corpus_scores(TEXTS[:1], REFERENCES[:1])
  assert one["bleu"].value == pytest.approx(100.0)
  assert math.isnan(one["bleu"].error)


def test_rouge_takes_the_best_reference():
  pytest.importorskip("rouge_score", reason="needs [scores]")
  found = text_scores.rouge(["a b c"], [["x y z", "a b d"]])
  assert found["rouge1"].value == pytest.approx(2 / 3)
  assert found["rouge2"].value == pytest.approx(1 / 2)


def test_meteor_without_its_data_says_how_to_get_it():
  nltk = pytest.importorskip("nltk", reason="needs [scores]")
  try:
    nltk.corpus.wordnet.ensure_loaded()
  except LookupError:
    with pytest.raises(BadConfig, match="nltk.downloader wordnet"):
      text_scores.meteor(TEXTS, REFERENCES)
  else:
    found = text_scores.meteor(TEXTS[:1], REFERENCES[:1])
    assert found["meteor"].value > 0.99


def test_what_cannot_be_had_here_is_named_and_the_rest_is_given():
  found, lacking = text_scores.all_scores(TEXTS, REFERENCES)
  assert "exact_match" in found
  assert len(lacking) == len(set(lacking))
  assert all("pip install" in r or "downloader" in r for r in lacking)
