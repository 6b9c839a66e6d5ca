"""Damaged folders of transformers: configs, weights, tokenizers, templates.

As of text in test_hostile_files.py: each is read or refused.
"""

import contextlib
import functools
import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from flax import traverse_util

from aigc_jax import data, export, hf
from aigc_jax.data import masking, special
from aigc_jax.data.tokenizers import LOADERS
from aigc_jax.errors import BadData, Refusal
from aigc_jax.hf import kinds, vocabulary
from aigc_jax.hf.families import FAMILIES
from aigc_jax.run.drawing import note_pixels, pixels_in
from aigc_jax.sampling import chat
from aigc_jax.sampling.text import prompt_ids
from tests import images, seq2seq, sound, tiny
from tests import kinds as tiny_kinds
from tests.hf.test_families import FITS, YARN
from tests.hostile import Format, laws, unheard

library = pytest.importorskip("tokenizers", reason="needs aigc_jax[hf]")
spelling = pytest.importorskip("tests.data.test_spelling")

# Configs and weights.

MODELS = {
  "vit": images.VIT,
  "resnet": images.RESNET | dict(stem="large"),
  "clip": tiny_kinds.CLIP,
  "siglip": tiny_kinds.SIGLIP,
  "whisper": sound.WHISPER,
  "t5": seq2seq.STYLES["t5"],
  "marian": seq2seq.STYLES["marian"] | dict(head_dim=6),
  "bert": tiny_kinds.ENCODER | dict(position_start=0),
  "roberta": tiny_kinds.ENCODER,
  "distilbert": tiny_kinds.ENCODER | dict(position_start=0, types=0),
}
# One decoder of each family, the first that fits it, and ways to turn further.
for kwargs, name in FITS.values():
  MODELS.setdefault(name, kwargs)
ROTARY = {
  "llama 3": FITS["llama 3"],
  "dynamic": FITS["dynamic"],
  "longrope": FITS["longrope"],
  "yarn": (
    tiny.LLAMA | dict(rotary_scaling=YARN, position_length=256),
    "llama",
  ),
}


# Of those that are much alike, at every change.
FIRST = ("vit", "clip", "whisper", "marian", "bert", "llama", "longrope")
PIXELS = {
  "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255,
  "do_normalize": True,
}  # fmt: skip


def model_folder(name: str, folder: Path, shard_bytes: int = 10**9) -> None:
  kwargs, of = ROTARY[name] if name in ROTARY else (MODELS[name], name)
  family = FAMILIES[of]
  kwargs = {k: x for k, x in kwargs.items() if k != "kind"}
  kwargs = kinds.known(family.kind, kwargs)
  flat = {
    path: np.zeros(shape, np.float32)
    for path, shape in shapes_of(family.kind, kwargs).items()
  }
  params = traverse_util.unflatten_dict(flat, sep="/")
  special = {} if name in ("vit", "resnet") else {"eos_token_id": 0}
  hf.write(
    folder, params, kwargs, family=family, dtype="float32",
    shard_bytes=shard_bytes, special=special,
  )  # fmt: skip
  write_pixels(folder)


def write_pixels(folder: Path) -> None:
  (folder / "preprocessor_config.json").write_text(json.dumps(PIXELS))


TRACED: dict[str, dict] = {}
trace = kinds.shapes_of


def shapes_of(kind: str, kwargs: dict) -> dict:
  """`kinds.shapes_of`, which is most of the time, once for equal keywords."""
  key = repr((kind, sorted(kwargs.items())))
  if key not in TRACED:
    TRACED[key] = trace(kind, kwargs)
  return dict(TRACED[key])


def load_model(folder: Path) -> None:
  with mock.patch.object(kinds, "shapes_of", shapes_of):
    hf.load(folder)


def of_model(name: str, file: str, few: int = 6) -> Format:
  return Format(functools.partial(model_folder, name), file, load_model, few)


def in_parts(file: str) -> Format:
  """Of a model whose weights are in several files."""
  good = functools.partial(model_folder, "llama", shard_bytes=16_000)
  return Format(good, file, load_model, few=6)


def whisper_folder(folder: Path) -> None:
  model_folder("whisper", folder)
  made = export.sound_files(sound.WHISPER | {"seconds": 30})
  for name, text in made.items():
    (folder / name).write_text(text)


# Tokenizers.

