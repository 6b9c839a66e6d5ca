"""Models that are timed.

  python -m aigc_jax.bench --config=configs/bench.py:small
  python -m aigc_jax.bench --config=configs/bench.py:small,bf16

On a CPU: tiny, small, big: GPT-2-like, without biases; and one of each other
family (bert_small, vit_small ...: aigc_jax/presets/timed.py); in float32 unless
"bf16" is said, or "mixed", which is float32 with products of bfloat16. On an
accelerator, in bfloat16 unless one of the others is said: gpt2_124m, gpt2_355m,
gpt2_1.5b, gpt_1.3b (head width 128), llama_1b, llama_3b, llama_8b_slice (4
layers of the 8 B model).
Nothing is read from disk: the benchmark makes its own ids.
"""

from aigc_jax.presets import skeleton
from aigc_jax.presets.timed import FAMILIES, small

GPT = dict(
  norm="layer", norm_eps=1e-5, activation="gelu", gated=False,
  position="learned", tied=True, init_std=0.02,
)  # fmt: skip
LLAMA = dict(
  norm="rms", norm_eps=1e-5, activation="silu", gated=True,
  position="rotary", rotary_base=500_000.0, vocab=128_256,
)  # fmt: skip

# name -> (batch, length, tokens of a piece of the loss, model)
SIZES = {
  "tiny": (12, 64, None, dict(GPT, layers=4, dim=128, heads=4, vocab=256)),
  "small": (16, 256, None, dict(GPT, layers=6, dim=384, heads=6, vocab=256)),
  "big": (4, 512, None, dict(GPT, layers=6, dim=512, heads=8, vocab=32_000)),
  "gpt2_124m": (
    64, 1024, 8192, dict(GPT, layers=12, dim=768, heads=12, vocab=50_304)
  ),
  "gpt2_355m": (
    32, 1024, 8192, dict(GPT, layers=24, dim=1024, heads=16, vocab=50_304)
  ),
  "gpt2_1.5b": (
    32, 1024, 8192, dict(GPT, layers=48, dim=1600, heads=25, vocab=50_304)
  ),
  "gpt_1.3b": (
    16, 2048, 8192, dict(GPT, layers=24, dim=2048, heads=16, vocab=50_304)
  ),
  "llama_1b": (
    8, 4096, 8192,
    dict(LLAMA, layers=16, dim=2048, heads=32, kv_heads=8, mlp_dim=8192),
  ),
  "llama_3b": (
    4, 4096, 8192,
    dict(
      LLAMA, layers=28, dim=3072, heads=24, kv_heads=8, mlp_dim=8192
    ),
  ),
  "llama_8b_slice": (
    4, 4096, 8192,
    dict(
      LLAMA, layers=4, dim=4096, heads=32, kv_heads=8, mlp_dim=14_336,
      tied=False,
    ),
  ),
}  # fmt: skip
CPU = ("tiny", "small", "big", *FAMILIES)
# mixed: products take bfloat16, all else is float32.
DTYPES = {
  "fp32": dict(dtype="float32"),
  "bf16": dict(dtype="bfloat16"),
  "mixed": dict(dtype="float32", products="bf16"),
}


def get_config(preset="small"):
  size, _, kind = preset.partition(",")
  kind = kind or ("fp32" if size in CPU else "bf16")
  for word, words in ((size, (*SIZES, *FAMILIES)), (kind, DTYPES)):
    if word not in words:
      raise ValueError(
        f"preset {preset!r}: there is no {word!r} (expected SIZE or SIZE,DTYPE;"
        f" sizes: {', '.join((*SIZES, *FAMILIES))}; dtypes: "
        f"{', '.join(DTYPES)})"
      )
  config = small(size) if size in FAMILIES else _decoder(*SIZES[size])
  config.steps = 10_000
  if size not in CPU and kind == "bf16":
    config.objective.logits = "bfloat16"  # as of other codes in bfloat16
  config.compute.update(
    remat="none",
    steps_per_call=20 if size == "tiny" else 1,
    library="onednn" if size in ("small", "big") else "xla",
    **DTYPES[kind],
  )
  config.evaluate = dict()
  config.checkpoint.every_steps = None
  return config


def _decoder(batch: int, length: int, chunk: int | None, model: dict):
  config = skeleton()
  config.data.update(batch=batch, length=length, tokenizer="bytes")
  config.model.update(model)
  config.objective.chunk = chunk
  config.optim.weight_decay = 0.1
  config.compute.unroll = None
  return config
