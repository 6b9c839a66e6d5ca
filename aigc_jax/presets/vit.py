"""ViT (arXiv:2010.11929), exact in its parameter counts.

Presets: s16, b16, l16; a second word names the dataset (imagenet, cifar10,
digits; configs/digits.py is a small one for those). How they are trained is the
simple baseline (arXiv:2205.01580) but for the class token: 90 epochs at a batch
of 1024, RandAugment, MixUp of 0.2.
"""

from aigc_jax.presets.images import images, of, sized

RUN = dict(
  patch=16, image_size=224, batch=1024, steps=112_590, learning_rate=1e-3,
  warmup_steps=10_000,
)  # fmt: skip

SIZES = {
  "s16": dict(RUN, layers=12, dim=384, heads=6, mlp_dim=1536),
  "b16": dict(RUN, layers=12, dim=768, heads=12, mlp_dim=3072),
  "l16": dict(RUN, layers=24, dim=1024, heads=16, mlp_dim=4096),
}  # fmt: skip


def get_config(preset="s16"):
  size, dataset = sized(SIZES, preset)
  config = images()
  config.steps = size.pop("steps")
  config.data.batch = size.pop("batch")
  config.data.image_size = size["image_size"]
  config.data.augment.update(operations=2, magnitude=10, mixup=0.2)
  config.data.update(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
  config.objective.smoothing = 0.0
  config.optim.update(
    learning_rate=size.pop("learning_rate"), weight_decay=0.1, b2=0.999,
    warmup_steps=size.pop("warmup_steps"), final_fraction=0.0,
  )  # fmt: skip
  config.model = dict(
    kind="vit",
    classes=1000,  # labels that are told apart
    channels=3,  # of an image
    **size,  # image_size, patch, layers, dim, heads, mlp_dim
    activation="gelu",
    norm_eps=1e-6,  # added to the variance
    position="learned",  # or sincos, rotary (of rows and columns), none
    pool="token",  # labels are read from a class token; mean: of the patches
    registers=0,  # learned vectors beside the patches
    rotary_base=100.0,  # wavelength of the slowest plane, over 2 pi
    init_std=0.02,  # of all weights; None: by fan-in
    dropout=0.0,
  )
  config.compute.dtype = "bfloat16"
  config.evaluate.heldout.every_steps = 2500
  config.checkpoint.update(every_steps=2500)
  return of(config, dataset)
