"""Text as it comes is the text of all ids, for every kind of decoder."""

import functools
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aigc_jax.data import Decoder, sentences, tokenizers
from aigc_jax.hf import vocabulary
from aigc_jax.hf.llama import LLAMA

library = pytest.importorskip("tokenizers", reason="needs the extra [hf]")
decoders, models = library.decoders, library.models

EMOJI = "\U0001f984"
TRAINING = [
  "def f(a, aa, ab):\n    return a == aa  # the word \xe9\n" * 9,
  "abababab aaaa bbbb, one two three four           \t\t\n\n 1000\n" * 9,
]
BYTES = [f"<0x{b:02X}>" for b in range(256)]
WORDS = (
  "\u2581 \u2581\u2581 \u2581\u2581\u2581 a b \u2581a \u2581the word ing "
  "\u2581. , hi \u4f60 \xe9 n't \ufffd \x10u do"
).split(" ")
SPECIAL = ["<unk>", "<s>", "</s>"]


def kept_as(made, eot="</s>"):
  """One of the library's tokenizers as ours."""
  made.add_special_tokens(
    [t for t in SPECIAL if made.token_to_id(t) is not None]
  )
  return tokenizers.HuggingFace(made.to_str().encode(), eot, "made here")


def fallback(*parts):
  """BPE over words and bytes, as Llama 2, Mistral and Gemma have it."""
  words = list(dict.fromkeys(WORDS))
  vocab = {piece: i for i, piece in enumerate([*SPECIAL, *BYTES, *words])}
  made = library.Tokenizer(models.BPE(vocab, [], byte_fallback=True))
  made.normalizer = library.normalizers.Replace(" ", "\u2581")
  made.decoder = decoders.Sequence(list(parts))
  return kept_as(made)


def space():
  return decoders.Replace("\u2581", " ")


def llama():
  strip = decoders.Strip(" ", 1, 0)
  return fallback(space(), decoders.ByteFallback(), decoders.Fuse(), strip)


def gemma():
  return fallback(space(), decoders.ByteFallback(), decoders.Fuse())


def two_spaces():
  strip = decoders.Strip(" ", 2, 0)
  return fallback(space(), decoders.ByteFallback(), decoders.Fuse(), strip)


def pieces_apart():
  return fallback(space(), decoders.ByteFallback(), decoders.Strip("a", 1, 0))


def patterns():
  """Patterns over the joined text: every match decides with its neighbours."""
  return fallback(
    decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("hihi", "ho"),
    decoders.Replace("a\u2581a", "\u2581"),
  )  # fmt: skip


def suffixes():
  return fallback(decoders.BPEDecoder("ing"))


def undecoded():
  made = json.loads(gemma()._model)
  text = json.dumps(made | {"decoder": None})
  return tokenizers.HuggingFace(text.encode(), "</s>", "no decoder")


def unigram():
  pieces = [(p, -1.0) for p in [*SPECIAL, *BYTES, *dict.fromkeys(WORDS)]]
  made = library.Tokenizer(models.Unigram(pieces, 0, byte_fallback=True))
  made.decoder = decoders.Sequence(
    [decoders.ByteFallback(), decoders.Metaspace()]
  )
  return kept_as(made)


def metaspace():
  made = library.Tokenizer(
    models.Unigram([(p, -1.0) for p in [*SPECIAL, *dict.fromkeys(WORDS)]], 0)
  )
  made.decoder = decoders.Metaspace()
  return kept_as(made)


def wordpiece():
  words = ["[UNK]", "</s>", "play", "##ing", "##s", "do", "not", "n", "'", "s"]
  words += [".", ",", "##.", "n't", "\xe9", "##\u4f60"]
  made = library.Tokenizer(
    models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]")
  )
  made.decoder = decoders.WordPiece()
  return kept_as(made)


def byte_level():
  made = library.Tokenizer(models.BPE())
  level = library.pre_tokenizers.ByteLevel
  made.pre_tokenizer = level(add_prefix_space=False)
  made.decoder = decoders.ByteLevel()
  trainer = library.trainers.BpeTrainer(
    vocab_size=300, special_tokens=SPECIAL, show_progress=False,
    initial_alphabet=level.alphabet(),
  )  # fmt: skip
  made.train_from_iterator([EMOJI + "one two \u4f60\xe9"] * 9, trainer)
  made.add_tokens(["\u2581\xe9", "<mark>"])
  return kept_as(made)


def byte_level_in_sequence():
  made = json.loads(byte_level()._model)
  strip = {"type": "Strip", "content": "o", "start": 1, "stop": 0}
  made["decoder"] = {"type": "Sequence", "decoders": [made["decoder"], strip]}
  text = json.dumps(made)
  return tokenizers.HuggingFace(text.encode(), "</s>", "sequence")


def exported():
  ours = sentences.train(TRAINING, 330, "small")
  text = vocabulary.files(ours, 64, LLAMA)["tokenizer.json"]
  return tokenizers.HuggingFace(text.encode(), sentences.EOT, "exported")


def lossless():
  return sentences.train(TRAINING, 330, "small")


