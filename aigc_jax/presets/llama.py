"""Llama 1, 2, 3, 3.1, 3.2 (arXiv:2302.13971, 2307.09288, 2407.21783).

Presets: the names in SIZES; a second word names the dataset (c4, lm1b,
stdlib). Batch, length, steps and learning rate follow the papers in round
figures; the mixtures of data they trained on are not public. llama3_405b and
llama31_* carry the scaled rotary frequencies of Llama 3.1; the 3.2 models were
distilled, so their recipe here is that of 3.1 8B.
"""

from aigc_jax.presets.published import published


def scaled(factor):
  kind = dict(kind="llama3", low_factor=1.0, high_factor=4.0)
  return dict(rotary_scaling=kind | dict(factor=factor, original_length=8192))


ONE = dict(vocab=32000, norm_eps=1e-6, batch=2048, length=2048, steps=250_000)
TWO = dict(vocab=32000, norm_eps=1e-5, batch=1024, length=4096, steps=500_000)
THREE = dict(
  vocab=128256, norm_eps=1e-5, kv_heads=8, rotary_base=500_000.0, batch=512,
  length=8192, steps=1_200_000,
)  # fmt: skip
B1 = dict(layers=16, dim=2048, heads=32, head_dim=64, mlp_dim=8192, tied=True)
B3 = dict(layers=28, dim=3072, heads=24, mlp_dim=8192, tied=True)
B7 = dict(layers=32, dim=4096, heads=32, kv_heads=32, mlp_dim=11008)
B8 = dict(layers=32, dim=4096, heads=32, mlp_dim=14336)
B13 = dict(layers=40, dim=5120, heads=40, kv_heads=40, mlp_dim=13824)
B33 = dict(layers=60, dim=6656, heads=52, kv_heads=52, mlp_dim=17920)
B65 = dict(layers=80, dim=8192, heads=64, kv_heads=64, mlp_dim=22016)
B70 = dict(layers=80, dim=8192, heads=64, kv_heads=8, mlp_dim=28672)
B405 = dict(layers=126, dim=16384, heads=128, mlp_dim=53248)

SIZES = {
  "llama1_7b": ONE | B7 | dict(learning_rate=3e-4),
  "llama1_13b": ONE | B13 | dict(learning_rate=3e-4),
  "llama1_33b": ONE | B33 | dict(learning_rate=1.5e-4),
  "llama1_65b": ONE | B65 | dict(learning_rate=1.5e-4),
  "llama2_7b": TWO | B7 | dict(learning_rate=3e-4),
  "llama2_13b": TWO | B13 | dict(learning_rate=3e-4),
  "llama2_70b": TWO | B70 | dict(learning_rate=1.5e-4),
  "llama3_8b": THREE | B8 | dict(learning_rate=3e-4),
  "llama3_70b": THREE | B70 | dict(learning_rate=1.5e-4),
  "llama3_405b": THREE | B405 | scaled(8.0) | dict(learning_rate=8e-5),
  "llama31_8b": THREE | B8 | scaled(8.0) | dict(learning_rate=3e-4),
  "llama31_70b": THREE | B70 | scaled(8.0) | dict(learning_rate=1.5e-4),
  "llama32_1b": THREE | B1 | scaled(32.0) | dict(learning_rate=3e-4),
  "llama32_3b": THREE | B3 | scaled(32.0) | dict(learning_rate=3e-4),
}


def get_config(preset="llama3_8b"):
  return published(SIZES, preset, "c4", head_dim=128, tied=False)
