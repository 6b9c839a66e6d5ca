"""CLIP (arXiv:2103.00020), exact in its parameter counts.

Presets: b32, b16, l14, l14_336; digits is a small one for the captioned digits
of scikit-learn. Trained as in the paper: 32 epochs of 400 million pairs at a
batch of 32,768. The published tokenizer is a folder that one must have, such as
that of an exported model: --config.data.tokenizer=hf:FOLDER; with another one,
model.vocab and model.text_end are its own, and data.start is None.
"""

from aigc_jax.presets.captions import captions, chosen, digits


def size(image, patch, width, layers, text, embed, image_size=224):
  return dict(
    image_size=image_size, patch=patch, image_layers=layers, image_dim=width,
    image_heads=width // 64, image_mlp_dim=4 * width, text_layers=12,
    text_dim=text, text_heads=text // 64, text_mlp_dim=4 * text,
    embed_dim=embed, learning_rate=image,
  )  # fmt: skip


SIZES = {
  "b32": size(5e-4, 32, 768, 12, 512, 512),
  "b16": size(5e-4, 16, 768, 12, 512, 512),
  "l14": size(4e-4, 14, 1024, 24, 768, 768),
  "l14_336": size(2e-5, 14, 1024, 24, 768, 768, image_size=336),
  "digits": size(1e-3, 16, 768, 12, 512, 512),
}


def get_config(preset="b32"):
  found = chosen(SIZES, preset)
  config = captions()
  config.steps = 390_625
  config.data.update(
    batch=32_768, image_size=found["image_size"], crop=1.0,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    tokenizer="hf:clip-tokenizer", tokenizer_vocab=49_408, length=77,
  )  # fmt: skip
  config.data.start = 49_406
  config.optim.update(
    learning_rate=found.pop("learning_rate"), weight_decay=0.2, b2=0.98,
    eps=1e-6, warmup_steps=2000, final_fraction=0.0,
  )  # fmt: skip
  config.model = dict(
    kind="clip",
    channels=3,  # of an image
    **found,  # image_size, patch, and of both towers layers, dim, heads
    vocab=49_408,  # at least the tokenizer's ids
    text_length=77,  # positions of the text tower
    activation="quick_gelu",
    norm_eps=1e-5,  # added to the variance
    image_pool="token",  # or mean, or attention: what a learned query reads
    image_norm_before=True,  # a norm before the first block too
    patch_bias=False,  # of the patches' projection
    image_projection=True,  # False: embed_dim is image_dim
    projection_bias=False,
    text_causal=True,  # whether a token sees those before it alone
    text_end=49_407,  # where a text is read; None: at the last place of a row
    scale=1 / 0.07,  # of fresh logits
    most_scale=100.0,  # that it may become; None: no limit
    bias=None,  # of fresh logits; None: none
    init_std=0.02,  # of all weights; None: by fan-in
    dropout=0.0,
  )
  config.compute.dtype = "bfloat16"
  config.evaluate.heldout.every_steps = 2500
  config.evaluate.recall.every_steps = 10_000
  config.checkpoint.update(every_steps=2500)
  if preset == "digits":
    digits(config)
    config.model.update(text_end=256)
  return config
