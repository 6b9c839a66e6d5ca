"""GPT-3 (arXiv:2005.14165, table 2.1), with dense attention in every layer.

Presets: 125m, 350m, 760m, 1.3b, 2.7b, 6.7b, 13b, 175b; a second word names the
dataset (c4, lm1b, stdlib). Each trains on 300 billion tokens with a warm-up of
375 million, as the paper does. Two cells of the table contradict its parameter
counts and are read as slips: 24 heads of 128 for the 1.3b (16 here), and a
width of 5140 for the 13b (5120 here). Every other layer of the paper's models
is locally banded; that has no influence on the parameters.
"""

from aigc_jax.presets.published import published

SIZES = {
  "125m": dict(layers=12, dim=768, heads=12, batch=256, learning_rate=6e-4),
  "350m": dict(layers=24, dim=1024, heads=16, batch=256, learning_rate=3e-4),
  "760m": dict(layers=24, dim=1536, heads=16, batch=256, learning_rate=2.5e-4),
  "1.3b": dict(layers=24, dim=2048, heads=16, batch=512, learning_rate=2e-4),
  "2.7b": dict(layers=32, dim=2560, heads=32, batch=512, learning_rate=1.6e-4),
  "6.7b": dict(layers=32, dim=4096, heads=32, batch=1024, learning_rate=1.2e-4),
  "13b": dict(layers=40, dim=5120, heads=40, batch=1024, learning_rate=1e-4),
  "175b": dict(layers=96, dim=12288, heads=96, batch=1536, learning_rate=6e-5),
}


def get_config(preset="125m"):
  length = 2048
  runs = {
    name: dict(
      size, kv_heads=size["heads"], head_dim=size["dim"] // size["heads"],
      mlp_dim=4 * size["dim"], length=length,
      steps=round(300e9 / (size["batch"] * length)),
    )
    for name, size in SIZES.items()
  }  # fmt: skip
  config = published(
    runs, preset, "c4",
    vocab=50257, activation="gelu_tanh", gated=False, norm="layer",
    norm_eps=1e-5, norm_bias=True, attention_bias=True, out_bias=True,
    mlp_bias=True, position="learned", position_length=length, tied=True,
    init_std=0.02,
  )  # fmt: skip
  config.optim.warmup_steps = round(375e6 / (config.data.batch * length))
  return config
