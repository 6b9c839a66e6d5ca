"""Tokenizers: text comes back as it was; decoding never cuts a character."""

import json
import os
import pickle

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aigc_jax import data
from aigc_jax.data import sentences
from aigc_jax.data.tokenizers import Bytes, HuggingFace
from aigc_jax.errors import BadConfig, BadData
from tests.data.texts import prose

HARD = (
  "<s></s><unk><pad><0x41><|endoftext|>",
  "\u2581 \u2581\u2581a \u2581",
  "\x10 \x10u \x10\x10 \x10\u2581\x10",
  "\x00\x00a\x00",
  "   a    b\t\t\n\n\n  \r\n ",
  "\u2585\u2047\ue000\U0010ffff\ufeff\ufffd",
  "e\u0301 \u00e9 \ufb01 \u2163 \u3000 \u00a0",
  "🙂👩‍👩‍👧‍👧 数据 straße",
  " " * 5000,
  "x" * 9000,
)
TEXT = st.text(max_size=60) | st.text(alphabet="\u2581\x10u <s>/\n\t\0é🙂")


def hard(function):
  for text in HARD:
    function = example(text=text)(function)
  return function


@hard
@settings(max_examples=150, deadline=None)
@given(text=TEXT)
def test_a_trained_tokenizer_gives_any_text_back(trained, text):
  ids = trained.encode(text)
  assert trained.decode(ids) == text
  assert trained.decode_bytes(ids) == text.encode()
  assert trained.eot not in ids
  assert not len(ids) or 0 <= ids.min() <= ids.max() < trained.vocab


@hard
@settings(max_examples=100, deadline=None)
@given(text=TEXT)
def test_the_bytes_tokenizer_gives_any_text_back(text):
  assert Bytes().decode(Bytes().encode(text)) == text


@settings(max_examples=100, deadline=None)
@given(raw=st.binary(max_size=80))
def test_the_bytes_tokenizer_gives_any_bytes_back(raw):
  ids = Bytes().encode_bytes(raw)
  assert Bytes().decode_bytes(ids) == raw
  assert Bytes().decode(ids) == raw.decode("utf-8", "replace")


@hard
@settings(max_examples=100, deadline=None)
@given(text=TEXT)
def test_decoding_as_ids_come_is_decoding_at_once(trained, text):
  for tokenizer in (trained, Bytes()):
    decoder = data.Decoder(tokenizer)
    parts = [decoder.push(i) for i in tokenizer.encode(text)]
    for part in parts:
      assert "\ufffd" in text or "\ufffd" not in part
    assert "".join(parts) + decoder.flush() == text


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 499), max_size=30))
def test_any_ids_decode_alike_at_once_and_as_they_come(trained, ids):
  decoder = data.Decoder(trained)
  text = "".join([decoder.push(i) for i in ids]) + decoder.flush()
  assert text == trained.decode(np.array(ids, np.int32))


def test_the_decoder_holds_half_a_character_back():
  decoder = data.Decoder(Bytes())
  assert [decoder.push(b) for b in "é".encode()] == ["", "é"]
  assert decoder.push(0xC3) == ""
  assert decoder.flush() == "\ufffd"


def test_documents_encode_alike_alone_and_together(trained):
  texts = ["a b\n" * 700, "", "数据 🙂", "one two"]
  together = trained.encode_documents(texts)
  for text, ids in zip(texts, together, strict=True):
    assert np.array_equal(ids, trained.encode(text))


def test_bytes_of_ids_are_the_bytes_of_the_text(trained):
  text = "straße 数据  def x1:\n\t🙂"
  for tokenizer in (trained, Bytes()):
    ids = tokenizer.encode(text)
    assert data.bytes_of(tokenizer, ids) == len(text.encode())
    assert data.bytes_of(tokenizer, [tokenizer.eot]) == 0


def test_lone_surrogates_become_replacement_characters(trained):
  assert trained.decode(trained.encode("a\ud800b")) == "a\ufffdb"
  assert Bytes().decode(Bytes().encode("a\ud800b")) == "a?b"


