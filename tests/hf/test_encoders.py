"""BERT, RoBERTa and DistilBERT are those of transformers, in both directions.

Needs the extra [parity]: pip install -e '.[parity]'.
"""

import inspect
import json
import shutil
import warnings

import jax
import numpy as np
import pytest
from flax import linen as nn

REASON = "needs torch and transformers: pip install -e '.[parity]'"
torch = pytest.importorskip("torch", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)

from aigc_jax import export, hf  # noqa: E402
from aigc_jax.data import masking, sentences, tokenizers  # noqa: E402
from aigc_jax.errors import BadConfig, BadData  # noqa: E402
from aigc_jax.hf import kinds, safetensors  # noqa: E402
from aigc_jax.models import encoder  # noqa: E402
from tests import fresh, tiny  # noqa: E402
from tests.hf import models  # noqa: F401, E402  (one thread, no progress bars)
from tests.kinds import ENCODER  # noqa: E402
from tests.sweep import sweep  # noqa: E402

CLOSE = 1e-4
BODY = dict(
  vocab_size=263, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
  intermediate_size=44, max_position_embeddings=31,
)  # fmt: skip
DISTILLED = dict(
  vocab_size=263, dim=24, n_layers=2, n_heads=3, hidden_dim=44,
  max_position_embeddings=31,
)  # fmt: skip
BERT, ROBERTA = transformers.BertConfig, transformers.RobertaConfig
CASES = {
  "bert": (transformers.BertForMaskedLM, BERT(**BODY)),
  "bert pretraining": (
    transformers.BertForPreTraining,
    BERT(**BODY, hidden_act="gelu_new", layer_norm_eps=1e-5),
  ),
  "bert bare": (transformers.BertModel, BERT(**BODY, type_vocab_size=3)),
  "roberta": (transformers.RobertaForMaskedLM, ROBERTA(**BODY)),
  "roberta bare": (
    transformers.RobertaModel, ROBERTA(**BODY, type_vocab_size=1)
  ),
  "distilbert": (
    transformers.DistilBertForMaskedLM,
    transformers.DistilBertConfig(**DISTILLED),
  ),
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """name -> (model of transformers, folder), each made once."""
  known = {}

  def make(name):
    if name not in known:
      architecture, config = CASES[name]
      torch.manual_seed(0)
      model = architecture(config).eval()
      with torch.no_grad():  # away from 0 and 1
        for p in model.parameters():
          p.normal_(0, 0.15) if p.ndim > 1 else p.add_(
            0.3 * torch.randn_like(p)
          )
      folder = tmp_path_factory.mktemp("model")
      model.save_pretrained(folder)
      known[name] = model, folder
    return known[name]

  return make


def imported(folder):
  found = hf.load(folder)
  model = encoder(**found.kwargs)
  boxed = jax.eval_shape(model.init, jax.random.key(0), model.example())
  return found, hf.read_params(found, nn.unbox(boxed["params"]))


def some_batch(kwargs) -> dict[str, np.ndarray]:
  """Two rows, the second with padding, whose id RoBERTa takes for such."""
  draw = np.random.default_rng(0)
  at, length = np.arange(20)[None], np.array([[20], [13]])
  real = at < length
  tokens = np.where(real, draw.integers(2, 263, (2, 20)), 1)
  batch = dict(tokens=tokens, segments=real)
  if kwargs["types"]:
    batch["types"] = (at > 8) & real & (kwargs["types"] > 1)
  return {k: x.astype(np.int32) for k, x in batch.items()}


def theirs(model, batch) -> dict[str, np.ndarray]:
  """What a model of transformers says, where there is no padding."""
  as_torch = {k: torch.as_tensor(x).long() for k, x in batch.items()}
  more = {}
  if "types" in batch:
    more["token_type_ids"] = as_torch["types"]
  with torch.no_grad():
    out = model(
      as_torch["tokens"], attention_mask=as_torch["segments"],
      output_hidden_states=True, **more,
    )  # fmt: skip
  real = batch["segments"] > 0
  found = {"hidden": out.hidden_states[-1].numpy()[real]}
  for key in ("logits", "prediction_logits"):
    if key in out:
      found["logits"] = out[key].numpy()[real]
  if "pooler_output" in out:
    found["pooled"] = out.pooler_output.numpy()
  if "seq_relationship_logits" in out:
    found["follows"] = out.seq_relationship_logits.numpy()
  return found


def ours(kwargs, params, batch) -> dict[str, np.ndarray]:
  model = encoder(**kwargs)
  with jax.default_matmul_precision("highest"):
    out = jax.jit(model.apply)({"params": params}, batch)
  real = batch["segments"] > 0
  found = {"hidden": out.hidden_BTD[real]}
  if out.readout is not None:
    found["logits"] = out.readout.logits()[real]
  if out.follows_BC is not None:
    found["follows"] = out.follows_BC
  elif out.pooled_BD is not None:
    found["pooled"] = out.pooled_BD
  return found


def assert_same(a, b, limit=CLOSE):
  assert a.keys() == b.keys()
  for key in a:
    np.testing.assert_allclose(a[key], b[key], atol=limit, rtol=0)


def read(folder):
  found = safetensors.read(folder / "model.safetensors")
  return {name: np.array(t.view()) for name, t in found.items()}


def loaded(architecture, folder):
  """By transformers, which must miss nothing and find nothing unexpected."""
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    model, info = architecture.from_pretrained(folder, output_loading_info=True)
  assert not any(info.values()), info
  return model.eval()


@pytest.mark.parametrize("name", sweep(CASES, "bert", "roberta"))
def test_what_it_says_is_what_transformers_says(name, made):
  model, folder = made(name)
  found, params = imported(folder)
  batch = some_batch(found.kwargs)
  assert_same(theirs(model, batch), ours(found.kwargs, params, batch))


@pytest.mark.slow
@pytest.mark.parametrize("name", sweep(CASES, "bert pretraining", "roberta"))
def test_what_was_imported_is_exported_as_it_was(name, made, tmp_path):
  model, folder = made(name)
  found, params = imported(folder)
  out = tmp_path / "out"
  padding = name.startswith("roberta")
  tokenizer = padded() if padding else tokenizers.Bytes()
  told = export.export(
    params, found.kwargs, tokenizer, out, length=20, kind="encoder"
  )
  assert told["difference"] == 0 and told["family"] == found.family.model_type
  before, after = read(folder), read(out)
  prefix = "" if after.keys() == before.keys() else found.family.prefix
  assert {prefix + k for k in before} == after.keys()
  for key, value in before.items():
    np.testing.assert_array_equal(value, after[prefix + key])
  assert not (out / "generation_config.json").exists()
  config = json.loads((out / "config.json").read_text())
  assert config["architectures"] == [type(model).__name__]
  again = loaded(CASES[name][0], out)
  batch = some_batch(found.kwargs)
  assert_same(theirs(model, batch), theirs(again, batch), 1e-6)


def padded():
  """The bytes, but for one: what RoBERTa takes for padding is no text."""
  tokenizer = tokenizers.Bytes()
  tokenizer.special_words = tokenizer.special_words | {"<pad>": 1}
  return tokenizer


@pytest.mark.slow
@pytest.mark.parametrize(
  ("dtype", "limit"),
  sweep([("float32", CLOSE), ("bfloat16", 0.3)], ("float32", CLOSE)),
)
def test_an_encoder_of_ours_is_a_model_of_theirs(dtype, limit, tmp_path):
  kwargs = dict(ENCODER, vocab=263, position_start=0, dropout=0.1)
  kwargs |= dict(pooler=True, next_sentence=True)
  del kwargs["kind"]
  model = encoder(**kwargs)
  batch = {k: x[:, :19] for k, x in some_batch(dict(types=2)).items()}
  params = fresh.variables(model, batch)["params"]
  params = jax.tree.map(tiny.perturbed, params)
  # As a config has it: every keyword, those by default too.
  whole = dict(full(), **kwargs)
  out = tmp_path / dtype
  export.export(
    params, whole, tokenizers.Bytes(), out, length=19, dtype=dtype,
    kind="encoder", shard_bytes=20_000,
  )  # fmt: skip
  again = loaded(transformers.BertForPreTraining, out).float()
  assert_same(ours(kwargs, params, batch), theirs(again, batch), limit)


def full():
  """Every keyword that has a default."""
  parameters = inspect.signature(encoder).parameters.values()
  return {p.name: p.default for p in parameters if p.default is not p.empty}


def test_every_keyword_of_the_encoder_comes_from_the_folder(made):
  for name in CASES:
    _, folder = made(name)
    wanted = {*full(), "vocab", "layers", "dim", "heads"}
    assert set(hf.load(folder).kwargs) == wanted


def changed(folder, tmp_path, change):
  """A copy whose tensors `change` has gone over."""
  out = tmp_path / "copy"
  shutil.copytree(folder, out)
  arrays = read(out)
  change(arrays)
  safetensors.write(
    out / "model.safetensors",
    {n: (a.shape, a.dtype) for n, a in arrays.items()},
    [(n, lambda a=a: a) for n, a in arrays.items()],
  )
  return out


def test_folders_as_they_were_first_published_are_read(made, tmp_path):
  """BERT's norms had gamma and beta, its tied head was stored, with buffers."""
  _, folder = made("bert pretraining")

  def old(arrays):
    for name in list(arrays):
      new = name.replace("LayerNorm.weight", "LayerNorm.gamma")
      new = new.replace("LayerNorm.bias", "LayerNorm.beta")
      arrays[new] = arrays.pop(name)
    table = arrays["bert.embeddings.word_embeddings.weight"]
    arrays["cls.predictions.decoder.weight"] = table.copy()
    arrays["cls.predictions.decoder.bias"] = arrays["cls.predictions.bias"]
    arrays["bert.embeddings.position_ids"] = np.arange(31)[None]

  def other(arrays):
    old(arrays)
    arrays["cls.predictions.decoder.weight"][3, 1] += 1

  again, params = imported(changed(folder, tmp_path / "a", old))
  found, expected = imported(folder)
  assert again.kwargs == found.kwargs
  jax.tree.map(np.testing.assert_array_equal, params, expected)
  with pytest.raises(BadData, match="decoder.weight differs from"):
    hf.load(changed(folder, tmp_path / "b", other))


def test_tensors_say_which_heads_there_are(made, tmp_path):
  _, folder = made("bert pretraining")

  def headless(arrays):
    for name in list(arrays):
      if name.startswith("cls."):
        del arrays[name]

  kwargs = hf.load(changed(folder, tmp_path, headless)).kwargs
  heads = ("token_head", "pooler", "next_sentence")
  assert [kwargs[head] for head in heads] == [False, True, False]


def test_what_no_family_expresses_is_refused_by_name(made):
  kwargs = hf.load(made("bert")[1]).kwargs
  for change, word in (
    (dict(pooler=True), "model.pooler=True"),
    (dict(position_start=2, pooler=True, next_sentence=True), "position_"),
    (dict(types=0, position_start=3), "position_start=3"),
  ):
    with pytest.raises(BadConfig, match=word):
      hf.choose_family(kwargs | change, kind="encoder")
  assert hf.choose_family(kwargs, kind="encoder").model_type == "bert"
  start = kwargs | dict(position_start=2)
  assert hf.choose_family(start, kind="encoder").model_type == "roberta"
  none = kwargs | dict(types=0)
  assert hf.choose_family(none, kind="encoder").model_type == "distilbert"


def test_what_our_layers_do_not_compute_is_refused(made, tmp_path):
  for name, key, value in (
    ("bert", "position_embedding_type", "relative_key"),
    ("bert", "is_decoder", True),
    ("bert", "tie_word_embeddings", False),
    ("roberta", "hidden_act", "relu"),
    ("roberta", "pad_token_id", 40),
    ("bert", "hidden_size", 10**9),
  ):
    folder = tmp_path / f"{name} {key}"
    shutil.copytree(made(name)[1], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(BadData, match="max_pos" if value == 40 else "."):
      hf.load(folder)


def test_a_tokenizer_with_text_where_roberta_has_padding_is_refused(
  made, tmp_path
):
  found, params = imported(made("roberta")[1])
  with pytest.raises(BadConfig, match="takes id 1 for padding"):
    export.export(
      params, found.kwargs, tokenizers.Bytes(), tmp_path / "out", length=20,
      kind="encoder",
    )  # fmt: skip
  assert not (tmp_path / "out").exists()


def test_two_kinds_of_model_are_told_apart(made):
  kwargs = hf.load(made("bert")[1]).kwargs
  assert kinds.canonical("encoder", kwargs | dict(dropout=0.1)) == (
    kinds.canonical("encoder", kwargs)
  )
  other = kwargs | dict(position_start=1)
  assert kinds.canonical("encoder", other) != kinds.canonical("encoder", kwargs)


@pytest.mark.slow
def test_a_mask_in_a_text_is_the_mask_of_the_run(tmp_path):
  """And a text stands between the tokens that it had in training."""
  texts = ["import os\nreturn self\ndef f(x):\n    pass\n" * 9] * 20
  tokenizer = sentences.train(texts, 330, "test", masking.SPECIAL)
  kwargs = {k: v for k, v in ENCODER.items() if k != "kind"}
  whole = full() | kwargs | dict(vocab=330, position_start=0)
  model = encoder(**whole)
  tokens = {"tokens": np.zeros((1, 4), int)}
  params = fresh.variables(model, tokens)["params"]
  params = jax.tree.map(tiny.perturbed, params)
  out = tmp_path / "out"
  export.export(params, whole, tokenizer, out, length=19, kind="encoder")
  theirs = transformers.AutoTokenizer.from_pretrained(out)
  ids = masking.ids_of(tokenizer)
  assert theirs.mask_token_id == ids.mask
  text = tokenizer.encode("import ").tolist()
  found = theirs(f"import {theirs.mask_token}")["input_ids"]
  assert found == [ids.first, *text, ids.mask, ids.last]
  fill = transformers.pipeline("fill-mask", model=str(out))
  said = fill(f"import {theirs.mask_token}")[0]
  row = np.array([found], np.int32)
  logits = jax.jit(model.apply)({"params": params}, {"tokens": row})
  probability = jax.nn.softmax(logits.readout.logits()[0, len(found) - 2])
  assert said["token"] == int(np.argmax(probability))
  assert abs(said["score"] - float(np.max(probability))) < 1e-4
  assert "fill-mask" in (out / "README.md").read_text()
