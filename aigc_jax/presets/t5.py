"""T5 (arXiv:1910.10683) and T5 1.1 (arXiv:2002.05202): span corruption.

Presets: the names in SIZES; a second word names the dataset (c4, lm1b,
stdlib). As in the paper 2**19 steps of 128 windows of 568 tokens, which make
sources of 512 and targets of 114, and Adafactor with 1 / sqrt(step) after
10,000 steps. The published tokenizer is a file that one must have:
--config.data.tokenizer=hf:FOLDER; its ids from 32099 downwards are sentinels.
"""

from ml_collections import ConfigDict

from aigc_jax.presets.keys import skeleton
from aigc_jax.presets.published import choose


def size(dim, layers, mlp_dim, heads, head_dim=64):
  return dict(
    dim=dim, encoder_layers=layers, decoder_layers=layers, mlp_dim=mlp_dim,
    heads=heads, head_dim=head_dim,
  )  # fmt: skip


# The first release: ReLU, one embedding for everything.
ONE = dict(activation="relu", gated=False, tied=True, tied_scale=True)
# 1.1: gated, and a head of its own, before which nothing is scaled.
LATER = dict(activation="gelu_tanh", gated=True, tied=False, tied_scale=False)

SIZES = {
  "small": ONE | size(512, 6, 2048, 8),
  "base": ONE | size(768, 12, 3072, 12),
  "large": ONE | size(1024, 24, 4096, 16),
  "3b": ONE | size(1024, 24, 16384, 32, 128),
  "v1_1_small": LATER | size(512, 8, 1024, 6),
  "v1_1_base": LATER | size(768, 12, 2048, 12),
  "v1_1_large": LATER | size(1024, 24, 2816, 16),
  "v1_1_xl": LATER | size(2048, 24, 5120, 32),
  "v1_1_xxl": LATER | size(4096, 24, 10240, 64),
}

MODEL = dict(
  kind="encoder_decoder", vocab=32128, norm="rms", norm_eps=1e-6,
  norm_bias=False, norm_place="before", final_norm=True, attention_bias=False,
  mlp_bias=False, attention_scale=1.0, position="relative", relative_buckets=32,
  relative_distance=128, embed_scale=False, shared=True, head_bias=False,
  start_token=0, embed_std=1.0, init_std=None, dropout=0.0,
)  # fmt: skip


def get_config(preset="v1_1_base") -> ConfigDict:
  found, sources = choose(preset, SIZES, "c4")
  config = skeleton()
  config.steps = 2**19
  config.model = ConfigDict(MODEL | found)
  config.compute.update(dtype="bfloat16", remat="full")
  config.data.update(
    sources=sources, tokenizer_vocab=32_000, validation=0.001, batch=128,
    length=568,
  )  # fmt: skip
  config.data.task = ConfigDict(
    dict(
      kind="span_corruption", noise=0.15, mean_span=3.0, first_sentinel=32099,
      start_token=0,
    )
  )  # fmt: skip
  config.objective.z_loss = 1e-4
  config.optim.update(
    kind="adafactor", learning_rate=0.01, schedule="rsqrt", warmup_steps=10_000,
    weight_decay=0.0,
  )  # fmt: skip
  config.evaluate.heldout.update(every_steps=2000, batches=64)
  config.checkpoint.update(every_steps=1000, keep_every_steps=10_000)
  return config
