"""init_from: whatever makes the weights mean something else is refused."""

import shutil

import pytest

from aigc_jax import hf, run
from aigc_jax.data import load_tokenizer
from aigc_jax.errors import BadConfig
from aigc_jax.run.load import differences
from tests import tiny

CHANGES = {
  "rotary_base": 5e5, "norm_eps": 1e-6, "activation": "gelu", "vocab": 41,
  "norm_offset": 1.0, "windows": (3,), "logit_softcap": 30.0, "dim": 48,
  "attention_softcap": 9.0, "embed_scale": True, "attention_scale": 0.7,
  "rotary_scaling": dict(kind="linear", factor=2.0),
}  # fmt: skip
SAME = {
  "dropout": 0.1, "dtype": "bfloat16", "remat": "full", "unroll": 0,
  "kernel": "chunked", "init_std": 0.3, "position_length": 99,
  "windows": (None,), "rotary_local_base": 3.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("origin")
  hf.write(
    path, tiny.params_of("llama"), tiny.LLAMA,
    family=hf.choose_family(tiny.LLAMA), dtype="float32", shard_bytes=10**9,
    special=dict(bos_token_id=0, eos_token_id=0),
  )  # fmt: skip
  return path


def config(folder, tokenizer="bytes", **changes):
  model = dict(kind="decoder") | tiny.LLAMA | changes
  data = dict(tokenizer=tokenizer)
  return dict(init_from=f"hf:{folder}", model=model, data=data)


@pytest.mark.parametrize("key", CHANGES)
def test_a_key_that_changes_the_decoder_is_refused_with_its_remedy(folder, key):
  with pytest.raises(BadConfig) as error:
    run.check_origin(config(folder, **{key: CHANGES[key]}))
  assert f"model.{key}={CHANGES[key]!r}" in str(error.value)
  assert f"config.model.{key}" in str(error.value).split(": ", 2)[-1]


@pytest.mark.parametrize("key", SAME)
def test_a_key_that_does_not_change_it_is_free(folder, key):
  run.check_origin(config(folder, **{key: SAME[key]}))


def test_a_width_of_heads_left_to_the_others_is_the_same():
  own = tiny.LLAMA | dict(head_dim=4)
  assert not differences(own | dict(head_dim=0), own)


def test_the_tokenizer_is_that_of_the_folder_where_it_has_one(folder, tmp_path):
  tokenizers = pytest.importorskip("tokenizers")
  run.check_origin(config(folder), load_tokenizer("bytes"))
  whole = tmp_path / "whole"
  shutil.copytree(folder, whole)
  words = {"a": 0, "</s>": 1}
  made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "a"))
  made.add_special_tokens(["</s>"])
  made.save(str(whole / "tokenizer.json"))
  run.check_origin(config(whole), load_tokenizer(f"hf:{whole}"))
  with pytest.raises(BadConfig, match=f"data.tokenizer=hf:{whole}"):
    run.check_origin(config(whole), load_tokenizer("bytes"))
