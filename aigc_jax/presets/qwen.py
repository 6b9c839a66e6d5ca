"""Qwen 2 (arXiv:2407.10671) and Qwen 3 (arXiv:2505.09388), dense sizes.

Presets: the names in SIZES; a second word names the dataset (c4, lm1b,
stdlib). Learning rates and batches are not published; those here are Llama
3's at the nearest size.
"""

from aigc_jax.presets.published import published

QWEN2 = dict(
  head_dim=128, attention_bias=True, batch=512, length=4096, steps=500_000,
  learning_rate=3e-4,
)  # fmt: skip
QWEN3 = dict(
  vocab=151936, kv_heads=8, head_dim=128, qk_norm=True, batch=1024,
  length=4096, steps=500_000, learning_rate=3e-4,
)  # fmt: skip

SIZES = {
  "qwen2_0.5b": QWEN2 | dict(
    vocab=151936, layers=24, dim=896, heads=14, kv_heads=2, head_dim=64,
    mlp_dim=4864, tied=True,
  ),
  "qwen2_1.5b": QWEN2 | dict(
    vocab=151936, layers=28, dim=1536, heads=12, kv_heads=2, mlp_dim=8960,
    tied=True,
  ),
  "qwen2_7b": QWEN2 | dict(
    vocab=152064, layers=28, dim=3584, heads=28, kv_heads=4, mlp_dim=18944,
  ),
  "qwen2_72b": QWEN2 | dict(
    vocab=152064, layers=80, dim=8192, heads=64, kv_heads=8, mlp_dim=29568,
    learning_rate=1.5e-4,
  ),
  "qwen3_0.6b": QWEN3 | dict(
    layers=28, dim=1024, heads=16, mlp_dim=3072, tied=True
  ),
  "qwen3_1.7b": QWEN3 | dict(
    layers=28, dim=2048, heads=16, mlp_dim=6144, tied=True
  ),
  "qwen3_4b": QWEN3 | dict(
    layers=36, dim=2560, heads=32, mlp_dim=9728, tied=True
  ),
  "qwen3_8b": QWEN3 | dict(layers=36, dim=4096, heads=32, mlp_dim=12288),
  "qwen3_14b": QWEN3 | dict(layers=40, dim=5120, heads=40, mlp_dim=17408),
  "qwen3_32b": QWEN3 | dict(layers=64, dim=5120, heads=64, mlp_dim=25600),
}  # fmt: skip


def get_config(preset="qwen3_0.6b"):
  shared = dict(rotary_base=1_000_000.0, norm_eps=1e-6, tied=False)
  return published(SIZES, preset, "c4", **shared)
