"""Gemma 1, 2 and 3, text only (arXiv:2403.08295, 2408.00118, 2503.19786).

Presets: the names in SIZES; a second word names the dataset (c4, lm1b,
stdlib). How they were trained is not published in full (most by distillation):
the recipe here is Llama 3's at the nearest size.
"""

from aigc_jax.presets.published import published

RUN = dict(batch=512, length=8192, steps=500_000, learning_rate=3e-4)
ONE = RUN | dict(vocab=256_000, head_dim=256)
TWO = RUN | dict(
  vocab=256_000, head_dim=256, post_norm=True, windows=(4096, None),
  attention_softcap=50.0, logit_softcap=30.0,
)  # fmt: skip
THREE = RUN | dict(
  vocab=262_144, heads=4, kv_heads=1, head_dim=256, post_norm=True,
  qk_norm=True, windows=(512,) * 5 + (None,), rotary_base=1_000_000.0,
  rotary_local_base=10_000.0,
)  # fmt: skip

SIZES = {
  "gemma1_2b": ONE | dict(
    layers=18, dim=2048, heads=8, kv_heads=1, mlp_dim=16384
  ),
  "gemma1_7b": ONE | dict(
    layers=28, dim=3072, heads=16, kv_heads=16, mlp_dim=24576
  ),
  "gemma2_2b": TWO | dict(
    layers=26, dim=2304, heads=8, kv_heads=4, mlp_dim=9216
  ),
  "gemma2_9b": TWO | dict(
    layers=42, dim=3584, heads=16, kv_heads=8, mlp_dim=14336
  ),
  "gemma2_27b": TWO | dict(
    layers=46, dim=4608, heads=32, kv_heads=16, head_dim=128, mlp_dim=36864,
    attention_scale=144**-0.5,
  ),
  "gemma3_270m": THREE | dict(layers=18, dim=640, mlp_dim=2048),
  "gemma3_1b": THREE | dict(layers=26, dim=1152, mlp_dim=6912),
}  # fmt: skip


def get_config(preset="gemma2_2b"):
  return published(
    SIZES, preset, "c4",
    activation="gelu_tanh", norm_offset=1.0, norm_eps=1e-6, embed_scale=True,
    tied=True,
  )  # fmt: skip
