"""An export is whole and the same as the run, or it is not there."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from aigc_jax import export, hf
from aigc_jax.data import tokenizers
from aigc_jax.errors import BadConfig, BadData, StorageFailure
from aigc_jax.hf import card, safetensors
from aigc_jax.hf.settings import canonical
from aigc_jax.models import decoder
from tests import commands, fresh, tiny
from tests.data import test_spelling as spelling
from tests.sweep import sweep

KWARGS = tiny.LLAMA | dict(vocab=257, tied=True)


@pytest.fixture(scope="module")
def params():
  return made(KWARGS)


def made(kwargs):
  """Parameters of a decoder, none of them 0 or 1."""
  model = decoder(**kwargs)
  tokens = {"tokens": jnp.zeros((1, 2), jnp.int32)}
  params = fresh.variables(model, tokens)["params"]
  return jax.tree.map(tiny.perturbed, params)


def exported(params, out, **more):
  kwargs = more.pop("kwargs", KWARGS)
  tokenizer = more.pop("tokenizer", tokenizers.Bytes())
  return export.export(params, kwargs, tokenizer, out, length=64, **more)


def names(folder):
  return sorted(p.name for p in folder.iterdir())


def test_a_folder_has_all_that_transformers_looks_for(params, tmp_path):
  found = exported(params, tmp_path / "out")
  assert names(tmp_path) == ["out"]
  assert names(tmp_path / "out") == [
    "README.md", "config.json", "generation_config.json", "model.safetensors",
    "tokenizer.json", "tokenizer_config.json",
  ]  # fmt: skip
  assert found["family"] == "llama"
  assert found["difference"] == found["rounding"] == 0
  config = json.loads((tmp_path / "out" / "config.json").read_text())
  assert config["eos_token_id"] == 256
  assert config["max_position_embeddings"] == 64
  assert (tmp_path / "out").stat().st_mode & 0o077


def test_what_was_exported_is_imported_as_it_was(params, tmp_path):
  exported(params, tmp_path / "out", shard_bytes=9000)
  again = hf.load(tmp_path / "out")
  assert canonical(again.kwargs) == canonical(KWARGS)
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params
  )
  jax.tree.map(
    np.testing.assert_array_equal, params, hf.read_params(again, abstract)
  )


@pytest.mark.slow
def test_bfloat16_is_half_as_large_and_told_how_far(params, tmp_path):
  whole = exported(params, tmp_path / "a")
  half = exported(params, tmp_path / "b", dtype="bfloat16")
  assert half["bytes"] < 0.6 * whole["bytes"]
  assert half["difference"] == 0 < half["rounding"] < 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
  "style", sweep(["gpt2", "mistral", "qwen2", "qwen3"], "gpt2")
)
def test_every_style_with_a_family_is_exported(style, tmp_path):
  kwargs = tiny.STYLES[style] | dict(vocab=260)  # more than there are ids
  found = exported(made(kwargs), tmp_path / "out", kwargs=kwargs)
  assert found["family"] == style


@pytest.mark.parametrize(
  "broken",
  [
    lambda path, shapes, tensors: path.write_bytes(b"{}"),
    lambda path, shapes, tensors: safetensors_of_noise(path, shapes, tensors),
  ],
  ids=["no safetensors", "another number"],
)
def test_what_reads_back_different_is_not_kept(
  params, tmp_path, monkeypatch, broken
):
  monkeypatch.setattr(safetensors, "write", broken)
  with pytest.raises(BadData):
    exported(params, tmp_path / "out")
  assert names(tmp_path) == []


WRITE = safetensors.write


def safetensors_of_noise(path, shapes, tensors):
  """One bit of one tensor is wrong."""

  def wrong(name, make):
    array = np.array(make())
    if name == "model.norm.weight":
      array[1] = np.nextafter(array[1], np.float32(9))
    return array

  WRITE(path, shapes, [(n, lambda n=n, m=m: wrong(n, m)) for n, m in tensors])


def test_a_full_disk_leaves_nothing(params, tmp_path, monkeypatch):
  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(safetensors, "write", full)
  with pytest.raises(StorageFailure, match="No space left"):
    exported(params, tmp_path / "out")
  assert names(tmp_path) == []


def test_an_interruption_leaves_nothing(params, tmp_path, monkeypatch):
  def interrupted(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(export, "compare", interrupted)
  with pytest.raises(KeyboardInterrupt):
    exported(params, tmp_path / "out")
  assert names(tmp_path) == []


def test_weights_that_are_not_numbers_are_not_exported(params, tmp_path):
  params = dict(
    params, norm={"scale": params["norm"]["scale"].at[0].set(jnp.nan)}
  )
  with pytest.raises(BadData, match="NaN"):
    exported(params, tmp_path / "out")
  assert names(tmp_path) == []


def test_what_exists_is_not_written_over(params, tmp_path):
  (tmp_path / "out").mkdir()
  with pytest.raises(BadConfig, match="exists"):
    exported(params, tmp_path / "out")
  with pytest.raises(BadConfig, match="--dtype"):
    exported(params, tmp_path / "new", dtype="float8")
  with pytest.raises(BadConfig, match="model.gated=False"):
    exported(params, tmp_path / "new", kwargs=KWARGS | dict(gated=False))
  with pytest.raises(BadConfig, match="do not belong together"):
    exported(params, tmp_path / "new", kwargs=KWARGS | dict(vocab=200))
  assert names(tmp_path) == ["out"]


LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def llama3():
  """Byte-level pieces, cut as Llama 3 cuts a text."""
  import tokenizers as library

  cut = library.pre_tokenizers
  made = library.Tokenizer(library.models.BPE())
  level = cut.ByteLevel(add_prefix_space=False, use_regex=False)
  split = cut.Split(library.Regex(LLAMA3), "isolated")
  made.pre_tokenizer = cut.Sequence([split, level])
  made.decoder = library.decoders.ByteLevel()
  trainer = library.trainers.BpeTrainer(
    vocab_size=300, special_tokens=["</s>"], show_progress=False,
    initial_alphabet=level.alphabet(),
  )  # fmt: skip
  made.train_from_iterator(["123456 .\n\n\n (word IT'S"] * 9, trainer)
  return made.to_str().encode()


def pieces_of(name):
  """A tokenizer as of a folder that names a class for it."""
  model = llama3()
  if name == "LlamaTokenizer":
    model = spelling.MADE("llama").files()["tokenizer.json"]
  said = dict(tokenizer_class=name, eos_token="</s>")
  beside = {"tokenizer_config.json": json.dumps(said).encode()}
  return tokenizers.HuggingFace(model, "</s>", "x", beside)


@pytest.mark.slow
@pytest.mark.parametrize(
  "name", sweep(["LlamaTokenizer", "GPT2Tokenizer"], "LlamaTokenizer")
)
def test_auto_tokenizer_gives_the_ids_that_the_run_had(name, tmp_path):
  """transformers 5 makes some classes anew, with another cut of the text."""
  transformers = pytest.importorskip("transformers", reason="needs [parity]")
  tokenizer, said = pieces_of(name), []
  kwargs, out = KWARGS | dict(vocab=320), tmp_path / "out"
  exported(
    made(kwargs), out, kwargs=kwargs, tokenizer=tokenizer, say=said.append
  )
  theirs = transformers.AutoTokenizer.from_pretrained(out)
  for text in ("a  b", " word hi", "\n12345678", ".\n\n 12 (word", "IT'S", ""):
    ids = theirs(text, add_special_tokens=False)["input_ids"]
    assert ids == tokenizer.encode(text).tolist(), text
  assert theirs.eos_token == "</s>"
  assert name in said[0] and "PreTrainedTokenizerFast" in said[0]


def test_an_export_reads_no_less_than_what_the_run_began_from():
  beside = {"config.json": b'{"max_position_embeddings": 2048}'}
  began = tokenizers.HuggingFace(llama3(), "</s>", "x", beside)
  config = dict(init_from="hf:x", data=dict(length=64))
  assert export.length_of(config, began) == 2048
  assert export.length_of(config | dict(init_from=""), began) == 64
  assert export.length_of(config, tokenizers.Bytes()) == 64
  config["data"]["length"] = 4096
  assert export.length_of(config, began) == 4096


def test_sizes_are_read_as_people_write_them():
  assert export.bytes_of("5GB") == 5 * 10**9
  assert export.bytes_of("200mb") == 2 * 10**8
  assert export.bytes_of("1000") == 1000
  for text in ("", "5TB", "GB", "-1", "0", "1.5GB"):
    with pytest.raises(BadConfig, match="--shard_size"):
      export.bytes_of(text)


def test_metrics_are_those_known_at_the_step(tmp_path):
  rows = [
    {"step": 10, "tokens": 100, "train/loss": 3.0},
    {"step": 10, "tokens": 100, "eval/heldout/loss": 3.5},
    {"step": 20, "tokens": 200, "train/loss": 2.0},
  ]
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (tmp_path / "metrics.jsonl").write_text(text)
  assert export.last_known(tmp_path, 10)["train/loss"] == 3.0
  late = export.last_known(tmp_path, 20)
  assert late["train/loss"] == 2.0 and late["eval/heldout/loss"] == 3.5
  assert export.last_known(tmp_path / "none", 20) == {}


def test_the_card_tells_where_the_weights_come_from():
  text = card.write(
    name="a model",
    architecture="LlamaForCausalLM",
    library="transformers",
    pipeline="text-generation",
    dtype="float32",
    parameters=1234567,
    step=20,
    config={"seed": 0},
    record={
      "data_fingerprint": "abc",
      "code": {"commit": "123", "dirty": True},
      "jax": {"device_kind": "cpu", "devices": 2},
      "packages": {"jax": "0.10.2"},
      "started": "then | now\n",
    },
    metrics={"step": 20, "tokens": 200, "flops": 1e15, "train/loss": 2.0},
  )
  for words in (
    "1,234,567 parameters", "| data fingerprint | abc |",
    "commit 123 with local changes", "| 1e+15 |", "| train/loss | 2 |",
    "2 x cpu", "then \\| now",
  ):  # fmt: skip
    assert words in text
  assert text.startswith("---\nlibrary_name: transformers\n")


@pytest.mark.slow
def test_the_command_exports_a_folder_once_more(params, tmp_path):
  pytest.importorskip("tokenizers", reason="needs the extra [hf]")
  exported(params, tmp_path / "a")
  line = ["aigc_jax.export", f"--out={tmp_path / 'b'}"]

  def run(*more):
    return commands.run(*line, *more)

  done = run(f"--workdir=hf:{tmp_path / 'a'}")
  assert done.returncode == 0, done.stderr
  assert "LlamaForCausalLM" in done.stdout
  a, b = (tmp_path / n / "model.safetensors" for n in "ab")
  assert a.read_bytes() == b.read_bytes()
  again = run(f"--workdir=hf:{tmp_path / 'a'}")
  assert again.returncode == 78 and "exists" in again.stderr
  assert run().returncode == 78


def test_a_folder_that_exists_is_refused_before_the_run_is_read(tmp_path):
  with pytest.raises(BadConfig, match="exists: name a folder that does not"):
    export.export_run(
      str(tmp_path / "no run"), str(tmp_path), step=None, dtype="float32",
      shard_bytes=10**9,
    )  # fmt: skip
