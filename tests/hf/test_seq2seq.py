"""T5 and Marian are those of transformers, in both directions, with beams.

Needs the extra [parity]: pip install -e '.[parity]'.
"""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from safetensors import numpy as library

REASON = "needs torch and transformers: pip install -e '.[parity]'"
torch = pytest.importorskip("torch", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)

from aigc_jax import export, hf  # noqa: E402
from aigc_jax.data import tokenizers  # noqa: E402
from aigc_jax.errors import BadConfig, BadData  # noqa: E402
from aigc_jax.hf import marian, safetensors  # noqa: E402
from aigc_jax.hf.families import choose_family  # noqa: E402
from aigc_jax.layers.relative import bucket_of  # noqa: E402
from aigc_jax.models import decoder, encoder_decoder  # noqa: E402
from aigc_jax.sampling.beam import Beams, BeamSearch  # noqa: E402
from tests import fresh, seq2seq, tiny  # noqa: E402
from tests.hf import models  # noqa: F401, E402  (one thread, no progress bars)
from tests.sweep import sweep  # noqa: E402

CLOSE = 1e-4
T5 = dict(
  vocab_size=263, d_model=24, d_kv=8, d_ff=44, num_layers=3,
  num_decoder_layers=2, num_heads=4, relative_attention_num_buckets=8,
  relative_attention_max_distance=20, dropout_rate=0.0,
  decoder_start_token_id=0,
)  # fmt: skip
MARIAN = dict(
  vocab_size=263, d_model=24, encoder_layers=3, decoder_layers=2,
  encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=44,
  decoder_ffn_dim=44, activation_function="swish", scale_embedding=True,
  max_position_embeddings=64, decoder_start_token_id=262, pad_token_id=262,
  eos_token_id=1, dropout=0.0, attention_dropout=0.0, forced_eos_token_id=None,
)  # fmt: skip
ARCHITECTURES = {
  "t5": transformers.T5ForConditionalGeneration,
  "t5_v1_1": transformers.T5ForConditionalGeneration,
  "marian": transformers.MarianMTModel,
}
START = {"t5": 0, "t5_v1_1": 0, "marian": 262}


def config_of(name):
  if name == "marian":
    return transformers.MarianConfig(**MARIAN)
  if name == "t5":
    return transformers.T5Config(**T5)
  config = transformers.T5Config(
    **T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False
  )
  # Forced to be tied whatever is said; the published models are not.
  config.tie_word_embeddings = False
  return config


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """name -> (model of transformers, folder), each made once."""
  known = {}

  def make(name):
    if name not in known:
      torch.manual_seed(0)
      model = ARCHITECTURES[name](config_of(name)).eval()
      fixed = "embed_positions"
      with torch.no_grad():  # away from 0 and 1
        for key, p in model.named_parameters():
          if fixed not in key:
            p.normal_(0, 0.3) if p.ndim > 1 else p.add_(
              0.3 * torch.randn_like(p)
            )
        for side in ("encoder", "decoder") if "t5" in name else ():
          getattr(model, side).embed_tokens.weight = model.shared.weight
        if name == "marian":
          model.final_logits_bias.normal_(0, 0.3)
      folder = tmp_path_factory.mktemp("model")
      model.save_pretrained(folder)
      known[name] = model, folder
    return known[name]

  return make


def imported(folder):
  found = hf.load(folder)
  model = encoder_decoder(**found.kwargs)
  boxed = jax.eval_shape(model.init, jax.random.key(0), model.example())
  return found, hf.read_params(found, nn.unbox(boxed["params"]))


def some_batch() -> dict[str, np.ndarray]:
  """Three sources, two of them with padding, and targets."""
  draw = np.random.default_rng(0)
  real = np.arange(33) < np.array([[33], [20], [5]])
  return {
    "encoder_tokens": draw.integers(0, 262, (3, 33)).astype(np.int32),
    "encoder_segments": real.astype(np.int32),
    "tokens": draw.integers(0, 262, (3, 29)).astype(np.int32),
  }


def theirs(model, batch) -> np.ndarray:
  as_torch = {k: torch.as_tensor(x).long() for k, x in batch.items()}
  with torch.no_grad():
    return model(
      input_ids=as_torch["encoder_tokens"],
      attention_mask=as_torch["encoder_segments"],
      decoder_input_ids=as_torch["tokens"],
    ).logits.numpy()  # fmt: skip


