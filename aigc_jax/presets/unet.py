"""U-Nets for diffusion on pixels: arXiv:2006.11239, arXiv:2105.05233.

Presets: ddpm, the first paper's of CIFAR-10 with its 35,746,307 parameters,
which knows no labels; adm64, the second's of ImageNet at 64 x 64; tiny is one
for images of 8 x 8. A second word names the dataset (imagenet, cifar10,
digits). Rates, batches and dropout as published; the average of the parameters
is what images are drawn with (--weights=average).
"""

from aigc_jax.presets.dit import generative, small
from aigc_jax.presets.images import images, of, sized

SIZES = {
  "ddpm": dict(
    classes=0, image_size=32, widths=(128, 256, 256, 256), blocks=2,
    attention=(16,),
  ),
  "adm64": dict(
    classes=1000, image_size=64, widths=(192, 384, 576, 768), blocks=3,
    attention=(32, 16, 8), head_dim=64, scale_shift=True, resample="block",
    sigma=True, norm_eps=1e-5,
  ),
  "tiny": dict(
    classes=1000, image_size=32, widths=(32, 64), blocks=1, attention=(4,),
    head_dim=16, scale_shift=True, groups=8, dropout=0.0,
  ),
}  # fmt: skip
MODEL = dict(
  kind="unet",
  classes=1000,  # labels; one more says that there is none; 0: it knows none
  image_size=32,
  channels=3,
  widths=(128, 256, 256, 256),  # of the stages, each half as large
  blocks=2,  # of a stage, and one more on the way back
  attention=(16,),  # rows of the stages whose places read each other
  head_dim=None,  # None: one head
  scale_shift=False,  # whether the condition scales what is normalised
  resample="convolution",  # or block: by what rows and columns are halved
  sigma=False,  # whether a variance is predicted too
  groups=32,  # of channels that are normalised together
  norm_eps=1e-6,
  init_std=None,  # of all weights but those that begin as zeros; by fan-in
  dropout=0.1,
)


def get_config(preset="ddpm"):
  size, dataset = sized(SIZES, preset)
  config = images()
  config.steps = 800_000
  generative(config, batch=128, image_size=size["image_size"])
  config.objective = dict(
    kind="flow",
    prediction="epsilon",  # or velocity, v: objectives/paths.py
    label_dropout=0.1,  # share of rows without a label, for guidance
    variance=0.0,  # weight of the bound by which model.sigma is learnt
  )
  config.optim.update(
    learning_rate=2e-4, schedule="constant", warmup_steps=5000,
    weight_decay=0.0, b2=0.999, average=0.9999,
  )  # fmt: skip
  config.model = MODEL | size
  config.compute.dtype = "bfloat16"
  config.evaluate.heldout.every_steps = 2500
  config.checkpoint.update(every_steps=2500)
  if preset.startswith("adm64"):
    config.steps = 540_000
    config.data.batch = 2048
    config.objective.variance = 1e-3
    config.optim.update(learning_rate=3e-4, warmup_steps=0)
  if preset.startswith("tiny"):
    small(config)
    config.compute.dtype = "float32"
    config.objective.prediction = "velocity"
    config.optim.update(learning_rate=1e-3, warmup_steps=100, average=0.995)
  of(config, dataset)
  if preset.startswith("ddpm"):
    config.model.classes = 0
  return config