def test_the_same_text_trains_the_same_model(trained):
  texts = ["".join(map(chr, range(32, 120))) + " one two\n"] * 40
  first, second = (sentences.train(texts, 320, "x") for _ in range(2))
  assert first.fingerprint == second.fingerprint != trained.fingerprint


def test_a_vocabulary_too_large_for_the_text_names_what_would_do():
  with pytest.raises(BadConfig, match=r"tokenizer_vocab=5000.*=\d+ or less"):
    sentences.train(["one two three four five six " * 9], 5000, "small")
  with pytest.raises(BadConfig, match="at least 300"):
    sentences.train(["one two three"], 64, "small")
  with pytest.raises(BadData, match="no text"):
    sentences.train([" \n"], 400, "empty")


def test_a_tokenizer_of_many_characters_keeps_room_for_words():
  text = "".join(chr(0x4E00 + i) for i in range(3000)) + "one two three " * 300
  made = sentences.train([text], 400, "han")
  assert made.decode(made.encode(text)) == text
  assert len(made.encode(" three")) <= 2


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece", "hf"])
def test_a_saved_tokenizer_is_loaded_as_the_same(kind, trained, hf, tmp_path):
  tokenizer = {"bytes": Bytes(), "sentencepiece": trained, "hf": hf}[kind]
  data.save(tokenizer, tmp_path / "t")
  for found in (
    data.load(tmp_path / "t"),
    data.load_tokenizer(f"{tmp_path}/t"),
  ):
    assert found.fingerprint == tokenizer.fingerprint
    assert (found.kind, found.vocab, found.eot) == (
      tokenizer.kind, tokenizer.vocab, tokenizer.eot,
    )  # fmt: skip
    text = "one two three"
    assert np.array_equal(found.encode(text), tokenizer.encode(text))


def test_a_changed_tokenizer_is_refused(trained, tmp_path):
  data.save(trained, tmp_path)
  path = tmp_path / "tokenizer.model"
  path.write_bytes(path.read_bytes().replace(b"the", b"eht"))
  with pytest.raises(BadData, match="not the one that its manifest names"):
    data.load(tmp_path)


def test_a_trained_model_is_lossless_as_a_file_too(trained, tmp_path):
  path = tmp_path / "x.model"
  path.write_bytes(trained.files()["tokenizer.model"])
  found = data.load_tokenizer(str(path))
  assert found.lossless and found.fingerprint == trained.fingerprint
  assert found.decode(found.encode(HARD[1])) == HARD[1]


def test_an_ordinary_model_is_used_as_it_is(tmp_path):
  import sentencepiece

  prefix = tmp_path / "plain"
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["one two three four five"] * 9),
    model_prefix=str(prefix),
    vocab_size=24,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  found = data.load_tokenizer(f"{prefix}.model")
  assert not found.lossless
  assert found.decode(found.encode("two  one")) == "two one"
  assert found.eot == 2  # its </s>
  decoder = data.Decoder(found)
  text = "".join(decoder.push(i) for i in found.encode("two one"))
  assert (text + decoder.flush()).strip() == "two one"


def test_tokenizers_can_be_sent_to_workers(trained, hf):
  for tokenizer in (trained, hf, Bytes()):
    found = pickle.loads(pickle.dumps(tokenizer))
    assert np.array_equal(found.encode("one two"), tokenizer.encode("one two"))


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory):
  """A byte-level BPE tokenizer.json, made here."""
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

  folder = tmp_path_factory.mktemp("hf")
  made = Tokenizer(models.BPE())
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = decoders.ByteLevel()
  made.train_from_iterator(
    ["one two three 数据"] * 9,
    trainers.BpeTrainer(
      vocab_size=300,
      special_tokens=["<|endoftext|>"],
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      show_progress=False,
    ),
  )
  made.save(str(folder / "tokenizer.json"))
  return folder


@pytest.fixture(scope="module")
def hf(hf_folder):
  return data.load_tokenizer(f"hf:{hf_folder}")