def ours(kwargs, params, batch) -> np.ndarray:
  model = encoder_decoder(**kwargs)
  with jax.default_matmul_precision("highest"):
    out = jax.jit(model.apply)({"params": params}, batch)
  return np.asarray(out.logits())


def read(folder):
  found = safetensors.read(folder / "model.safetensors")
  return {name: np.array(t.view()) for name, t in found.items()}


@pytest.mark.parametrize("causal", [True, False])
def test_buckets_are_those_of_transformers(causal):
  theirs = transformers.models.t5.modeling_t5.T5Attention
  for buckets, longest in ((32, 128), (8, 20), (64, 1000)):
    found = theirs._relative_position_bucket(
      -torch.arange(1500), bidirectional=not causal, num_buckets=buckets,
      max_distance=longest,
    ).numpy()  # fmt: skip
    own = buckets if causal else buckets // 2
    at = np.minimum(np.arange(1500), longest)
    expected = bucket_of(longest + 1, own, longest)[at]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", sweep(ARCHITECTURES, "t5"))
def test_what_it_says_is_what_transformers_says(name, made):
  model, folder = made(name)
  found, params = imported(folder)
  batch = some_batch()
  assert found.kwargs["start_token"] == START[name]
  np.testing.assert_allclose(
    theirs(model, batch), ours(found.kwargs, params, batch), atol=CLOSE, rtol=0
  )


@pytest.mark.slow
@pytest.mark.parametrize("name", sweep(ARCHITECTURES, "t5", "marian"))
def test_what_was_imported_is_exported_as_it_was(name, made, tmp_path):
  model, folder = made(name)
  found, params = imported(folder)
  out = tmp_path / "out"
  told = export.export(
    params, found.kwargs, tokenizers.Bytes(), out, length=20,
    kind="encoder_decoder",
  )  # fmt: skip
  assert told["difference"] == 0 and told["family"] == found.family.model_type
  before, after = read(folder), read(out)
  for key, value in after.items():
    np.testing.assert_array_equal(value, before[key])
  generation = json.loads((out / "generation_config.json").read_text())
  assert generation["decoder_start_token_id"] == START[name]
  again, info = ARCHITECTURES[name].from_pretrained(
    out, output_loading_info=True
  )
  assert not info["missing_keys"] and not info["unexpected_keys"], info
  batch = some_batch()
  np.testing.assert_allclose(
    theirs(model, batch), theirs(again.eval(), batch), atol=1e-5, rtol=0
  )


@pytest.mark.slow
@pytest.mark.parametrize("style", sweep(ARCHITECTURES, "t5_v1_1"))
def test_a_model_of_ours_is_a_model_of_theirs(style, tmp_path):
  kwargs = seq2seq.STYLES[style] | dict(vocab=263, start_token=None)
  if style == "marian":  # whose heads span the stream
    kwargs["head_dim"] = kwargs["dim"] // kwargs["heads"]
  model = encoder_decoder(**kwargs)
  params = fresh.variables(model, model.example())["params"]
  params = jax.tree.map(tiny.perturbed, params)
  out = tmp_path / "out"
  export.export(
    params, kwargs, tokenizers.Bytes(), out, length=20, kind="encoder_decoder"
  )
  again = ARCHITECTURES[style].from_pretrained(out).eval()
  batch = some_batch()
  np.testing.assert_allclose(
    theirs(again, batch), ours(kwargs, params, batch), atol=CLOSE, rtol=1e-5
  )
  # What targets are written after is the tokenizer's end of text.
  assert again.generation_config.decoder_start_token_id == 256


@pytest.mark.parametrize(
  ("style", "word"), [("apart", "shared=False"), ("transformer", "head_bias")]
)
def test_what_none_of_them_is_stays_where_it_is(style, word):
  with pytest.raises(BadConfig, match=word):
    choose_family(seq2seq.STYLES[style], "marian", kind="encoder_decoder")


@pytest.mark.parametrize(
  ("change", "word"),
  [
    (dict(relative_attention_max_distance=2**30), "max_distance"),
    (dict(relative_attention_num_buckets=10), "multiple of 4"),
    (dict(decoder_start_token_id=999), "below vocab_size"),
    (dict(feed_forward_proj="gated-mish"), "gated-gelu"),
    (dict(num_layers=4), "encoder.block.3"),
  ],
)
def test_a_config_that_cannot_be_is_refused(change, word, made, tmp_path):
  _, folder = made("t5")
  for path in folder.iterdir():
    (tmp_path / path.name).write_bytes(path.read_bytes())
  path = tmp_path / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(BadData, match=word):
    hf.load(tmp_path)


