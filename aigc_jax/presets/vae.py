"""A variational autoencoder (arXiv:1312.6114) of small images.

Presets: small; places, whose code has 32 x 32 places of four numbers for an
image of 256 x 256, as latent diffusion reads it, with a light weight on the
divergence; a second word names the dataset (imagenet, cifar10, digits); tiny
and tiny_places are for images of 8 x 8.
"""

from aigc_jax.presets.dit import generative, small
from aigc_jax.presets.images import images, of, sized

SIZES = {
  "small": dict(image_size=32, widths=(64, 128), latent=64),
  "places": dict(image_size=256, widths=(128, 256, 512), latent=4, places=True),
  "tiny": dict(image_size=32, widths=(32, 64), latent=16),
  "tiny_places": dict(image_size=32, widths=(64,), latent=2, places=True),
}
MODEL = dict(
  kind="vae",
  image_size=32,
  channels=3,
  widths=(64, 128),  # of the stages, each of which halves rows and columns
  latent=64,  # numbers in a code
  places=False,  # whether each place of the last stage has so many
  activation="silu",
)


def get_config(preset="small"):
  size, dataset = sized(SIZES, preset)
  config = images()
  config.steps = 50_000
  generative(config, batch=128, image_size=size["image_size"])
  config.data.augment.flip = False  # bits per dimension are of images as is
  config.objective = dict(
    kind="elbo",
    likelihood="logistic",  # or gaussian, of whole-numbered pixels
    beta=1.0,  # weight of the divergence in the loss
    levels=256,  # that a pixel has, from low to high
    low=-1.0,
    high=1.0,
  )
  config.optim.update(
    learning_rate=1e-3, weight_decay=0.0, b2=0.999, warmup_steps=500
  )
  config.model = MODEL | size
  if size.get("places"):
    config.objective.beta = 0.05
  config.evaluate.heldout.every_steps = 2500
  config.checkpoint.update(every_steps=2500)
  if preset.startswith("tiny"):
    small(config)
    config.optim.warmup_steps = 100
  if dataset == "digits":
    config.objective.levels = 17  # greys that its pixels have
  return of(config, dataset)
