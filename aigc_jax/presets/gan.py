"""GANs: DCGAN (arXiv:1511.06434) and PatchGAN's judge (arXiv:1611.07004).

Presets: dcgan, at its published 3,576,704 and 2,765,568 parameters, and
patchgan, whose judge has 2,765,633; style, which is StyleGAN2-like, at its
published rate, though weights are not scaled in the step here (its "equalized
learning rate"); a second word names the dataset (imagenet, cifar10, digits);
tiny and tiny_style are for images of 8 x 8, tiny's judge without batch norm,
both with R1. Rates and batch of dcgan as published. The average of the
parameters is what images are drawn with (--weights=average); training goes on
from the others.
"""

from aigc_jax.presets.dit import generative, small
from aigc_jax.presets.images import images, of, sized

WIDTHS = (64, 128, 256, 512)
SIZES = {
  "dcgan": dict(widths=WIDTHS, latent=100, patches=False),
  "patchgan": dict(widths=WIDTHS, latent=100, patches=True),
  "tiny": dict(widths=(32, 64), latent=32, patches=False),
  "style": dict(widths=(64, 128, 256, 512, 512), latent=512, mapping_layers=8),
  "tiny_style": dict(widths=(28, 40), latent=32, mapping_layers=4),
}


def get_config(preset="dcgan"):
  size, dataset = sized(SIZES, preset)
  config = images()
  config.steps = 100_000
  generative(config, batch=128, image_size=64)
  config.objective = dict(
    kind="adversarial",
    loss="non_saturating",  # or hinge
    r1=0.0,  # weight of the judge's squared slope at real images
  )
  config.optim.update(
    learning_rate=2e-4, schedule="constant", warmup_steps=0, weight_decay=0.0,
    b1=0.5, b2=0.999, clip=None, average=0.999,
    # Who moves less often, or is clipped alone, is a group: optim/groups.py.
    groups=(),
  )  # fmt: skip
  style = "mapping_layers" in size
  config.model = _styled(size) if style else _convolved(size)
  if style:
    config.objective.r1 = 10.0
    config.optim.update(learning_rate=2e-3, b1=0.0, b2=0.99)
    slow = dict(
      patterns=["generator/mapping/*"], weight_decay=0.0,
      learning_rate_factor=0.01,
    )  # fmt: skip
    config.optim.groups = (slow,)
  config.evaluate.heldout.every_steps = 2500
  config.checkpoint.update(every_steps=2500)
  if preset.startswith("tiny"):
    small(config)
    if not style:
      config.model.update(discriminator_norm="none", init_std=None)
    config.objective.r1 = 0.2
  return of(config, dataset)


def _convolved(size):
  return dict(
    kind="gan",
    image_size=64,
    channels=3,
    **size,  # widths of the stages, numbers in a code, patches that are judged
    generator_norm="batch",  # or none
    discriminator_norm="batch",
    norm_eps=1e-5,
    norm_momentum=0.1,  # share of the way that running moments go
    init_std=0.02,  # of all weights; None is by fan-in
  )


def _styled(size):
  return dict(
    kind="stylegan",
    image_size=64,
    channels=3,
    **size,  # widths of the stages, numbers in a code and a style, its layers
  )
