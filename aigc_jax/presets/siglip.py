"""SigLIP (arXiv:2303.15343), exact in its parameter counts.

Presets: b16, l16, so400m; digits is a small one for the captioned digits of
scikit-learn. Trained as in the paper: 40 billion pairs at a batch of 32,768. A
fresh bias of -10 suits such a batch; of B pairs -ln(B - 1) says of each that it
is one in B, as digits has it. The published tokenizer is a folder that one must
have: --config.data.tokenizer=hf:FOLDER.
"""

from aigc_jax.presets import clip
from aigc_jax.presets.captions import chosen, digits


def size(width, layers, heads, mlp, patch=16, image_size=224, length=64):
  both = dict(layers=layers, dim=width, heads=heads, mlp_dim=mlp)
  return dict(
    image_size=image_size, patch=patch, embed_dim=width, text_length=length,
    **{f"image_{key}": value for key, value in both.items()},
    **{f"text_{key}": value for key, value in both.items()},
  )  # fmt: skip


SIZES = {
  "b16": size(768, 12, 12, 3072),
  "l16": size(1024, 24, 16, 4096, image_size=256),
  "so400m": size(1152, 27, 16, 4304, patch=14, length=16),
  "digits": size(768, 12, 12, 3072),
}


def get_config(preset="b16"):
  found = chosen(SIZES, preset)
  config = clip.get_config("b16")
  config.steps = 1_220_703
  config.data.update(
    image_size=found["image_size"], mean=(0.5,) * 3, std=(0.5,) * 3,
    tokenizer="hf:siglip-tokenizer", tokenizer_vocab=32_000,
    length=found["text_length"], start=None,
  )  # fmt: skip
  config.data.augment.crop = None
  config.objective.loss = "sigmoid"
  config.optim.update(
    learning_rate=1e-3, weight_decay=1e-4, b2=0.95, eps=1e-8,
    warmup_steps=10_000,
  )  # fmt: skip
  config.model.update(
    found, vocab=32_000, activation="gelu_tanh", norm_eps=1e-6,
    image_pool="attention", image_norm_before=False, patch_bias=True,
    image_projection=False, projection_bias=True, text_causal=False,
    text_end=None, scale=10.0, most_scale=None, bias=-10.0, init_std=None,
  )  # fmt: skip
  if preset == "digits":
    digits(config)
    config.model.bias = -4.14  # -ln(63), as of batches of 64
  return config
