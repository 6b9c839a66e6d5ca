"""Likelihoods are sums of the uncached model's log probabilities."""

import functools

import jax
import numpy as np
import pytest

from aigc_jax.errors import BadData
from aigc_jax.evaluators import likelihood
from aigc_jax.evaluators.likelihood import Scorer, windows
from tests import tiny


class Letters:
  """Ids of letters; those behind a space are pieces of their own."""

  vocab, eot, start = 37, 36, ()

  def encode(self, text):
    ids, i = [], 0
    while i < len(text):
      if text[i] == " " and i + 1 < len(text) and text[i + 1] != " ":
        ids.append(10 + ord(text[i + 1]) % 10)
        i += 2
      else:
        ids.append(ord(text[i]) % 10)
        i += 1
    return np.array(ids, np.int32)


def fresh(length=16, batch=4, start=()):
  tokenizer = Letters()
  tokenizer.start = start
  return Scorer(
    tiny.build("llama"), tiny.params_of("llama"), tokenizer,
    length=length, batch=batch,
  )  # fmt: skip


make = functools.cache(fresh)  # compiled once for all who leave it as it is


def reference(context, text):
  """(log p(text | context), greedy) from the logits of the whole row."""
  row = [*context, *text]
  padded = np.array([row + [0] * (24 - len(row))])
  z = np.asarray(tiny.logits("llama", padded), np.float64)[0]
  z = z - np.log(np.exp(z).sum(-1, keepdims=True))
  at = range(len(context) - 1, len(row) - 1)
  return sum(z[i, row[i + 1]] for i in at), all(
    z[i].argmax() == row[i + 1] for i in at
  )


def test_pairs_score_as_the_whole_row_does_in_any_company():
  pairs = [
    ([3, 1], [4, 1, 5]), ([36], [9]), ([2, 6, 5, 3], [5, 8]),
    ([7], [9, 3, 2, 3, 8, 4, 6, 2, 6, 4, 3]), ([1, 2], [30, 31]),
  ]  # fmt: skip
  greedy = [3, 1]
  for _ in range(3):
    padded = np.array([greedy + [0] * (24 - len(greedy))])
    last = np.asarray(tiny.logits("llama", padded))[0, len(greedy) - 1]
    greedy.append(int(last.argmax()))
  pairs.append((greedy[:2], greedy[2:]))
  found = make().ids(pairs)
  for pair, one in zip(pairs, found, strict=True):
    logprob, best = reference(*pair)
    assert one.logprob == pytest.approx(logprob, abs=1e-4)
    assert one.greedy == best and one.tokens == len(pair[1])
  assert found[-1].greedy
  alone = [make(batch=1).ids([pair])[0].logprob for pair in pairs[:2]]
  assert alone == pytest.approx([f.logprob for f in found[:2]], abs=1e-5)


def test_logits_in_pieces_change_nothing(monkeypatch):
  pairs = [([7], [9, 3, 2, 3, 8, 4, 6, 2, 6, 4, 3]), ([1, 2], [30, 31])]
  whole = [f.logprob for f in make().ids(pairs)]
  monkeypatch.setattr(likelihood, "AT_ONCE", 6)
  pieces = fresh().ids(pairs)
  assert [f.logprob for f in pieces] == pytest.approx(whole, abs=1e-5)


def test_what_is_too_long_loses_its_beginning():
  context = [1, 2, 3, 4, 5, 6]
  long, short = make(length=4).ids([(context, [7, 8]), (context[3:], [7, 8])])
  assert long.logprob == pytest.approx(short.logprob, abs=1e-5)
  assert long.logprob == pytest.approx(
    reference([4, 5, 6], [7, 8])[0], abs=1e-4
  )


def test_spaces_between_context_and_text_belong_to_the_text():
  scorer = make()
  assert scorer.pair("ab ", "cd") == scorer.pair("ab", " cd")
  before, after = scorer.pair("ab", " cd")
  assert before == [7, 8] and after == [19, 0]
  assert scorer.pair("", " cd") == ([36], [19, 0])
  assert scorer.pair(" ", "cd") == scorer.pair("", " cd")
  assert scorer.pair(" ", "") == scorer.pair("", " ")
  assert make(start=(35,)).pair("ab", "c") == ([35, 7, 8], [9])
  assert make(start=(35,)).pair("", "c") == ([35], [9])


@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 8, 11])
def test_windows_score_each_id_once_with_a_full_context(n):
  ids = list(range(n))
  found = windows(ids, 99, 4)
  assert [i for _, text in found for i in text] == ids
  whole = [99, *ids]
  at = 1
  for context, text in found:
    assert len(context) + len(text) <= 5 and context
    assert context == whole[at - len(context) : at]
    at += len(text)
  if n > 4:
    assert all(len(c) + len(t) == 5 for c, t in found)


def test_a_rolled_text_is_the_sum_of_its_windows():
  scorer = make(length=4)
  text = "abcdefg"
  ids = scorer.tokenizer.encode(text).tolist()
  expected = sum(reference(*w)[0] for w in windows(ids, 36, 4))
  found = scorer.rolling(text)
  assert found.logprob == pytest.approx(expected, abs=1e-4)
  assert found.tokens == 7


def test_one_compilation_for_each_bucket():
  scorer = fresh(length=40)
  for n in (3, 9, 15):
    scorer.ids([([1], [2] * n)] * 4)
  assert scorer.compiles == 1
  scorer.ids([([1], [2] * 30)] * 4)
  assert scorer.compiles == 2


def test_a_text_that_melts_into_its_context_is_not_scored():
  scorer = fresh()
  whole = scorer.tokenizer.encode
  scorer.tokenizer.encode = lambda text: whole(text.replace("fi", "f"))
  assert scorer.pair("f", "a")[1] == [7]
  for pair in (("f", "i"), ("a", ""), ("", "")):
    with pytest.raises(BadData, match="no token of its own"):
      scorer.pairs([pair])


def test_predictions_that_are_not_finite_are_refused(monkeypatch):
  scorer = make(batch=1)
  none = jax.tree.map(lambda x: np.full_like(x, np.nan), scorer._params)
  monkeypatch.setattr(scorer, "_params", none)
  with pytest.raises(BadData, match="not finite"):
    scorer.ids([([1], [2])])
