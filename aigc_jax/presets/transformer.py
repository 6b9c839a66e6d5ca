"""The Transformer of arXiv:1706.03762: pairs, sinusoids, norms after the sums.

Presets: base, big. Both name pairs of WMT 2014 that one must have as JSON lines
(--config.data.sources[0].path=FILE, with the fields en and de), and train a
SentencePiece of 37,000 pieces on them where the paper had as many byte pairs.
Rows are packed: 128 of 196 tokens a side are about the paper's 25,000 tokens of
a batch. The learning rate is the paper's dim ** -0.5 * warmup ** -0.5 at its
peak.
"""

from ml_collections import ConfigDict

from aigc_jax.presets.keys import skeleton

SIZES = {
  "base": dict(dim=512, mlp_dim=2048, heads=8, dropout=0.1),
  "big": dict(dim=1024, mlp_dim=4096, heads=16, dropout=0.3),
}
STEPS = {"base": 100_000, "big": 300_000}
WARMUP = 4000

MODEL = dict(
  kind="encoder_decoder", vocab=37_000, encoder_layers=6, decoder_layers=6,
  head_dim=None, activation="relu", gated=False, norm="layer", norm_eps=1e-6,
  norm_bias=True, norm_place="after", final_norm=False, attention_bias=True,
  mlp_bias=True, attention_scale=None, position="sinusoidal",
  relative_buckets=None, relative_distance=None, embed_scale=True, shared=True,
  tied=True, tied_scale=False, head_bias=False, start_token=None,
  embed_std=None, init_std=None,
)  # fmt: skip

DATA = dict(
  kind="pairs", sources=(), tokenizer="sentencepiece", tokenizer_vocab=37_000,
  batch=128, source_length=196, target_length=196, packed=True, long="left_out",
  shuffle=True, validation=0.001, root="~/.cache/aigc_jax", skip_steps=(),
)  # fmt: skip


def get_config(preset="base") -> ConfigDict:
  if preset not in SIZES:
    raise ValueError(f"preset {preset!r}: expected one of {', '.join(SIZES)}")
  found = SIZES[preset]
  config = skeleton()
  config.steps = STEPS[preset]
  config.model = ConfigDict(MODEL | found)
  config.compute.dtype = "bfloat16"
  source = dict(
    kind="json", path="wmt14.jsonl", source="en", target="de", weight=1.0
  )
  config.data = ConfigDict(DATA | dict(sources=(source,)))
  config.objective.label_smoothing = 0.1
  config.optim.update(
    learning_rate=(found["dim"] * WARMUP) ** -0.5, schedule="rsqrt",
    warmup_steps=WARMUP, weight_decay=0.0, clip=None, b1=0.9, b2=0.98, eps=1e-9,
  )  # fmt: skip
  config.evaluate.heldout.update(every_steps=1000, batches=64)
  config.checkpoint.update(every_steps=1000, keep_every_steps=10_000)
  return config