SAID = {
  "tokenizer_config.json": {
    "eos_token": "</s>", "bos_token": {"content": "<s>", "lstrip": False},
    "tokenizer_class": "LlamaTokenizerFast", "model_max_length": 64,
    "mask_token": "<unk>", "add_bos_token": True,
    "additional_special_tokens": ["<s>"],
    "added_tokens_decoder": {"1": {"content": "<s>", "special": True}},
    "chat_template": [
      {"name": "tools", "template": "x"},
      {"name": "default", "template": "{{ messages }}"},
    ],
  },
  "special_tokens_map.json": {
    "eos_token": {"content": "</s>"}, "unk_token": "<unk>",
  },
  "generation_config.json": {
    "eos_token_id": [2, 1], "pad_token_id": None, "top_p": 0.9,
    "do_sample": True,
  },
  "chat_template.json": {"chat_template": "{{ messages }}"},
  "config.json": {
    "eos_token_id": 2, "bos_token_id": 1, "model_type": "llama",
    "max_position_embeddings": 64,
  },
}  # fmt: skip
TEXT = "hi the word, playing \u4f60\xe9 </s> 12\n"


def tokenizer_folder(folder: Path, kind: str = "llama") -> None:
  made = spelling.MADE(kind)
  (folder / "tokenizer.json").write_bytes(made.files()["tokenizer.json"])
  for name, values in SAID.items():
    (folder / name).write_text(json.dumps(values))
  (folder / "chat_template.jinja").write_text("{{ messages }} \xe9")


def use(tokenizer) -> None:
  """All that commands ask of a tokenizer."""
  ids = tokenizer.encode(TEXT)
  assert ids.dtype == np.int32 and ids.max(initial=0) < tokenizer.vocab
  assert isinstance(tokenizer.decode(ids), str)
  assert data.bytes_of(tokenizer, ids) >= 0
  decoder = data.Decoder(tokenizer, after=ids[:1].tolist())
  parts = [decoder.push(i) for i in [*ids, tokenizer.eot, 3, 5, 4]]
  assert all(isinstance(x, str) for x in (*parts, decoder.flush()))
  assert prompt_ids(tokenizer, TEXT, special=True, end=True)
  assert all(type(i) is int for i in special.stops(tokenizer))
  config = {"data": {"length": 8}, "init_from": "hf:x"}
  assert export.length_of(config, tokenizer) >= 8
  for ask in (
    lambda: masking.ids_of(tokenizer),
    lambda: chat.template_of(tokenizer),
    lambda: vocabulary.files(tokenizer, 64, FAMILIES["llama"]),
    lambda: vocabulary.files(tokenizer, 64, FAMILIES["bert"]),
  ):
    with contextlib.suppress(Refusal):
      ask()


def read_tokenizer(folder: Path) -> None:
  use(data.load_tokenizer(f"hf:{folder}"))


def read_saved(folder: Path) -> None:
  use(data.load(folder))


def saved_tokenizer(folder: Path) -> None:
  tokenizer_folder(folder)
  made = data.load_tokenizer(f"hf:{folder}")
  for name in SAID:
    (folder / name).unlink()
  data.save(made, folder)


def read_altered(folder: Path) -> None:
  """By somebody who put the right fingerprint into the manifest."""
  path = folder / "manifest.json"
  manifest = json.loads(path.read_text())
  model = (folder / "tokenizer.json").read_bytes()
  manifest["fingerprint"] = LOADERS["hf"][1](model, manifest)
  path.write_text(json.dumps(manifest))
  read_saved(folder)


def pieces(kind: str) -> Format:
  """A SentencePiece model that a config names."""
  return Format(
    lambda folder: (folder / "x.model").write_bytes(
      spelling.MADE(kind).files()["tokenizer.model"]
    ),
    "x.model",
    lambda folder: use(data.load_tokenizer(str(folder / "x.model"))),
    few=20,
  )


FORMATS = {
  "pixels of a model": Format(
    write_pixels, "preprocessor_config.json",
    lambda folder: pixels_in(str(folder)),
  ),
  "ears of a model": Format(
    whisper_folder, "preprocessor_config.json", load_model, few=20
  ),
  "weights of a model": of_model("vit", "model.safetensors", few=20),
  "weights that are tied": of_model("bert", "model.safetensors", few=20),
  "weights in parts": in_parts("model-00001-of-*.safetensors"),
  "index of weights": in_parts("model.safetensors.index.json"),
  "saved tokenizer's manifest": Format(
    saved_tokenizer, "manifest.json", read_saved, few=20
  ),
  "saved tokenizer": Format(
    saved_tokenizer, "tokenizer.json", read_altered, few=20
  ),
  "pieces without loss": pieces("lossless"),
  "pieces of BPE": pieces("sentencepiece bpe"),
  "pieces of unigram": pieces("sentencepiece unigram"),
}  # fmt: skip
FORMATS |= {
  f"config of {name}": of_model(name, "config.json", 6 * (name in FIRST))
  for name in (*MODELS, *ROTARY)
}
FORMATS |= {
  f"tokenizer.json, {kind}": Format(
    functools.partial(tokenizer_folder, kind=kind), "tokenizer.json",
    read_tokenizer, few=20,
  )
  for kind in ("byte level", "llama", "unigram", "metaspace", "wordpiece")
}  # fmt: skip
FORMATS |= {
  f"{file} beside a tokenizer": Format(
    tokenizer_folder, file, read_tokenizer, few=20
  )
  for file in (*SAID, "chat_template.jinja")
}


