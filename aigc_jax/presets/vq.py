"""A VQ-VAE (arXiv:1711.00937) of images, or its like with FSQ.

Presets: small and fsq, the paper's 512 codes, or 1,000 of a grid (arXiv:
2309.15505), on 8 x 8 places of 32 x 32 pixels; f16, 1,024 codes on 16 x 16
places of 256 x 256 pixels, as MaskGIT reads them; gan, the same with
PatchGAN's judge beside it; vqgan and vqgan_16384, such codes and 16,384 of them
by the published nets of VQ-GAN (arXiv:2012.09841) with their 72,141,699 and
76,073,859 parameters beside the judge; tiny and tiny_gan are for images of 8 x
8. A second word names the dataset (imagenet, cifar10, digits).
"""

from aigc_jax.presets.dit import generative, small
from aigc_jax.presets.images import images, of, sized

VQGAN = dict(
  image_size=256, widths=(128, 128, 256, 256, 512), blocks=2, attention=(16,),
  quantizer="gradient", dim=256, judge_widths=(64, 128, 256, 512),
)  # fmt: skip
SIZES = {
  "small": dict(image_size=32, widths=(128, 256), codes=512, dim=64),
  "fsq": dict(
    image_size=32, widths=(128, 256), quantizer="fsq", levels=(8, 5, 5, 5)
  ),
  "f16": dict(image_size=256, widths=(128, 128, 256, 512), codes=1024, dim=256),
  "gan": dict(
    image_size=256, widths=(128, 128, 256, 512), codes=1024, dim=256,
    judge_widths=(64, 128, 256, 512),
  ),
  "vqgan": VQGAN | dict(codes=1024),
  "vqgan_16384": VQGAN | dict(codes=16384),
  "tiny": dict(image_size=32, widths=(64,), codes=32, dim=8),
  "tiny_gan": dict(
    image_size=32, widths=(64,), codes=32, dim=8, judge_widths=(32, 64),
    judge_norm="none", judge_init_std=None,
  ),
}  # fmt: skip
JUDGE = dict(
  judge_widths=(64, 128, 256, 512),  # of the stages of who judges places
  judge_norm="batch",  # or none
  norm_eps=1e-5,
  norm_momentum=0.1,  # share of the way that running moments go
  judge_init_std=0.02,  # of its weights; None: by fan-in
)
MODEL = dict(
  kind="vq",
  image_size=32,
  channels=3,
  # Of the stages, each of which halves rows and columns; with blocks all but
  # the last.
  widths=(128, 256),
  quantizer="ema",  # or gradient, fsq
  codes=None,  # of fsq as many as its levels make
  dim=None,  # of their vectors
  levels=(),  # of each channel of fsq
  decay=0.99,  # of the running means that vectors are
  revive=0.1,  # of an even share, below which a code starts anew; 0: never
  cosine=False,  # whether vectors have length one
  blocks=0,  # residual ones of a stage, one more on the way back; 0: none
  attention=(),  # rows of stages of blocks whose places read each other
  groups=32,  # of channels that blocks normalise together
  activation="silu",
)


def get_config(preset="small"):
  size, dataset = sized(SIZES, preset)
  config = images()
  config.steps = 100_000
  generative(config, batch=128, image_size=size["image_size"])
  config.objective = dict(
    kind="vq",
    beta=0.25,  # weight of what moves the encoder to its codes
    distance="square",  # of the pixels; or absolute
  )
  config.optim.update(
    learning_rate=3e-4, weight_decay=0.0, b2=0.999, warmup_steps=500
  )
  config.model = MODEL | size
  if "judge_widths" in size:
    config.model = MODEL | JUDGE | size | dict(kind="vqgan")
    config.objective = dict(
      kind="vqgan",
      beta=0.25,
      distance="absolute",
      loss="hinge",  # or non_saturating
      weight=0.8,  # of what the judge says of a drawn image
      adaptive=True,  # whether by the slopes of both losses too
      start_step=10_000,  # the update from which the judge is heard
    )
    config.optim.update(
      learning_rate=4.5e-6 * config.data.batch, b1=0.5, b2=0.9
    )
  config.evaluate.heldout.every_steps = 2500
  config.checkpoint.update(every_steps=2500)
  if preset.startswith("tiny"):
    small(config)
    config.optim.update(learning_rate=1e-3, warmup_steps=100)
    if "judge_widths" in size:
      config.objective.start_step = 500
  return of(config, dataset)
