"""Handwritten digits, a small run on images without a download.

  python -m aigc_jax.train --config=configs/digits.py:vit --workdir=DIR

Presets: vit, resnet. The 1,797 digits of scikit-learn (8 x 8 pixels), every
fifth held out; experiments/images has what the ViT reaches.
"""

from aigc_jax.presets import resnet, vit

SIZES = ("vit", "resnet")


def get_config(preset="vit"):
  if preset not in SIZES:
    raise ValueError(f"preset {preset!r}: expected {' or '.join(SIZES)}")
  config = (vit.get_config if preset == "vit" else resnet.get_config)(
    "s16,digits" if preset == "vit" else "r18,digits"
  )
  config.steps = 1000
  config.data.update(batch=64, image_size=8, crop=1.0)
  config.data.augment = dict(
    crop=None, shift=0, flip=False, operations=0, magnitude=9, mixup=None,
    cutmix=None,
  )  # fmt: skip
  config.objective.smoothing = 0.1
  config.model.update(image_size=8, init_std=None)
  config.compute.dtype = "float32"
  if preset == "vit":
    config.model.update(patch=2, layers=4, dim=64, heads=4, mlp_dim=256)
    config.optim.update(learning_rate=2e-3)
  else:
    config.model.update(
      blocks=(1, 1), widths=(32, 64), stem="small", stem_dim=32
    )
    config.optim.update(learning_rate=0.1)
  config.optim.update(warmup_steps=100)
  config.evaluate.heldout.every_steps = 250
  config.checkpoint.every_steps = 500
  config.log.every_steps = 50
  return config
