"""Greedy tokens are those of transformers.generate (extra [parity])."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra [parity]: torch")
transformers = pytest.importorskip(
  "transformers", reason="needs the extra [parity]: transformers"
)
import jax  # noqa: E402
import torch  # noqa: E402

from aigc_jax import hf, run, sharding  # noqa: E402
from aigc_jax.sampling.decode import Engine, Row  # noqa: E402
from aigc_jax.sampling.logits import Sampling, process  # noqa: E402
from tests.sweep import sweep  # noqa: E402

PROMPTS = ((5, 1, 30), (7,), (2, 2, 9, 11, 36, 0))
SMALL = dict(
  vocab_size=41, bos_token_id=0, eos_token_id=None, pad_token_id=None
)


def configs():
  return {
    "gpt2": transformers.GPT2Config(
      n_layer=3, n_embd=36, n_head=3, n_positions=64, **SMALL
    ),
    "llama": transformers.LlamaConfig(
      num_hidden_layers=3, hidden_size=36, num_attention_heads=3,
      num_key_value_heads=1, head_dim=12, intermediate_size=52, **SMALL,
    ),
    "mistral": transformers.MistralConfig(
      num_hidden_layers=3, hidden_size=32, num_attention_heads=4,
      num_key_value_heads=2, intermediate_size=52, sliding_window=5, **SMALL,
    ),
    "qwen3": transformers.Qwen3Config(
      num_hidden_layers=3, hidden_size=36, num_attention_heads=3,
      num_key_value_heads=1, head_dim=12, intermediate_size=52,
      tie_word_embeddings=True, **SMALL,
    ),
    "llama3": transformers.LlamaConfig(
      num_hidden_layers=3, hidden_size=36, num_attention_heads=3,
      num_key_value_heads=1, head_dim=12, intermediate_size=52,
      rope_scaling=dict(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0,
        high_freq_factor=4.0, original_max_position_embeddings=8,
      ),
      **SMALL,
    ),
    "qwen2": transformers.Qwen2Config(
      num_hidden_layers=3, hidden_size=36, num_attention_heads=3,
      num_key_value_heads=1, intermediate_size=52, **SMALL,
    ),
    "gemma3": transformers.Gemma3TextConfig(
      num_hidden_layers=4, hidden_size=36, num_attention_heads=3,
      num_key_value_heads=1, head_dim=12, intermediate_size=52,
      sliding_window=6, query_pre_attn_scalar=12,
      layer_types=["sliding_attention", "full_attention"] * 2, **SMALL,
    ),
    "gemma2": transformers.Gemma2Config(
      num_hidden_layers=4, hidden_size=36, num_attention_heads=3,
      num_key_value_heads=1, head_dim=12, intermediate_size=52,
      sliding_window=6, query_pre_attn_scalar=12, **SMALL,
    ),
  }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
  "name",
  sweep(
    ["gpt2", "llama", "llama3", "mistral", "qwen2", "qwen3", "gemma2",
     "gemma3"],
    "gpt2",
  ),
)  # fmt: skip
@pytest.mark.parametrize("penalty", sweep([1.0, 1.3], 1.3))
def test_greedy_tokens_are_those_of_transformers(name, penalty, tmp_path):
  torch.manual_seed(3)
  config = configs()[name]
  theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
  with torch.no_grad():
    for p in theirs.parameters():  # away from zeros, which would hide a bias
      p += 0.1 * torch.randn_like(p)
  theirs.save_pretrained(tmp_path)
  imported = hf.load(tmp_path)
  model = run.model_of(
    {"model": {"kind": "decoder"} | dict(imported.kwargs) | {"unroll": 0}}
  )
  axes = {axis: 1 for axis in sharding.AXES}
  mesh = sharding.make_mesh(**axes, devices=jax.devices()[:1])
  abstract = run.abstract_params(model, mesh)
  laid = jax.tree.map(lambda x: x.sharding, abstract)
  params = hf.read_params(tmp_path, abstract, laid)
  engine = Engine(
    model, params, sampling=Sampling(repetition_penalty=penalty), stop_ids=(),
    positions=0, unrolled=True, group=8, seed=0,
  )  # fmt: skip
  session = engine.start([Row(p) for p in PROMPTS], 16)
  found = [[] for _ in PROMPTS]
  while not session.done:
    for row, new in zip(found, session.advance(8), strict=True):
      row += new.tolist()
  for prompt, row in zip(PROMPTS, found, strict=True):
    ids = torch.tensor([prompt])
    out = theirs.generate(
      ids, attention_mask=torch.ones_like(ids), max_new_tokens=16,
      do_sample=False, repetition_penalty=penalty,
    )  # fmt: skip
    assert row == out[0, len(prompt) :].tolist()


def test_processors_are_those_of_transformers():
  z = 3 * np.random.default_rng(0).standard_normal((6, 57)).astype("f4")
  ids = np.random.default_rng(1).integers(0, 57, (6, 9))
  seen = np.zeros((6, 57), bool)
  np.put_along_axis(seen, ids, True, -1)
  scores, t = torch.tensor(z), transformers
  for processor in (
    t.RepetitionPenaltyLogitsProcessor(1.3),
    t.TemperatureLogitsWarper(0.7),
    t.TopKLogitsWarper(20),
    t.TopPLogitsWarper(0.9),
    t.MinPLogitsWarper(0.05),
  ):
    scores = processor(torch.tensor(ids), scores)
  how = Sampling(0.7, 20, 0.9, 0.05, 1.3)
  found = np.asarray(process(z, seen, how))
  np.testing.assert_allclose(found, scores.numpy(), rtol=1e-6)
