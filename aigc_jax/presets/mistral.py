"""Mistral 7B (arXiv:2310.06825).

Presets: 7b is version 0.1, each layer seeing 4096 positions; 7b_v03 has a
larger vocabulary, a longer rotary base and no window. A second word names the
dataset (c4, lm1b, stdlib). How it was trained is not published: the recipe is
that of Llama 2 7B.
"""

from aigc_jax.presets.published import published

SIZES = {
  "7b": dict(
    vocab=32000, windows=(4096,), rotary_base=10_000.0, batch=512,
    length=8192, steps=500_000, learning_rate=3e-4,
  ),
  "7b_v03": dict(
    vocab=32768, windows=(), rotary_base=1_000_000.0, batch=512,
    length=8192, steps=500_000, learning_rate=3e-4,
  ),
}  # fmt: skip


def get_config(preset="7b"):
  return published(
    SIZES, preset, "c4",
    layers=32, dim=4096, heads=32, kv_heads=8, head_dim=128, mlp_dim=14336,
    norm_eps=1e-5, tied=False,
  )  # fmt: skip