@pytest.mark.parametrize(
  "change",
  [{"sampling_rate": 8000}, {"hop_length": 80}, {"n_fft": "x"},
   {"feature_size": 80}],
)  # fmt: skip
def test_ears_that_hear_otherwise_are_refused_by_key(change, tmp_path):
  model_folder("whisper", tmp_path)
  path = tmp_path / "preprocessor_config.json"
  path.write_text(
    export.sound_files(sound.WHISPER | {"seconds": 30})[path.name]
  )
  load_model(tmp_path)
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(BadData, match=next(iter(change))):
    load_model(tmp_path)


@pytest.mark.parametrize(
  "other, told",
  [
    (None, False), ({"mean": [0.5] * 3, "std": [0.5] * 3}, False),
    ({"mean": [0.4] * 3, "std": [0.5] * 3}, True),
    ({"mean": [0.5], "std": [0.5]}, True), ({"mean": "x", "std": 3}, False),
  ],
)  # fmt: skip
def test_pixels_of_another_scale_are_told_where_a_run_begins(
  other, told, caplog
):
  own = {"data": {"mean": [0.5] * 3, "std": [0.5] * 3}}
  note_pixels("hf:x", other, own)
  assert ("scaled otherwise" in caplog.text) == told


@pytest.mark.parametrize(
  "change, words",
  [
    ({"image_std": [0.5, 0.5, 0.0]}, "above 0"),
    ({"image_std": [0.5]}, "a number for each channel"),
    ({"image_mean": [], "image_std": []}, "a number for each channel"),
    ({"do_rescale": False}, "pixels go to 255"),
    ({"rescale_factor": 1.0}, "expected 1 / 255"),
  ],
)
def test_pixels_that_are_scaled_otherwise_are_refused(change, words, tmp_path):
  pixels = PIXELS | change
  (tmp_path / "preprocessor_config.json").write_text(json.dumps(pixels))
  with pytest.raises(BadData, match=words):
    pixels_in(str(tmp_path))


def test_pixels_that_are_not_normalised_are_taken_as_they_are(tmp_path):
  pixels = PIXELS | {"do_normalize": False}
  (tmp_path / "preprocessor_config.json").write_text(json.dumps(pixels))
  assert pixels_in(str(tmp_path)) == dict(mean=[0.0] * 3, std=[1.0] * 3)


def test_an_id_beyond_all_vocabularies_is_refused(tmp_path):
  """A table of so many ids would take all memory."""
  tokenizer_folder(tmp_path)
  path = tmp_path / "tokenizer.json"
  made = json.loads(path.read_text())
  made["model"]["vocab"]["word"] = 2**31
  path.write_text(json.dumps(made))
  with pytest.raises(BadData, match="largest id is 2147483648"):
    data.load_tokenizer(f"hf:{tmp_path}")


def test_words_that_a_vocabulary_lacks_are_refused_without_a_piece(tmp_path):
  tokenizer_folder(tmp_path, "wordpiece")
  path = tmp_path / "tokenizer.json"
  made = json.loads(path.read_text())
  made["model"]["vocab"] = {"</s>": 0, "play": 1}
  made["added_tokens"] = []
  path.write_text(json.dumps(made))
  tokenizer = data.load_tokenizer(f"hf:{tmp_path}")
  assert tokenizer.encode("play").tolist() == [1]
  for encode in (tokenizer.encode, tokenizer.encode_special):
    with pytest.raises(BadData, match="its tokenizer.json fails: WordPiece"):
      encode("word")


def test_a_piece_that_is_no_text_is_refused(tmp_path):
  model = spelling.MADE("lossless").files()["tokenizer.model"]
  path = tmp_path / "x.model"
  path.write_bytes(model.replace("\u2581".encode(), b"\xe2\x96\xff"))
  with pytest.raises(BadData, match="not a SentencePiece model"):
    data.load_tokenizer(str(path))


(
  test_a_damaged_file_is_read_or_refused,
  test_ten_thousand_damaged_files_are_read_or_refused,
) = laws(FORMATS)
