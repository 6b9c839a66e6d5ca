"""Latent diffusion (arXiv:2112.10752): a DiT or a U-Net on codes of a VAE.

Presets: b2 and xl2, DiTs at their published widths on the 32 x 32 places of
configs/vae.py:places; unet, that of DDPM on the same; sd, XL/2 on those of
configs/vae.py:sd, as published; tiny and tiny_unet on those of
configs/vae.py:tiny_places, tiny_sd on those of its tiny_sd. A second word names
the dataset (imagenet, cifar10, digits). The VAE is a run of one's own,
--config.frozen.vae=DIR, or a folder of diffusers' AutoencoderKL,
--config.frozen.vae=hf:FOLDER, as Stable Diffusion's is (its scaling_factor is
--config.model.scale=0.18215; Stable Diffusion 3's also has a shift_factor,
--config.model.scale=1.5305 --config.model.shift=0.0609); otherwise the first
step measures what codes are divided by. The average of the parameters is what
images are drawn with (--weights=average).
"""

from ml_collections import ConfigDict

from aigc_jax.presets import dit, unet, vae
from aigc_jax.presets.dit import brief, generative
from aigc_jax.presets.images import images, labels_of, of, sized

SIZES = {
  "b2": dict(of="dit:b2", vae="places"),
  "xl2": dict(of="dit:xl2", vae="places"),
  "unet": dict(of="unet:ddpm", vae="places"),
  "sd": dict(of="dit:xl2", vae="sd"),
  "tiny": dict(of="dit:tiny", vae="tiny_places"),
  "tiny_unet": dict(of="unet:tiny", vae="tiny_places"),
  "tiny_sd": dict(of="dit:tiny", vae="tiny_sd"),
}


def get_config(preset="b2"):
  size, dataset = sized(SIZES, preset)
  family, _, name = size["of"].partition(":")
  own = {"dit": dit, "unet": unet}[family].get_config(name)
  codes, tiny = vae.MODEL | vae.SIZES[size["vae"]], preset.startswith("tiny")
  if dataset == "digits":
    codes["channels"] = 1
  if tiny:
    codes["image_size"] = 8
  denoiser = own.model.to_dict() | dict(
    classes=labels_of(dataset),
    image_size=vae.rows_of(codes),
    channels=codes["latent"],
  )
  if tiny and family == "dit":
    denoiser["patch"] = 1
  config = images()
  config.steps, config.objective = own.steps, own.objective
  config.optim, config.checkpoint = own.optim, own.checkpoint
  config.compute = own.compute
  codes["dtype"] = "float32"  # of the VAE, whatever the denoiser's is
  generative(config, batch=256, image_size=codes["image_size"])
  config.model = ConfigDict(
    dict(
      kind="latent",
      classes=labels_of(dataset),
      scale=None,  # of codes; None: one over the deviation of the first batch
      shift=0.0,  # that is subtracted from them before
      sample=True,  # whether codes are drawn, or the means of what they may be
      parts=dict(vae=codes, denoiser=denoiser),
    )
  )
  config.frozen = ConfigDict(dict(vae="VAE_RUN"))  # a run of configs/vae.py
  config.evaluate.heldout.every_steps = 2500
  if tiny:
    brief(config)
  return of(config, dataset)
