"""GPT-2 (Radford et al. 2019), exact in its parameter counts.

Presets: small, medium, large, xl; a second word names the dataset (lm1b, c4,
or stdlib, which needs no download). The paper tells neither learning rate nor
length of training: both are here those of GPT-3 at the same size, for 10
billion tokens, without dropout.
"""

from aigc_jax.presets.published import published

RUN = dict(batch=512, length=1024, steps=20_000)

SIZES = {
  "small": dict(
    RUN, layers=12, dim=768, heads=12, kv_heads=12, head_dim=64,
    mlp_dim=3072, learning_rate=6e-4,
  ),
  "medium": dict(
    RUN, layers=24, dim=1024, heads=16, kv_heads=16, head_dim=64,
    mlp_dim=4096, learning_rate=3e-4,
  ),
  "large": dict(
    RUN, layers=36, dim=1280, heads=20, kv_heads=20, head_dim=64,
    mlp_dim=5120, learning_rate=2.5e-4,
  ),
  "xl": dict(
    RUN, layers=48, dim=1600, heads=25, kv_heads=25, head_dim=64,
    mlp_dim=6400, learning_rate=2e-4,
  ),
}  # fmt: skip


def get_config(preset="small"):
  config = published(
    SIZES, preset, "lm1b",
    vocab=50257, activation="gelu_tanh", gated=False, norm="layer",
    norm_eps=1e-5, norm_bias=True, attention_bias=True, out_bias=True,
    mlp_bias=True, position="learned", position_length=1024, tied=True,
    init_std=0.02,
  )  # fmt: skip
  config.optim.warmup_steps = 700
  return config
