"""Scores of text are those of the packages, with errors and signatures."""

import json
import math
import os
import subprocess
import sys

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


def wordnet(folder):
  """WordNet's files with one synset, of cat and tomcat, where nltk looks.

  https://wordnet.princeton.edu/documentation/wndb5wn
  """
  path = folder / "corpora" / "wordnet"
  path.mkdir(parents=True)
  kinds = ("noun", "verb", "adj", "adv")
  empty = ["index.sense", "cntlist.rev"]
  for kind in kinds:
    empty += [f"index.{kind}", f"data.{kind}", f"{kind}.exc"]
  for name in empty:
    (path / name).write_text("")
  (path / "lexnames").write_text("00\tnoun.animal\t1\n")
  head = "  1 a licence\n"  # so that no synset is at byte 0
  at = f"{len(head):08}"
  (path / "data.noun").write_text(
    f"{head}{at} 00 n 02 cat 0 tomcat 0 000 | a small animal\n"
  )
  (path / "index.noun").write_text(
    f"cat n 1 0 1 0 {at}\ntomcat n 1 0 1 0 {at}\n"
  )


CODE = """
import json, sys
from nltk.translate.meteor_score import meteor_score
from aigc_jax.evaluators import text_scores
texts, references = json.loads(sys.argv[1])
found = text_scores.meteor(texts, references)["meteor"]
theirs = [
  meteor_score([r.split() for r in refs], text.split())
  for text, refs in zip(texts, references)
]
print(json.dumps([found.value, found.items, found.error, theirs]))
"""


@pytest.mark.slow
def test_meteor_is_nltks_with_synonyms_of_wordnet(tmp_path):
  """In a process of its own: nltk keeps the WordNet it has once found."""
  pytest.importorskip("nltk", reason="needs [scores]")
  wordnet(tmp_path)
  texts = ["the tomcat sat", "a dog", "nothing alike"]
  references = [["the dog sat", "The cat sat"], ["the dog"], ["x y z"]]
  done = subprocess.run(
    [sys.executable, "-c", CODE, json.dumps([texts, references])],
    capture_output=True, text=True, timeout=600,
    env=os.environ | {"NLTK_DATA": str(tmp_path)},
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  value, items, error, theirs = json.loads(done.stdout)
  assert value == pytest.approx(sum(theirs) / 3) and items == 3 and error > 0
  # By hand: all three words match in one chunk, F = 1, penalty (1/3)**3 / 2;
  # one word of two, F = 1/2, penalty 1/2; nothing.
  assert theirs == pytest.approx([1 - (1 / 3) ** 3 / 2, 0.25, 0.0])


# "The cat ..." and "The dog ...", or words to that effect.
WRITTEN = {
  "han": ("猫坐在垫子上。", "狗坐在垫子上。"),
  "kana": ("猫はマットの上", "犬はマットの上"),
  "other": ("แมวนั่งบนเสื่อ", "หมานั่งบนเสื่อ"),
  "spaced": ("кошка сидит на ковре", "собака сидит на ковре"),
  "latin": ("le chat est là et dort", "le chien est là et dort"),
}


@pytest.mark.parametrize("script", WRITTEN)
def test_equal_texts_score_all_there_is_in_every_script(script):
  pytest.importorskip("sacrebleu", reason="needs [scores]")
  pytest.importorskip("rouge_score", reason="needs [scores]")
  text, other = WRITTEN[script]
  assert text_scores.script_of([[text], [other]]) == script
  same = [text, other]
  references = [[t] for t in same]
  found = text_scores.corpus_scores(same, references)
  found |= text_scores.rouge(same, references)
  for name, estimate in found.items():
    whole = 1.0 if name.startswith("rouge") else 100.0
    assert estimate.value == pytest.approx(whole), name
  apart = text_scores.corpus_scores(same[::-1], references)
  apart |= text_scores.rouge(same[::-1], references)
  for name, estimate in apart.items():
    assert 0 < estimate.value < 0.97 * found[name].value or name == "bleu"
  names = {"han": "tok:zh", "other": "tok:char", "spaced": "tok:13a"}
  assert names.get(script, "tok:") in found["bleu"].signature
  assert bool(found["rouge1"].signature) == (script != "latin")


def test_words_are_characters_where_there_are_no_spaces():
  words = text_scores.words_of("猫坐 Two  words, x1。")
  assert words == ["猫", "坐", "two", "words", "x1"]
  assert text_scores.words_of("นั่ง") == ["นั่", "ง"]
  assert text_scores.words_of("ข किताब") == ["ข", "किताब"]


@pytest.mark.slow
def test_meteor_reads_characters_where_there_are_no_spaces(tmp_path):
  pytest.importorskip("nltk", reason="needs [scores]")
  wordnet(tmp_path)
  text, other = WRITTEN["han"]
  code = CODE.replace("r.split()", "list(r[:-1])").replace(
    "text.split()", "list(text[:-1])"
  )
  done = subprocess.run(
    [sys.executable, "-c", code, json.dumps([[text], [[other]]])],
    capture_output=True, text=True, timeout=600,
    env=os.environ | {"NLTK_DATA": str(tmp_path)},
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  value, _, _, theirs = json.loads(done.stdout)
  assert value == pytest.approx(theirs[0]) and 0.5 < value < 1


def test_wordnet_that_cannot_be_read_costs_no_score_but_meteor(monkeypatch):
  score = pytest.importorskip("nltk.translate.meteor_score")

  def linked(*args):
    raise ValueError("Path /usr/share/wordnet/data.adj escapes root")

  monkeypatch.setattr(score, "meteor_score", linked)
  found, lacking = text_scores.all_scores(TEXTS, REFERENCES)
  assert "exact_match" in found and "meteor" not in found
  assert any("escapes root" in line for line in lacking)


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
