"""Whisper is that of transformers, in both directions, and writes the same.

Needs the extra [parity]: pip install -e '.[parity]'.
"""

import json

import jax
import numpy as np
import pytest
from flax import linen as nn

REASON = "needs torch and transformers: pip install -e '.[parity]'"
torch = pytest.importorskip("torch", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)

from aigc_jax import export, hf  # noqa: E402
from aigc_jax.data import tokenizers  # noqa: E402
from aigc_jax.errors import BadData  # noqa: E402
from aigc_jax.hf import safetensors  # noqa: E402
from aigc_jax.models import MODELS  # noqa: E402
from aigc_jax.sampling.beam import Beams, BeamSearch  # noqa: E402
from aigc_jax.sampling.decode import Engine, Row  # noqa: E402
from aigc_jax.sampling.logits import Sampling  # noqa: E402
from tests import fresh, sound  # noqa: E402
from tests.hf import models  # noqa: F401, E402  (one thread, no progress bars)

CLOSE = 2e-4
START, END = 258, 256
CONFIG = dict(
  vocab_size=263, d_model=24, encoder_layers=3, decoder_layers=2,
  encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=44,
  decoder_ffn_dim=44, max_source_positions=50, max_target_positions=30,
  num_mel_bins=20, decoder_start_token_id=START, pad_token_id=END,
  eos_token_id=END, bos_token_id=END, suppress_tokens=None,
  begin_suppress_tokens=None,
)  # fmt: skip
Theirs = transformers.WhisperForConditionalGeneration


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """(model of transformers, its folder)."""
  torch.manual_seed(0)
  model = Theirs(transformers.WhisperConfig(**CONFIG)).eval()
  with torch.no_grad():  # away from 0 and 1
    for name, p in model.named_parameters():
      if "encoder.embed_positions" not in name:
        p.normal_(0, 0.3) if p.ndim > 1 else p.add_(0.3 * torch.randn_like(p))
  folder = tmp_path_factory.mktemp("whisper")
  model.save_pretrained(folder)
  return model, folder


def imported(folder):
  found = hf.load(folder)
  model = MODELS["whisper"](**found.kwargs)
  boxed = jax.eval_shape(model.init, jax.random.key(0), model.example())
  return found, model, hf.read_params(found, nn.unbox(boxed["params"]))


def some_batch() -> dict[str, np.ndarray]:
  """Two utterances, one of half a second, and texts."""
  draw = np.random.default_rng(0)
  lengths = np.array([16_000, 8000], np.int32)
  audio = 6000 * np.sin(np.outer([0.1, 0.7], np.arange(16_000)))
  audio += draw.normal(size=audio.shape) * 500
  audio[1, 8000:] = 0
  tokens = draw.integers(0, 256, (2, 13)).astype(np.int32)
  tokens[:, 0] = START
  return {
    "audio": audio.astype(np.int16),
    "audio_lengths": lengths,
    "tokens": tokens,
  }


def features(batch):
  """What their own feature extractor makes of each utterance, unpadded."""
  extractor = transformers.WhisperFeatureExtractor(
    feature_size=20, chunk_length=1
  )
  rows = [
    row[:n] / 32768
    for row, n in zip(batch["audio"], batch["audio_lengths"], strict=True)
  ]
  found = extractor(rows, sampling_rate=16_000, return_tensors="pt")
  return found.input_features


def theirs(model, batch) -> np.ndarray:
  with torch.no_grad():
    return model(
      input_features=features(batch),
      decoder_input_ids=torch.as_tensor(batch["tokens"]).long(),
    ).logits.numpy()


def ours(model, params, batch) -> np.ndarray:
  with jax.default_matmul_precision("highest"):
    return np.asarray(jax.jit(model.apply)({"params": params}, batch).logits())


def test_what_it_says_of_sound_is_what_transformers_says(made):
  model, folder = made
  found, our, params = imported(folder)
  assert found.kwargs["start_token"] == START and found.kwargs["seconds"] == 1
  batch = some_batch()
  np.testing.assert_allclose(
    theirs(model, batch), ours(our, params, batch), atol=CLOSE, rtol=0
  )


