"""Images from captions: a DiT or a U-Net that reads what they are to show.

The captions are read by a transformer of the model's own, trained with it:
cross attention to its tokens (arXiv:2310.00426, arXiv:2112.10752) and their
mean beside the time. Presets: b2, a DiT-B/2 beside a text tower as of CLIP's
B/32; unet, that of DDPM with the same; digits and digits_unet are small, for
the captioned digits of scikit-learn. The average of the parameters is what
images are drawn with (--weights=average).
"""

from aigc_jax.presets import dit, unet
from aigc_jax.presets.captions import captions, chosen

TOWER = dict(text_layers=12, text_dim=512, text_heads=8)
SMALL = dict(text_layers=2, text_dim=64, text_heads=4)
SIZES = {
  "b2": dict(of="dit:b2", **TOWER),
  "unet": dict(of="unet:ddpm", **TOWER),
  "digits": dict(of="dit:tiny,digits", **SMALL),
  "digits_unet": dict(of="unet:tiny,digits", **SMALL),
}


def get_config(preset="b2"):
  size = chosen(SIZES, preset)
  family, _, name = size.pop("of").partition(":")
  own = {"dit": dit, "unet": unet}[family].get_config(name)
  config = captions()
  config.steps, config.objective = own.steps, own.objective
  config.optim, config.checkpoint = own.optim, own.checkpoint
  config.compute = own.compute
  config.data.update(
    batch=own.data.batch, image_size=own.data.image_size,
    channels=own.data.channels, crop=1.0, mean=own.data.mean, std=own.data.std,
    draw=True,
  )  # fmt: skip
  config.data.augment.update(crop=None, flip=False)
  config.objective.label_dropout = 0.1  # share of rows without a caption
  config.model = own.model.to_dict() | dict(
    classes=0,  # labels; it is told captions instead
    vocab=config.data.tokenizer_vocab,  # at least the tokenizer's ids
    text_length=config.data.length,  # tokens of a caption, its end included
    **size,  # text_layers, text_dim, text_heads
    text_mlp_dim=None,  # 4 text_dim
    text_end=1,  # the id that ends a caption; of sentencepiece 1
  )
  del config.evaluate.recall
  config.evaluate.heldout.every_steps = own.evaluate.heldout.every_steps
  if preset.startswith("digits"):
    config.data.sources = (
      dict(kind="package", name="digits", split="train", weight=1.0),
    )
    config.data.update(tokenizer="bytes", length=24)
    config.model.update(vocab=257, text_length=24, text_end=256)
  return config
