"""The same logits, loss and files as transformers, for every family.

Needs the extra [parity]: pip install -e '.[parity]'.
"""

import json
import shlex
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

REASON = "needs torch and transformers: pip install -e '.[parity]'"
torch = pytest.importorskip("torch", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)

from aigc_jax import export, hf  # noqa: E402
from aigc_jax.data import sentences, tokenizers  # noqa: E402
from aigc_jax.errors import BadData  # noqa: E402
from aigc_jax.hf import folder as folders  # noqa: E402
from aigc_jax.hf.settings import canonical  # noqa: E402
from aigc_jax.models import decoder  # noqa: E402
from aigc_jax.objectives import tokens as objective  # noqa: E402
from tests import tiny  # noqa: E402
from tests.hf import models  # noqa: E402
from tests.hf.test_golden import abstract, logits, read  # noqa: E402

CLOSE = 1e-4
LENGTH = 128
TOKENS = np.random.default_rng(0).integers(0, 257, (2, LENGTH), np.int32)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """name -> (model, folder), each made once."""
  known = {}

  def make(name):
    if name not in known:
      folder = tmp_path_factory.mktemp(name)
      model = models.build(*models.CASES[name])
      model.save_pretrained(folder)
      known[name] = model, folder
    return known[name]

  return make


def imported(folder):
  found = hf.load(folder)
  return found, hf.read_params(found, abstract(found.kwargs, TOKENS)[0])


def difference(a, b) -> float:
  return float(np.max(np.abs(a - b)))


@pytest.mark.parametrize("name", models.CASES)
def test_logits_and_loss_are_those_of_transformers(name, made, record_property):
  model, folder = made(name)
  found, params = imported(folder)
  apart = difference(
    logits(found.kwargs, params, TOKENS), models.logits(model, TOKENS)
  )
  record_property("max_abs", apart)
  assert apart < CLOSE
  labels = torch.as_tensor(TOKENS, dtype=torch.long)
  with torch.no_grad():
    theirs = float(model(labels, labels=labels).loss)
  batch = dict(
    tokens=jnp.asarray(TOKENS[:, :-1]),
    targets=jnp.asarray(TOKENS[:, 1:]),
    weights=jnp.ones((2, LENGTH - 1)),
  )
  ours = objective(
    lambda b: decoder(**found.kwargs).apply({"params": params}, b),
    batch, z_loss=0.0, chunk=64,
  )["loss"]  # fmt: skip
  assert abs(float(ours.value()) - theirs) < CLOSE


@pytest.mark.parametrize("name", models.CASES)
def test_what_was_imported_is_exported_as_it_was(name, made, tmp_path):
  model, folder = made(name)
  found, params = imported(folder)
  out = tmp_path / "out"
  told = export.export(
    params, found.kwargs, tokenizers.Bytes(), out, length=LENGTH,
    say=lambda text: None, 
  )  # fmt: skip
  assert told["difference"] == 0
  before, after = read(folder), read(out)
  assert before.keys() == after.keys()
  for key in before:
    np.testing.assert_array_equal(before[key], after[key])
  again = loaded(out)
  assert difference(
    models.logits(again, TOKENS), models.logits(model, TOKENS)
  ) < (1e-6)


def loaded(folder):
  """By transformers, which must miss nothing and find nothing unexpected."""
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
      folder, output_loading_info=True, attn_implementation="eager"
    )
  assert not any(info.values()), info
  return model.eval()


@pytest.mark.parametrize("name", ["llama3", "gemma3_linear", "gemma2"])
def test_older_and_newer_config_files_mean_the_same(name, made):
  """transformers 4 wrote rope_theta and rope_scaling, 5 rope_parameters."""
  _, folder = made(name)
  found, _ = imported(folder)
  config = hf.families.write_config(found.family, found.kwargs)
  assert "rope_parameters" not in config
  back = hf.families.read_config(found.family, config, "config.json")
  assert canonical(back) == canonical(found.kwargs)


@pytest.mark.parametrize("dtype,limit", [("float32", 1e-4), ("bfloat16", 0.3)])
def test_a_decoder_of_ours_is_a_model_of_theirs(dtype, limit, tmp_path):
  found, params = shaped_like_llama()
  out = tmp_path / dtype
  export.export(
    params, found, tokenizers.Bytes(), out, length=64, dtype=dtype,
    shard_bytes=20_000,
  )  # fmt: skip
  assert (out / folders.INDEX).exists()
  model = loaded(out).float()
  tokens = TOKENS
  assert difference(
    logits(found, params, tokens), models.logits(model, tokens)
  ) < limit  # fmt: skip


def shaped_like_llama():
  """A Llama-shaped decoder with tied embeddings, as our configs have."""
  kwargs = tiny.LLAMA | dict(vocab=257, tied=True, dim=48, heads=6, head_dim=10)
  model = decoder(**kwargs)
  params = nn.unbox(
    model.init(jax.random.key(1), {"tokens": TOKENS[:, :4]})["params"]
  )
  return kwargs, jax.tree.map(tiny.perturbed, params)


TEXTS = [
  "Hello, world!  Two  spaces,\ttabs\r\n\n\n",
  "def f(x):\n    return x ** 2  # caf\u00e9",
  "\u2581 \x10 \x10u \x10\x10u \x00 \U0001f600 \ufeff e\u0301 \u3000",
  "<|endoftext|> <unk> </s> <0x41>",
  "word " * 700,
  "",
]


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
@pytest.mark.parametrize(
  "family", ["llama", "gpt2", "mistral", "qwen2", "qwen3", "gemma2"]
)
def test_auto_tokenizer_gives_the_same_ids(kind, family, made, tmp_path):
  tokenizer = tokenizers.Bytes()
  if kind == "sentencepiece":
    tokenizer = sentences.train(TEXTS * 20, 330, "test")
  _, folder = made(family)
  found, params = imported(folder)
  kwargs, params = widened(found.kwargs, params, tokenizer.vocab)
  out = tmp_path / "out"
  export.export(params, kwargs, tokenizer, out, length=LENGTH)
  theirs = transformers.AutoTokenizer.from_pretrained(out)
  assert theirs.eos_token_id == tokenizer.eot
  for text in TEXTS:
    ids = tokenizer.encode(text).tolist()
    assert theirs(text)["input_ids"] == ids
    assert theirs.decode(ids) == text
  pipe = transformers.pipeline("text-generation", model=str(out))
  told = pipe("def f", max_new_tokens=3, do_sample=False)
  assert told[0]["generated_text"].startswith("def f")


def widened(kwargs, params, vocab):
  """The decoder with a larger vocabulary."""
  more = max(vocab - kwargs["vocab"], 0)

  def grown(table):
    return jnp.concatenate([table, table[:1].repeat(more, 0)])

  params = dict(params)
  for part in ("embed", "head"):
    if part in params:
      params[part] = {"table": grown(params[part]["table"])}
  return kwargs | dict(vocab=kwargs["vocab"] + more), params


def test_the_line_that_converts_pickles_does(made, tmp_path):
  model, folder = made("llama")
  torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
  config = json.loads((folder / "config.json").read_text())
  (tmp_path / "config.json").write_text(json.dumps(config))
  with pytest.raises(BadData) as fault:
    hf.load(tmp_path)
  line = shlex.split(str(fault.value).splitlines()[-1])
  subprocess.run([sys.executable, *line[1:]], check=True)
  _, params = imported(tmp_path)
  jax.tree.map(np.testing.assert_array_equal, params, imported(folder)[1])
