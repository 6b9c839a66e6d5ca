"""Tiny random models of transformers: every family, every variant, odd sizes.

Needs torch and transformers (the extra [parity]); imported only where both are.
"""

import copy

import torch
import transformers

torch.set_num_threads(1)  # threads that wait for each other cost far more
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

BODY = dict(
  vocab_size=263, hidden_size=48, intermediate_size=56, num_hidden_layers=3,
  num_attention_heads=3, num_key_value_heads=1, max_position_embeddings=256,
)  # fmt: skip
GPT2 = dict(
  vocab_size=263, n_positions=160, n_embd=48, n_layer=3, n_head=3
)  # fmt: skip
GEMMA = BODY | dict(head_dim=8, query_pre_attn_scalar=24, sliding_window=17)
# The keys that transformers 4 wrote; 5 reads them and writes rope_parameters.
LLAMA3 = dict(
  rope_theta=5e5,
  rope_scaling=dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=32,
  ),
)  # fmt: skip
LINEAR = dict(rope_scaling=dict(rope_type="linear", factor=4.0))
YARN = dict(
  rope_theta=1e3,
  rope_scaling=dict(
    rope_type="yarn", factor=4.0, original_max_position_embeddings=64
  ),
)
YARN_RATIO = dict(
  rope_scaling=YARN["rope_scaling"] | dict(mscale=0.7, mscale_all_dim=1.4)
)
YARN_ALL = dict(
  rope_theta=5e2,
  rope_scaling=dict(
    rope_type="yarn", factor=8.0, original_max_position_embeddings=32,
    beta_fast=6.0, beta_slow=0.5, attention_factor=1.3, truncate=False,
  ),
)  # fmt: skip
DYNAMIC = dict(rope_scaling=dict(rope_type="dynamic", factor=4.0))


def longrope(planes: int, **more) -> dict:
  """Factors of each plane; beyond 32 positions others than up to there."""
  return dict(
    rope_theta=2e3,
    original_max_position_embeddings=32,
    rope_scaling=dict(
      rope_type="longrope",
      short_factor=[1 + 0.1 * i for i in range(planes)],
      long_factor=[1 + 1.5 * i for i in range(planes)],
      original_max_position_embeddings=32,
      **more,
    ),
  )


GRANITE = dict(
  embedding_multiplier=5.0, residual_multiplier=0.22, logits_scaling=3.0,
  attention_multiplier=0.15,
)  # fmt: skip
SMOLLM3 = BODY | dict(pad_token_id=None)
OLMO3 = SMOLLM3 | dict(sliding_window=13, layer_types=None, num_hidden_layers=4)
PHI3 = BODY | dict(pad_token_id=None, original_max_position_embeddings=256)
NEOX = dict(
  vocab_size=263, hidden_size=48, intermediate_size=56, num_hidden_layers=3,
  num_attention_heads=3, max_position_embeddings=256,
)  # fmt: skip
LATE = dict(use_sliding_window=True, sliding_window=13)

# name: (model_type, config)
CASES = {
  "gpt2": ("gpt2", GPT2),
  "gpt2_untied": (
    "gpt2",
    GPT2
    | dict(n_inner=50, activation_function="gelu", tie_word_embeddings=False),
  ),
  "llama": ("llama", BODY),
  "llama_all_heads": ("llama", BODY | dict(num_key_value_heads=3)),
  "llama_tied_biases": (
    "llama",
    BODY
    | dict(
      tie_word_embeddings=True, attention_bias=True, mlp_bias=True, head_dim=10
    ),
  ),
  "llama3": ("llama", BODY | LLAMA3),
  "llama_yarn": ("llama", BODY | YARN),
  "mistral_yarn": ("mistral", BODY | YARN_RATIO | dict(sliding_window=19)),
  "qwen2_yarn": ("qwen2", BODY | YARN_ALL),
  "llama_dynamic": ("llama", BODY | DYNAMIC | dict(max_position_embeddings=16)),
  "llama_dynamic_within": ("llama", BODY | DYNAMIC),
  "qwen2_longrope": ("qwen2", BODY | longrope(8, attention_factor=1.3)),
  "llama_linear": ("llama", BODY | LINEAR),
  "mistral": ("mistral", BODY | dict(sliding_window=19)),
  "mistral_no_window": (
    "mistral",
    BODY | dict(sliding_window=None, tie_word_embeddings=True),
  ),
  "qwen2": ("qwen2", BODY | dict(tie_word_embeddings=True)),
  "qwen2_window": ("qwen2", BODY | LATE | dict(max_window_layers=1)),
  "qwen3": ("qwen3", BODY | dict(head_dim=12, tie_word_embeddings=True)),
  "qwen3_window_biases": (
    "qwen3",
    BODY | LATE | dict(max_window_layers=2, head_dim=16, attention_bias=True),
  ),
  "gemma": ("gemma", BODY | dict(head_dim=8)),
  "gemma2": ("gemma2", GEMMA),
  "gemma2_caps_untied": (
    "gemma2",
    GEMMA
    | dict(
      final_logit_softcapping=3.0,
      attn_logit_softcapping=2.0,
      tie_word_embeddings=False,
    ),
  ),
  "gemma3": ("gemma3_text", GEMMA | dict(num_hidden_layers=7)),
  "gemma3_linear": (
    "gemma3_text",
    GEMMA
    | dict(
      layer_types=["sliding_attention", "full_attention", "sliding_attention"],
      rope_scaling=dict(rope_type="linear", factor=8.0),
      rope_theta=1e5,
      rope_local_base_freq=1e3,
    ),
  ),
}