def lossy(kind, **more):
  import sentencepiece

  out = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter("\n".join(TRAINING).splitlines()),
    model_writer=out, minloglevel=2, hard_vocab_limit=False, vocab_size=310,
    byte_fallback=True, model_type=kind, **more,
  )  # fmt: skip
  return sentences.SentencePiece(out.getvalue(), "lossy.model")


MAKE = {
  "bytes": tokenizers.Bytes,
  "lossless": lossless,
  "sentencepiece bpe": lambda: lossy("bpe"),
  "sentencepiece unigram": lambda: lossy("unigram"),
  "sentencepiece without prefix": lambda: lossy(
    "unigram", add_dummy_prefix=False
  ),
  "byte level": byte_level,
  "byte level in a sequence": byte_level_in_sequence,
  "llama": llama,
  "gemma": gemma,
  "two spaces stripped": two_spaces,
  "pieces apart": pieces_apart,
  "patterns": patterns,
  "suffixes": suffixes,
  "undecoded": undecoded,
  "unigram": unigram,
  "metaspace": metaspace,
  "wordpiece": wordpiece,
  "exported": exported,
}
MADE = functools.cache(lambda kind: MAKE[kind]())
FALLBACK = ("llama", "gemma", "unigram")


def streamed(tokenizer, ids, after=()):
  """The text of the ids, as it came."""
  decoder = Decoder(tokenizer, after)
  return [decoder.push(i) for i in ids] + [decoder.flush()]


def spelled(tokenizer, text):
  """Ids of the bytes of a text, in a tokenizer with byte fallback."""
  return [tokenizer._hf.token_to_id(BYTES[b]) for b in text.encode()]


# Small numbers mean ids of bytes of characters more often than chance would.
PARTS = st.one_of(
  st.lists(st.integers(0, 1000), max_size=6),
  st.lists(st.integers(0, 30), max_size=6),
  st.sampled_from([EMOJI, "\u4f60", "\xe9", "a", "\n", "\xe9\u4f60"]),
)


@st.composite
def any_ids(draw, tokenizer):
  """Ids of words, special ones, whole characters in bytes, and halves."""
  ids = []
  for part in draw(st.lists(PARTS, max_size=6)):
    if isinstance(part, str):
      part = tokenizer.encode(part).tolist()
      part = part[: draw(st.integers(1, 9))]
    # Some ids more than there are: a model's table may be wider.
    ids += [i % (tokenizer.vocab + 2) for i in part]
  return ids


@pytest.mark.parametrize("kind", MAKE)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_streamed_text_is_the_text_of_all_ids(kind, data):
  tokenizer = MADE(kind)
  ids = data.draw(any_ids(tokenizer))
  whole = tokenizer.decode(np.array(ids, np.int64))
  assert "".join(streamed(tokenizer, ids)) == whole


@pytest.mark.parametrize("kind", MAKE)
@settings(max_examples=40, deadline=None)
@given(
  prompt=st.text("ab \n\xe9\u4f60", max_size=6), data=st.data()
)  # fmt: skip
def test_a_continuation_is_the_rest_of_the_text(kind, prompt, data):
  tokenizer = MADE(kind)
  before = [tokenizer.eot, *tokenizer.encode(prompt).tolist()]
  ids = data.draw(any_ids(tokenizer))
  first, whole = tokenizer.decode(before), tokenizer.decode([*before, *ids])
  # Bytes that spoil a run change the prompt's characters too; these are out.
  if whole.startswith(first):
    assert "".join(streamed(tokenizer, ids, before)) == whole[len(first) :]


@pytest.mark.parametrize("kind", FALLBACK)
@pytest.mark.parametrize(
  "text", [EMOJI * 2, "\U0001f1e9\U0001f1ea", "\u4f60" * 12]
)
def test_characters_spelled_in_bytes_come_out_whole(kind, text):
  tokenizer = MADE(kind)
  ids = spelled(tokenizer, text)
  assert "".join(streamed(tokenizer, ids)) == text
  word = tokenizer._hf.token_to_id("hi")
  parts = streamed(tokenizer, [*ids, word], after=ids)
  assert "".join(parts) == text + "hi"
  assert "".join(streamed(tokenizer, [word], after=ids)) == "hi"


@pytest.mark.parametrize("kind", ["llama", "metaspace", "unigram"])
def test_a_space_after_a_special_id_in_mid_text_is_kept(kind):
  tokenizer = MADE(kind)
  word, the = (tokenizer._hf.token_to_id(w) for w in ("word", "\u2581the"))
  ids = [word, tokenizer.eot, the]
  assert "".join(streamed(tokenizer, ids)) == "word the"
  assert "".join(streamed(tokenizer, [tokenizer.eot, the], [word])) == " the"


@pytest.mark.parametrize("kind", [k for k in MAKE if k != "suffixes"])
def test_words_come_out_before_the_end(kind):
  tokenizer = MADE(kind)
  ids = tokenizer.encode("a one the word a, aa") if kind != "wordpiece" else []
  ids = [*ids, *range(2, 10)] if not len(ids) else ids
  decoder = Decoder(tokenizer)
  assert "".join(decoder.push(i) for i in ids)
