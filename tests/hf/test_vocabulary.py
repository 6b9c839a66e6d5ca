"""tokenizer.json gives the ids of our tokenizers, for any text."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aigc_jax.data import sentences, tokenizers
from aigc_jax.errors import BadConfig, BadData
from aigc_jax.hf import vocabulary
from aigc_jax.hf.llama import LLAMA
from tests.sweep import slow

library = pytest.importorskip(
  "tokenizers", reason="needs the extra [hf]: pip install -e '.[hf]'"
)

WORDS = (
  "def", "return", " ", "  ",
  "\n", "\n    ", "\t", "\r\n", "a", "aa", "ab", "b",
  "=", "==", "\u2581", "\x10", "\x10u", "\x10\x10", "\x00", "\xe9", "e\u0301",
  "\u4f60\u597d", "\U0001f600", "<|endoftext|>", "<unk>", "<0x41>", "\ufeff",
  "word ", "1", "00", "\u3000", "\ufb01",
)  # fmt: skip
ANY = st.one_of(
  st.text(st.characters(exclude_categories=("Cs",)), max_size=60),
  st.lists(st.sampled_from(WORDS), max_size=60).map("".join),
  st.tuples(st.sampled_from(WORDS), st.integers(1, 3000)).map(
    lambda pair: pair[0] * pair[1]
  ),
)
TRAINING = [
  "def f(a, aa, ab):\n    return a == aa  # the word \xe9\n" * 9,
  "abababab aaaa bbbb          \t\t\n\n\n 1000 0000 \u4f60\u597d\n" * 9,
]


def both(tokenizer):
  made = vocabulary.files(tokenizer, 64, LLAMA)
  theirs = library.Tokenizer.from_str(made["tokenizer.json"])
  theirs.encode_special_tokens = True
  return tokenizer, theirs


BYTES = both(tokenizers.Bytes())
SMALL = both(sentences.train(TRAINING, 310, "small"))
LARGE = both(sentences.train(TRAINING, 360, "large"))


@pytest.mark.parametrize(
  "pair", [BYTES, SMALL, slow((LARGE,))], ids="bytes small large".split()
)
@settings(max_examples=300, deadline=None)
@given(ANY)
@example("\x10\x10u \x10\x00")
@example("x" * 999 + "\n" + "y" * 5000 + "\n" * 100)
def test_any_text_has_the_same_ids_and_comes_back(pair, text):
  ours, theirs = pair
  ids = ours.encode(text).tolist()
  assert theirs.encode(text, add_special_tokens=False).ids == ids
  assert theirs.decode(ids, skip_special_tokens=True) == text


def test_the_end_of_text_is_a_special_token_with_its_id():
  for ours, theirs in (BYTES, SMALL):
    assert theirs.token_to_id(sentences.EOT) == ours.eot
    assert theirs.decode([ours.eot], skip_special_tokens=True) == ""


def lossy(**more):
  """A SentencePiece model as others train them."""
  import io

  import sentencepiece

  out = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter("\n".join(TRAINING).splitlines()),
    model_writer=out, minloglevel=2, hard_vocab_limit=False, vocab_size=310,
    byte_fallback=True, **more,
  )  # fmt: skip
  return sentences.SentencePiece(out.getvalue(), "lossy.model")


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_model_that_normalises_is_written_or_refused(kind):
  tokenizer = lossy(model_type=kind)
  assert not tokenizer.lossless
  made = vocabulary.files(tokenizer, 64, LLAMA)
  texts = ["the word aa  ab", "def f(a):", " x ", "", "1000 \xe9"]
  assert vocabulary.verify(tokenizer, made, texts)


def test_what_cannot_be_expressed_is_refused():
  tokenizer = lossy(model_type="bpe", user_defined_symbols=["<sep>"])
  with pytest.raises(BadConfig, match="user-defined"):
    vocabulary.files(tokenizer, 64, LLAMA)
  with pytest.raises(BadConfig, match="neither"):
    vocabulary.files(lossy(model_type="char"), 64, LLAMA)


def test_other_ids_are_noticed():
  made = vocabulary.files(tokenizers.Bytes(), 64, LLAMA)
  model = json.loads(made["tokenizer.json"])
  model["normalizer"] = {"type": "NFC"}
  with pytest.raises(BadData, match="other ids"):
    vocabulary.verify(
      tokenizers.Bytes(), made | {"tokenizer.json": json.dumps(model)}
    )


def test_a_tokenizer_json_is_copied_as_it_is(tmp_path):
  made = vocabulary.files(SMALL[0], 64, LLAMA)
  for name, text in made.items():
    (tmp_path / name).write_text(text)
  again = tokenizers.load_tokenizer(f"hf:{tmp_path}")
  assert again.eot == SMALL[0].eot
  text = "def f \u2581\x10"
  assert again.encode(text).tolist() == SMALL[0].encode(text).tolist()
  copied = vocabulary.files(again, 64, LLAMA)
  assert json.loads(copied["tokenizer.json"]) == json.loads(
    made["tokenizer.json"]
  )
  assert (
    json.loads(copied["tokenizer_config.json"])["eos_token"] == sentences.EOT
  )
