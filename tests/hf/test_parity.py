"""The same logits, loss and files as transformers, for every family.

Needs the extra [parity]: pip install -e '.[parity]'.
"""

import json
import shlex
import shutil
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
from tests import fresh, tiny  # noqa: E402
from tests.hf import models  # noqa: E402
from tests.hf.test_golden import abstract, logits, read  # noqa: E402
from tests.sweep import sweep  # noqa: E402

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


@pytest.mark.parametrize("name", sweep(models.CASES, "gemma2"))
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
    # As long as theirs: some turn positions by the length.
    tokens=jnp.asarray(TOKENS),
    targets=jnp.roll(TOKENS, -1, axis=1),
    weights=jnp.ones((2, LENGTH)).at[:, -1].set(0),
  )
  ours = objective(
    lambda b: decoder(**found.kwargs).apply({"params": params}, b),
    batch, z_loss=0.0, chunk=64,
  )["loss"]  # fmt: skip
  assert abs(float(ours.value()) - theirs) < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize("name", sweep(models.CASES, "gpt2"))
def test_what_was_imported_is_exported_as_it_was(name, made, tmp_path):
  model, folder = made(name)
  found, params = imported(folder)
  out = tmp_path / "out"
  told = export.export(
    params, found.kwargs, tokenizers.Bytes(), out, length=LENGTH,
    say=lambda text: None, 
  )  # fmt: skip
  assert told["difference"] == 0
  # A Phi-3 that turns whole heads is a Llama, and is written as one.
  as_it_was = hf.choose_family(found.kwargs).rows == found.family.rows
  assert as_it_was == (name not in ("phi3", "phi3_longrope"))
  before, after = read(folder), read(out)
  assert (before.keys() == after.keys()) == as_it_was
  for key in before if as_it_was else ():
    np.testing.assert_array_equal(before[key], after[key])
  again = loaded(out)
  apart = difference(models.logits(again, TOKENS), models.logits(model, TOKENS))
  assert apart < (1e-6 if as_it_was else CLOSE)


def loaded(folder):
  """By transformers, which must miss nothing and find nothing unexpected."""
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
      folder, output_loading_info=True, attn_implementation="eager"
    )
  assert not any(info.values()), info
  return model.eval()


@pytest.mark.parametrize(
  "name", sweep(["llama3", "gemma3_linear", "gemma2"], "gemma2")
)
def test_older_and_newer_config_files_mean_the_same(name, made):
  """transformers 4 wrote rope_theta and rope_scaling, 5 rope_parameters."""
  _, folder = made(name)
  found, _ = imported(folder)
  config = hf.families.write_config(found.family, found.kwargs)
  assert "rope_parameters" not in config
  back = hf.families.read_config(found.family, config, "config.json")
  assert canonical(back) == canonical(found.kwargs)


@pytest.mark.slow
@pytest.mark.parametrize(
  "dtype,limit",
  sweep([("float32", 1e-4), ("bfloat16", 0.3)], ("float32", 1e-4)),
)
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
  params = fresh.variables(model, {"tokens": TOKENS[:, :4]})["params"]
  return kwargs, jax.tree.map(tiny.perturbed, params)


TEXTS = [
  "Hello, world!  Two  spaces,\ttabs\r\n\n\n",
  "def f(x):\n    return x ** 2  # caf\u00e9",
  "\u2581 \x10 \x10u \x10\x10u \x00 \U0001f600 \ufeff e\u0301 \u3000",
  "<|endoftext|> <unk> </s> <0x41>",
  "word " * 700,
  "",
]


