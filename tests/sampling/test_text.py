"""Text from tokens: stop strings cut exactly, characters stay whole."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigc_jax.data import load_tokenizer
from aigc_jax.errors import BadConfig
from aigc_jax.sampling.decode import Row
from aigc_jax.sampling.logits import Sampling
from aigc_jax.sampling.text import Cutter, _Writer, generate, prompt_ids

SAMPLED = Sampling(temperature=1.5)


class Letters:
  """36 ids for letters and digits, and the end of text."""

  alphabet = "abcdefghijklmnopqrstuvwxyz0123456789"
  vocab, eot, start = 37, 36, ()

  def encode(self, text):
    return np.array([self.alphabet.index(c) for c in text], np.int32)

  def decoder(self, after=()):
    return lambda i, final: "" if i in (None, 36) else self.alphabet[i]


LETTERS = Letters()


@given(
  st.lists(st.text("ab", max_size=4), max_size=8),
  st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_text_is_cut_before_a_stop_string_however_it_comes(parts, stops):
  cutter = Cutter(stops)
  found = "".join([cutter.push(p) for p in parts] + [cutter.push("", True)])
  whole = "".join(parts)
  # Looked for when a piece has come; of those found, the one that began first.
  held = [any(s in whole[:n] for s in stops) for n in range(len(whole) + 1)]
  ends = [n for n, holds in enumerate(held) if holds]
  seen = whole[: _end_of_piece(parts, ends[0])] if ends else whole
  begins = [seen.find(s) for s in stops if s in seen]
  assert found == (whole[: min(begins)] if begins else whole)
  assert cutter.stopped == bool(begins)


def _end_of_piece(parts, position):
  """Where the piece that holds this position ends."""
  ends = np.cumsum([len(p) for p in parts])
  return int(ends[np.searchsorted(ends, position)])


def test_what_is_shown_early_is_never_taken_back():
  cutter = Cutter(["stop"])
  assert cutter.push("one st") == "one "
  assert cutter.push("ill") == "still"
  assert cutter.push(" s") == " "
  assert cutter.push("top, two") == "s"[:0]
  assert cutter.stopped and cutter.push("three") == ""


def test_a_character_in_several_tokens_comes_out_whole():
  tokenizer = load_tokenizer("bytes")
  ids = tokenizer.encode("é→日")
  writer = _Writer(tokenizer, Row((65,)), ())
  shown = [writer.push(ids[i : i + 1], len(ids)) for i in range(len(ids))]
  assert "".join(shown) == writer.text == "é→日"
  assert shown[0] == "" and writer.finish == "length"


def test_an_unfinished_character_is_marked_at_the_end():
  tokenizer = load_tokenizer("bytes")
  writer = _Writer(tokenizer, Row((65,)), ())
  writer.push(tokenizer.encode("é")[:1], 1)
  assert writer.text == "\ufffd" and writer.finish == "length"


def test_the_empty_prompt_begins_a_text():
  tokenizer = load_tokenizer("bytes")
  assert prompt_ids(tokenizer, "") == (256,)
  assert prompt_ids(tokenizer, "A") == (65,)


def write(engine, prompts, **changes):
  settings = dict(
    max_tokens=12, num_samples=2, stops=(), batch=3, steps=8, keep=None
  )
  return generate(engine, LETTERS, prompts, **settings | changes)


@pytest.mark.slow
def test_completions_come_in_the_order_of_the_prompts(engine):
  e = engine("llama", SAMPLED, stop_ids=(36,))
  prompts = ["abc", "x", "hello", "x"]
  found = write(e, prompts)
  assert [(c.index, c.sample) for c in found] == [
    (i, s) for i in range(4) for s in range(2)
  ]
  assert found == write(e, prompts, batch=8, steps=3)
  for c in found:
    ids = [i for i in c.tokens if i != 36]
    assert c.text == "".join(Letters.alphabet[i] for i in ids)
    assert (c.finish == "eot") == (36 in c.tokens)
    assert c.finish == "eot" or len(c.tokens) == 12
  alone = write(e, ["hello"])
  assert [c.text for c in alone] == [c.text for c in found[4:6]]


@pytest.mark.slow
def test_a_stop_string_ends_one_row_and_no_other(engine):
  e = engine("llama", SAMPLED, stop_ids=(36,))
  prompts = ["abc", "x", "hello", "zz"]
  free = write(e, prompts, max_tokens=20)
  stop = next(c.text[2:4] for c in free if len(c.text) > 6)
  shown = {}
  found = write(
    e, prompts, max_tokens=20, stops=[stop],
    show=lambda i, s, text: shown.setdefault((i, s), []).append(text),
  )  # fmt: skip
  for whole, cut in zip(free, found, strict=True):
    assert cut.text == whole.text.split(stop)[0]
    assert "".join(shown.get((cut.index, cut.sample), [])) == cut.text
    if stop in whole.text:
      assert cut.finish == "stop" and len(cut.tokens) <= len(whole.tokens)
  assert any(c.finish == "stop" for c in found)


@pytest.mark.slow
def test_only_the_end_of_a_long_prompt_is_kept_where_asked(engine):
  e = engine("llama", SAMPLED, stop_ids=(36,))
  cut, short = write(e, ["abcdefgh", "fgh"], keep=3, num_samples=1)
  assert cut.tokens == short.tokens


@pytest.mark.parametrize("wrong", [dict(num_samples=0), dict(batch=0)])
def test_numbers_that_cannot_be_meant_are_refused(wrong, engine):
  with pytest.raises(BadConfig, match=next(iter(wrong))):
    write(engine("llama"), ["a"], **wrong)
  with pytest.raises(BadConfig, match="stop"):
    write(engine("llama"), ["a"], stops=[""])