def beams_of(model, params, prompts, start, width, penalty, most):
  search = BeamSearch(
    model, params, beams=Beams(width, penalty), stop_ids=(1,), positions=0,
    unrolled=False, start=start,
  )  # fmt: skip
  return search(prompts, most)


def assert_beams(found, sequences, scores, skip):
  """Tokens up to their end, and what they are worth."""
  at = 0
  for beams in found:
    for score, tokens in beams:
      expected = sequences[at, skip:].tolist()
      assert tokens == expected[: len(tokens)]
      np.testing.assert_allclose(score, scores[at], rtol=1e-3)
      at += 1
  assert at == len(scores)


@pytest.mark.slow
@pytest.mark.parametrize("penalty", sweep([0.6, 2.0], 0.6))
@pytest.mark.parametrize("name", sweep(ARCHITECTURES, "marian"))
def test_beams_are_those_of_transformers(name, penalty, made):
  model, folder = made(name)
  found, params = imported(folder)
  batch = some_batch()
  prompts = [
    row[: real.sum()].tolist()
    for row, real in zip(
      batch["encoder_tokens"], batch["encoder_segments"], strict=True
    )
  ]
  with torch.no_grad():
    out = model.generate(
      input_ids=torch.as_tensor(batch["encoder_tokens"]).long(),
      attention_mask=torch.as_tensor(batch["encoder_segments"]).long(),
      num_beams=3, num_return_sequences=3, length_penalty=penalty,
      max_new_tokens=12, eos_token_id=1, do_sample=False, bad_words_ids=None,
      decoder_start_token_id=START[name], return_dict_in_generate=True,
      output_scores=True,
    )  # fmt: skip
  search = beams_of(
    encoder_decoder(**found.kwargs),
    params,
    prompts,
    START[name],
    3,
    penalty,
    12,
  )
  assert_beams(
    search, out.sequences.numpy(), out.sequences_scores.numpy(), skip=1
  )


@pytest.mark.slow
def test_beams_of_a_decoder_are_those_of_transformers(tmp_path):
  torch.manual_seed(0)
  theirs = transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
      vocab_size=263, hidden_size=24, intermediate_size=44, eos_token_id=1,
      num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
      pad_token_id=0,
    )
  ).eval()  # fmt: skip
  with torch.no_grad():
    for p in theirs.parameters():
      p.normal_(0, 0.3) if p.ndim > 1 else p
  theirs.save_pretrained(tmp_path)
  found = hf.load(tmp_path)
  model = decoder(**found.kwargs)
  boxed = jax.eval_shape(model.init, jax.random.key(0), model.example())
  params = hf.read_params(found, nn.unbox(boxed["params"]))
  prompt = np.random.default_rng(0).integers(2, 263, (2, 6))
  with torch.no_grad():
    out = theirs.generate(
      torch.as_tensor(prompt), attention_mask=torch.ones(2, 6).long(),
      num_beams=4, num_return_sequences=4, max_new_tokens=9, do_sample=False,
      length_penalty=1.0, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
  search = beams_of(model, params, prompt.tolist(), None, 4, 1.0, 9)
  assert_beams(
    search, out.sequences.numpy(), out.sequences_scores.numpy(), skip=6
  )


def test_positions_that_are_not_those_of_marian_are_refused(made, tmp_path):
  """Where a folder has some, transformers reads them: they may be trained."""
  _, folder = made("marian")
  name = "model.decoder.embed_positions.weight"
  for shift, rows in ((0.0, 64), (0.0, 7), (0.5, 64)):
    shutil.copytree(folder, tmp_path / f"{shift}{rows}")
    tensors = read(folder)
    table = marian.positions({"dim": 24}, rows).astype(np.float32)
    if name in tensors:
      np.testing.assert_allclose(tensors[name][:rows], table, atol=1e-5)
    tensors[name] = table + np.float32(shift)
    library.save_file(tensors, tmp_path / f"{shift}{rows}/model.safetensors")
    if not shift:
      assert hf.load(tmp_path / f"{shift}{rows}").kwargs["dim"] == 24
      continue
    with pytest.raises(BadData, match=f"{name}.*trained are not read"):
      hf.load(tmp_path / f"{shift}{rows}")