@pytest.mark.parametrize("text", ["one two", "数据 🙂 é\n", "<|endoftext|>"])
def test_a_hugging_face_tokenizer_reads_special_words_as_text(hf, text):
  ids = hf.encode(text)
  assert hf.eot not in ids
  assert hf.decode(ids) == text
  assert data.bytes_of(hf, ids) == len(text.encode())
  decoder = data.Decoder(hf)
  parts = [decoder.push(i) for i in ids] + [decoder.flush()]
  assert "".join(parts) == text and "\ufffd" not in "".join(parts)


def test_the_end_of_text_of_a_hugging_face_folder_is_its_eos(
  hf_folder, tmp_path
):
  model = (hf_folder / "tokenizer.json").read_bytes()
  (tmp_path / "tokenizer.json").write_bytes(model)
  config = tmp_path / "tokenizer_config.json"
  config.write_text(json.dumps({"eos_token": {"content": "!"}}))
  found = data.load_tokenizer(f"hf:{tmp_path}")
  assert found.decode([found.eot]) == "!"
  config.write_text(json.dumps({"eos_token": "<nowhere>"}))
  with pytest.raises(BadData, match="not in its vocabulary"):
    data.load_tokenizer(f"hf:{tmp_path}")


def test_a_hostile_folder_is_refused_unread(tmp_path):
  path = tmp_path / "tokenizer.json"
  for text, words in {
    '{"a":' + "[" * 100_000 + "]" * 100_000 + "}": "too deep",
    '{"added_tokens": 5}': "expected a list",
    '{"added_tokens": [{"content": []}]}': "no end-of-text",
    '{"a": 1, "a": 2}': "twice",
  }.items():
    path.write_text(text)
    with pytest.raises(BadData, match=words):
      data.load_tokenizer(f"hf:{tmp_path}")
  (tmp_path / "x.model").symlink_to("fifo")
  os.mkfifo(tmp_path / "fifo")
  path.unlink()
  path.symlink_to("/etc/hostname")
  with pytest.raises(BadData, match="outside its folder"):
    data.load_tokenizer(f"hf:{tmp_path}")
  path.unlink()
  os.mkfifo(path)
  for spec in (f"hf:{tmp_path}", f"{tmp_path}/x.model"):
    with pytest.raises(BadData, match="not a regular file"):
      data.load_tokenizer(spec)


@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.model"])
def test_no_link_is_followed_out_of_a_saved_tokenizer(tmp_path, name):
  made = sentences.train([prose(3, 400)], 300, "x")
  data.save(made, tmp_path / "t")
  assert data.load(tmp_path / "t").fingerprint == made.fingerprint
  (tmp_path / "t" / name).rename(tmp_path / name)
  (tmp_path / "t" / name).symlink_to(tmp_path / name)
  with pytest.raises(BadData, match=f"{name} is a link to .*cp -rL"):
    data.load(tmp_path / "t")


def test_what_is_no_tokenizer_is_refused(tmp_path):
  with pytest.raises(BadConfig, match="did you mean 'bytes'"):
    data.load_tokenizer("byte")
  with pytest.raises(BadData, match="cannot be read"):
    data.load_tokenizer(str(tmp_path / "none.model"))
  with pytest.raises(BadData, match="cannot be read"):
    data.load_tokenizer(f"hf:{tmp_path}")
  (tmp_path / "x.model").write_bytes(b"no model")
  with pytest.raises(BadData, match="not a SentencePiece model"):
    data.load_tokenizer(str(tmp_path / "x.model"))
  with pytest.raises(BadData, match="not a tokenizer.json"):
    HuggingFace(b"{}", "</s>", "x")
  (tmp_path / "manifest.json").write_text('{"kind": "pickle"}')
  with pytest.raises(BadData, match="unknown tokenizer kind"):
    data.load(tmp_path)


@pytest.mark.parametrize("spec", ["", " ", "hf:", "hf: "])
def test_an_empty_name_is_no_tokenizer(spec):
  with pytest.raises(BadConfig, match="names none: expected 'bytes'"):
    data.load_tokenizer(spec)