CASES |= {
  "granite": ("granite", BODY | GRANITE),
  "granite_yarn_biases": (
    "granite",
    BODY
    | GRANITE
    | YARN
    | dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
  ),
  "olmo2": ("olmo2", BODY),
  "olmo2_yarn_biases": ("olmo2", BODY | YARN | dict(attention_bias=True)),
  "olmo3": ("olmo3", OLMO3),
  "olmo3_yarn": ("olmo3", OLMO3 | YARN | dict(num_hidden_layers=5)),
  "phi3": ("phi3", PHI3),
  "phi3_partial_window": (
    "phi3",
    PHI3 | dict(
      partial_rotary_factor=0.75, sliding_window=19, num_key_value_heads=3,
      tie_word_embeddings=True,
    ),
  ),
  "phi3_longrope": ("phi3", PHI3 | longrope(8)),
  "phi3_longrope_within": (
    "phi3",
    PHI3
    | longrope(6)
    | dict(
      partial_rotary_factor=0.75, original_max_position_embeddings=128,
    ),
  ),
  "gpt_neox": ("gpt_neox", NEOX),
  "gpt_neox_in_a_row_tied": (
    "gpt_neox",
    NEOX | dict(
      use_parallel_residual=False, tie_word_embeddings=True, rotary_pct=0.5,
      rotary_emb_base=500, attention_bias=False,
    ),
  ),
  "gpt_neox_yarn": (
    "gpt_neox", NEOX | dict(rope_scaling=YARN["rope_scaling"], rotary_pct=0.75)
  ),
  "stablelm": ("stablelm", BODY),
  "stablelm_parallel_biases": (
    "stablelm",
    BODY | dict(
      use_parallel_residual=True, use_qkv_bias=True, partial_rotary_factor=0.5
    ),
  ),
  "phi": ("phi", BODY),
  "phi_linear": (
    "phi", BODY | LINEAR | dict(partial_rotary_factor=0.25, rope_theta=300.0)
  ),
  "cohere": ("cohere", BODY),
  "cohere_untied_biases_linear": (
    "cohere",
    BODY | LINEAR | dict(
      attention_bias=True, tie_word_embeddings=False, logit_scale=0.4
    ),
  ),
  "cohere2": ("cohere2", BODY | dict(num_hidden_layers=5, sliding_window=13)),
  "smollm3": ("smollm3", SMOLLM3 | dict(num_hidden_layers=5)),
  "smollm3_windows": (
    "smollm3",
    SMOLLM3
    | dict(
      no_rope_layers=[0, 1, 0], use_sliding_window=True, sliding_window=13,
      tie_word_embeddings=False, attention_bias=True, rope_theta=5e4,
    ),
  ),
}  # fmt: skip


def build(model_type: str, config: dict, seed: int = 0):
  """A model whose weights, biases and scales are all away from 0 and 1."""
  # A copy: transformers writes into the dicts of rotary scalings.
  config = copy.deepcopy(config)
  settings = transformers.AutoConfig.for_model(model_type, **config)
  torch.manual_seed(seed)
  model = transformers.AutoModelForCausalLM.from_config(
    settings, attn_implementation="eager"
  )
  with torch.no_grad():
    for p in model.parameters():
      if p.ndim > 1:
        p.normal_(0, 0.15)
      else:
        p.add_(0.3 * torch.randn_like(p))
  return model.eval()


def logits(model, tokens):
  """Logits (B, T, V) of a model of transformers, as numpy."""
  with torch.no_grad():
    return model(torch.as_tensor(tokens, dtype=torch.long)).logits.numpy()