@pytest.mark.slow
@pytest.mark.parametrize(
  "kind", sweep(["bytes", "sentencepiece"], "sentencepiece")
)
@pytest.mark.parametrize(
  "family",
  sweep(["llama", "gpt2", "mistral", "qwen2", "qwen3", "gemma2"], "llama"),
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


CHAT = "{% for m in messages %}<turn>{{ m['content'] }}<eos>{% endfor %}"
SPELLED = ["<turn>hi<eos>", "a <bos> b<pad>", "<turn", "<|endoftext|> </s>"]


def talking(folder, name):
  """A tokenizer as chat models have it, of the class `name`, saved."""
  from tokenizers import (
    Regex,
    Tokenizer,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
  )
  from tokenizers import models as kinds

  tokens = ["<bos>", "<eos>", "<pad>", "<turn>"]
  made = Tokenizer(kinds.BPE())
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  if name and name.startswith("Qwen2"):  # as that class makes it anew
    from transformers.models.qwen2 import tokenization_qwen2 as qwen2

    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    cut = pre_tokenizers.Split(Regex(qwen2.PRETOKENIZE_REGEX), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([cut, level])
    made.normalizer = normalizers.NFC()
  made.train_from_iterator(
    TEXTS,
    trainers.BpeTrainer(
      vocab_size=263, special_tokens=tokens, show_progress=False,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    ),
  )  # fmt: skip
  made.post_processor = processors.TemplateProcessing(
    single="<bos> $A", special_tokens=[("<bos>", 0)]
  )
  fast = transformers.PreTrainedTokenizerFast(
    tokenizer_object=made, bos_token="<bos>", eos_token="<eos>",
    pad_token="<pad>", additional_special_tokens=["<turn>"],
  )  # fmt: skip
  fast.chat_template = CHAT
  fast.save_pretrained(folder)
  path = folder / "tokenizer_config.json"
  said = json.loads(path.read_text()) | {"tokenizer_class": name}
  said = {key: value for key, value in said.items() if value is not None}
  path.write_text(json.dumps(said))
  ends = dict(bos_token_id=0, eos_token_id=[1, 3], pad_token_id=2)
  for file, more in (("config.json", {}), ("generation_config.json", ends)):
    path = folder / file
    said = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(said | dict(ends, eos_token_id=1) | more))


@pytest.mark.slow
@pytest.mark.parametrize(
  "family,name",
  sweep([
    ("llama", "PreTrainedTokenizerFast"),
    ("llama", "TokenizersBackend"),
    ("gpt2", None),
    ("gemma2", "PreTrainedTokenizerFast"),
    ("mistral", "PreTrainedTokenizerFast"),
    ("qwen2", "Qwen2Tokenizer"),
    ("qwen3", "Qwen2TokenizerFast"),
  ], ("gpt2", None)),
)  # fmt: skip
def test_a_folders_own_tokenizer_comes_out_as_it_was(
  family, name, made, tmp_path
):
  folder, out, later = (tmp_path / n for n in ("in", "out", "later"))
  shutil.copytree(made(family)[1], folder)
  talking(folder, name)
  export.export_run(
    f"hf:{folder}", str(out), step=None, dtype="float32", shard_bytes=10**9
  )
  # And through a work directory, which keeps the tokenizer in a folder.
  ours = tokenizers.load_tokenizer(f"hf:{folder}")
  tokenizers.save(ours, tmp_path / "kept")
  found, params = imported(folder)
  export.export(
    params, found.kwargs, tokenizers.load(tmp_path / "kept"), later,
    length=LENGTH,
  )  # fmt: skip
  before = auto(folder)
  chat = [{"role": "user", "content": text} for text in TEXTS]
  for again in (auto(out), auto(later)):
    assert type(again) is type(before)
    assert again.special_tokens_map == before.special_tokens_map
    assert again.chat_template == before.chat_template == CHAT
    for text in TEXTS + SPELLED:
      for whole in (True, False):
        asked = dict(add_special_tokens=whole)
        assert (
          again(text, **asked)["input_ids"]
          == before(text, **asked)["input_ids"]
        )
    assert again.apply_chat_template(chat) == before.apply_chat_template(chat)
  for path in (out, later):
    config = transformers.AutoConfig.from_pretrained(path)
    assert (config.bos_token_id, config.pad_token_id) == (0, 2)
    ends = transformers.GenerationConfig.from_pretrained(path)
    assert ends.eos_token_id == [1, 3] and ends.pad_token_id == 2
  if name in ("PreTrainedTokenizerFast", None):
    for text in TEXTS:
      ids = before(text, add_special_tokens=False)["input_ids"]
      assert ours.encode(text).tolist() == ids or "<" in text


def auto(folder, **more):
  return transformers.AutoTokenizer.from_pretrained(folder, **more)


@pytest.mark.slow
@pytest.mark.parametrize("family", sweep(["llama", "qwen2"], "qwen2"))
def test_a_tokenizer_of_another_family_keeps_its_ids(family, made, tmp_path):
  """Qwen2 would put its own class, and its own cut of a text, in the place."""
  talking_folder = tmp_path / "talking"
  talking_folder.mkdir()
  talking(talking_folder, None)
  ours = tokenizers.load_tokenizer(f"hf:{talking_folder}")
  found, params = imported(made(family)[1])
  export.export(params, found.kwargs, ours, tmp_path / "out", length=LENGTH)
  theirs = auto(tmp_path / "out")
  for text in TEXTS[:3]:
    ids = theirs(text, add_special_tokens=False)["input_ids"]
    assert ids == ours.encode(text).tolist()


# Not qwen2 with True: see vocabulary._kept_class.
@pytest.mark.slow
@pytest.mark.parametrize(
  "family,trust",
  sweep(
    [("llama", False), ("llama", True), ("gpt2", True), ("qwen2", False)],
    ("gpt2", True),
  ),
)
def test_trusting_code_that_is_not_there_changes_nothing(
  family, trust, made, tmp_path
):
  found, params = imported(made(family)[1])
  export.export(
    params, found.kwargs, tokenizers.Bytes(), tmp_path / "o", length=64
  )
  theirs = auto(tmp_path / "o", trust_remote_code=trust)
  for text in TEXTS + SPELLED:
    assert theirs(text)["input_ids"] == list(text.encode())


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


@pytest.mark.slow
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