@pytest.mark.slow
def test_what_was_imported_is_exported_as_it_was(made, tmp_path):
  model, folder = made
  found, _, params = imported(folder)
  out = tmp_path / "out"
  told = export.export(
    params, found.kwargs, tokenizers.Bytes(), out, length=20, kind="whisper"
  )
  assert told["difference"] == 0 and told["family"] == "whisper"
  before, after = (
    safetensors.read(f / "model.safetensors") for f in (folder, out)
  )
  assert set(before) - set(after) <= {"proj_out.weight"}
  for key, value in after.items():
    near = 1e-5 if "encoder.embed_positions" in key else 0
    np.testing.assert_allclose(
      value.view(), before[key].view(), rtol=0, atol=near
    )
  again, info = Theirs.from_pretrained(out, output_loading_info=True)
  assert not info["missing_keys"] and not info["unexpected_keys"], info
  batch = some_batch()
  np.testing.assert_allclose(
    theirs(model, batch), theirs(again.eval(), batch), atol=1e-5, rtol=0
  )
  how = transformers.WhisperFeatureExtractor.from_pretrained(out)
  assert (how.feature_size, how.chunk_length, how.hop_length) == (20, 1, 160)
  assert how.nb_max_frames == 100


@pytest.mark.slow
def test_a_model_of_ours_is_a_model_of_theirs(tmp_path):
  keys = sound.WHISPER | dict(vocab=263, seconds=1.0, position_length=30)
  keys.pop("kind")
  model = MODELS["whisper"](**keys)
  params = fresh.variables(model, model.example())["params"]
  params = jax.tree.map(sound.perturbed, params)
  out = tmp_path / "out"
  export.export(
    params, keys, tokenizers.Bytes(), out, length=20, kind="whisper"
  )
  again = Theirs.from_pretrained(out).eval()
  batch = some_batch()
  np.testing.assert_allclose(
    theirs(again, batch), ours(model, params, batch), atol=CLOSE, rtol=1e-4
  )
  # What texts are written after is the tokenizer's end of text.
  assert again.generation_config.decoder_start_token_id == END


def prompts_of(batch) -> list[tuple[int, ...]]:
  return [
    tuple(row[:n].tolist())
    for row, n in zip(batch["audio"], batch["audio_lengths"], strict=True)
  ]


def decoding(model) -> dict:
  return dict(stop_ids=(END,), positions=30, unrolled=False, start=START)


@pytest.mark.slow
def test_it_writes_what_transformers_writes(made):
  model, folder = made
  _, our, params = imported(folder)
  batch = some_batch()
  with torch.no_grad():
    out = model.generate(
      input_features=features(batch), max_new_tokens=12, do_sample=False,
      num_beams=1,
    ).numpy()  # fmt: skip
  engine = Engine(
    our, params, sampling=Sampling(temperature=0.0), group=4, seed=0,
    **decoding(our),
  )  # fmt: skip
  session = engine.start([Row(p) for p in prompts_of(batch)], 12)
  written = [[], []]
  while not session.done:
    for row, new in zip(written, session.advance(4), strict=True):
      row += new.tolist()
  for row, expected in zip(written, out.tolist(), strict=True):
    expected = expected[1:] if expected[0] == START else expected
    assert row == expected[: len(row)] and len(row) > 1


@pytest.mark.slow
def test_its_beams_are_those_of_transformers(made):
  model, folder = made
  _, our, params = imported(folder)
  batch = some_batch()
  with torch.no_grad():
    out = super(Theirs.__mro__[1], model).generate(
      features(batch), num_beams=3, num_return_sequences=3, max_new_tokens=9,
      do_sample=False, return_dict_in_generate=True, output_scores=True,
      decoder_start_token_id=START,
    )  # fmt: skip
  search = BeamSearch(our, params, beams=Beams(3), **decoding(our))
  found = [beam for beams in search(prompts_of(batch), 9) for beam in beams]
  sequences, scores = out.sequences.numpy(), out.sequences_scores.numpy()
  assert len(found) == len(scores) == 6
  for i, (score, tokens) in enumerate(found):
    assert tokens == sequences[i, 1 : len(tokens) + 1].tolist()
    np.testing.assert_allclose(score, scores[i], rtol=2e-3)


@pytest.mark.parametrize(
  ("change", "word"),
  [
    (dict(max_source_positions=10**9), "an hour"),
    (dict(num_mel_bins=10**9), "num_mel_bins"),
    (dict(encoder_attention_heads=5, decoder_attention_heads=5), "d_model"),
    (dict(decoder_start_token_id=999), "below vocab_size"),
    (dict(decoder_ffn_dim=45), "decoder_ffn_dim"),
    (dict(max_source_positions=51), "embed_positions"),
  ],
)
def test_a_config_that_cannot_be_is_refused(change, word, made, tmp_path):
  _, folder = made
  for path in folder.iterdir():
    (tmp_path / path.name).write_bytes(path.read_bytes())
  path = tmp_path / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(BadData, match=word):
    hf.load(tmp_path)


def test_positions_that_were_trained_are_refused(made, tmp_path):
  model, _ = made
  other = Theirs(model.config)
  with torch.no_grad():
    other.model.encoder.embed_positions.weight += 0.1
  other.save_pretrained(tmp_path)
  with pytest.raises(BadData, match="fixed values"):
    hf.load(tmp_path)
