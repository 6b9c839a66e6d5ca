"""Images from captions: a DiT or a U-Net that reads what they are to show.

The captions are read by a transformer of the model's own, trained with it:
cross attention to its tokens (arXiv:2310.00426, arXiv:2112.10752) and their
mean beside the time. Presets: b2, a DiT-B/2 beside a text tower as of CLIP's
B/32; unet, that of DDPM with the same; digits and digits_unet are small, for
the captioned digits of scikit-learn. b2_clip, unet_clip, digits_clip and
digits_unet_clip read the features of a frozen text tower instead, that of
configs/clip.py:b32 or :digits: --config.frozen.text=DIR, a run of that, or
hf:FOLDER. The average of the parameters is what
images are drawn with (--weights=average).
"""

from ml_collections import ConfigDict

from aigc_jax.presets import clip, dit, unet
from aigc_jax.presets.captions import captions, chosen

TOWER = dict(text_layers=12, text_dim=512, text_heads=8)
SMALL = dict(text_layers=2, text_dim=64, text_heads=4)
SIZES = {
  "b2": dict(of="dit:b2", **TOWER),
  "unet": dict(of="unet:ddpm", **TOWER),
  "digits": dict(of="dit:tiny,digits", **SMALL),
  "digits_unet": dict(of="unet:tiny,digits", **SMALL),
  "b2_clip": dict(of="dit:b2", tower="b32"),
  "unet_clip": dict(of="unet:ddpm", tower="b32"),
  "digits_clip": dict(of="dit:tiny,digits", tower="digits"),
  "digits_unet_clip": dict(of="unet:tiny,digits", tower="digits"),
}


def get_config(preset="b2"):
  size = chosen(SIZES, preset)
  tower = size.pop("tower", None)
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
    **(size or SMALL),  # text_layers, text_dim, text_heads
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
  return config if tower is None else _read_by(clip.get_config(tower), config)


def _read_by(tower: ConfigDict, config: ConfigDict) -> ConfigDict:
  """The config of a model that is told what a CLIP's text tower reads."""
  for key in ("tokenizer", "tokenizer_vocab", "length", "start", "pad"):
    config.data[key] = tower.data[key]
  text = tower.model.to_dict() | dict(dtype="float32")
  own = dict(classes=0)  # labels; it is told captions instead
  for key in ("vocab", "text_length", "text_end"):
    own[key] = text[key]
  reads = dict(
    text_layers=0,  # the tower reads
    text_dim=text["text_dim"], text_heads=None, text_mlp_dim=None,
  )  # fmt: skip
  denoiser = config.model.to_dict() | own | reads
  config.model = ConfigDict(
    dict(kind="prompted", **own, parts=dict(text=text, denoiser=denoiser))
  )
  config.frozen = ConfigDict(dict(text="CLIP_RUN"))  # a run of configs/clip.py
  return config
