"""A variational autoencoder (arXiv:1312.6114) of small images.

Presets: small; places, whose code has 32 x 32 places of four numbers for an
image of 256 x 256, as latent diffusion reads it, with a light weight on the
divergence; sd, the same places by the net of Stable Diffusion's VAE (arXiv:
2112.10752) with its 83,653,863 parameters and the weights of its loss, which
had a perceptual part and a judge besides; sd3, that of Stable Diffusion 3 and
of Flux, whose places have 16 numbers, with 83,819,683; a second word names the
dataset (imagenet, cifar10, digits); tiny, tiny_places and tiny_sd are for
images of 8 x 8. The published weights are read from their folder:
aigc_jax/presets/latent.py.
"""

from aigc_jax.presets.dit import generative, small
from aigc_jax.presets.images import images, of, sized

SIZES = {
  "small": dict(image_size=32, widths=(64, 128), latent=64),
  "places": dict(image_size=256, widths=(128, 256, 512), latent=4, places=True),
  "sd": dict(
    image_size=256, widths=(128, 256, 512, 512), latent=4, places=True,
    blocks=2, scales=False,
  ),
  "sd3": dict(
    image_size=256, widths=(128, 256, 512, 512), latent=16, places=True,
    projects=False, blocks=2, scales=False,
  ),
  "tiny": dict(image_size=32, widths=(32, 64), latent=16),
  "tiny_places": dict(image_size=32, widths=(64,), latent=2, places=True),
  "tiny_sd": dict(
    image_size=32, widths=(32, 64), latent=2, places=True, blocks=1, groups=8,
    scales=False,
  ),
}  # fmt: skip
MODEL = dict(
  kind="vae",
  image_size=32,
  channels=3,
  # Of the stages, each of which halves rows and columns; with blocks all but
  # the last.
  widths=(64, 128),
  latent=64,  # numbers in a code
  places=False,  # whether each place of the last stage has so many
  # Whether products of their own stand between the stages of blocks and a code.
  projects=True,
  blocks=0,  # residual ones of a stage, one more on the way back; 0: none
  attention=(),  # rows of stages of blocks whose places read each other
  groups=32,  # of channels that blocks normalise together
  scales=True,  # whether it tells a scale of each pixel
  activation="silu",
)


def rows_of(model) -> int:
  """Of the places of a code, for a config.model."""
  halvings = len(model["widths"]) - (model["blocks"] > 0)
  return model["image_size"] // 2**halvings


def get_config(preset="small"):
  size, dataset = sized(SIZES, preset)
  config = images()
  config.steps = 50_000
  generative(config, batch=128, image_size=size["image_size"])
  config.data.augment.flip = False  # bits per dimension are of images as is
  config.objective = dict(
    kind="elbo",
    likelihood="logistic",  # or gaussian, laplace, of whole-numbered pixels
    beta=1.0,  # weight of the divergence in the loss
    levels=256,  # that a pixel has, from low to high
    low=-1.0,
    high=1.0,
    log_scale=None,  # of all pixels, where the model tells none
  )
  config.optim.update(
    learning_rate=1e-3, weight_decay=0.0, b2=0.999, warmup_steps=500
  )
  config.model = MODEL | size
  if size.get("places"):
    config.objective.beta = 0.05
  if not size.get("scales", True):
    config.objective.update(likelihood="laplace", beta=1e-6, log_scale=0.0)
  config.evaluate.heldout.every_steps = 2500
  config.checkpoint.update(every_steps=2500)
  if preset.startswith("tiny"):
    small(config)
    config.optim.warmup_steps = 100
  if dataset == "digits":
    config.objective.levels = 17  # greys that its pixels have
  return of(config, dataset)
