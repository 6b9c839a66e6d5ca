"""Architectures: inputs, a stack, a head. They only predict."""

from aigc_jax.models.clip import clip
from aigc_jax.models.ctc import ctc
from aigc_jax.models.decoder import decoder, widths
from aigc_jax.models.dit import dit
from aigc_jax.models.encoder import encoder
from aigc_jax.models.encoder_decoder import encoder_decoder
from aigc_jax.models.encoder_decoder import widths as two_widths
from aigc_jax.models.gan import gan
from aigc_jax.models.image_tokens import image_tokens_of
from aigc_jax.models.latent import latent_of
from aigc_jax.models.prompted import prompted_of
from aigc_jax.models.resnet import resnet
from aigc_jax.models.roles import roles_of
from aigc_jax.models.stylegan import stylegan
from aigc_jax.models.tts import tts
from aigc_jax.models.unet import unet
from aigc_jax.models.vae import vae
from aigc_jax.models.vit import vit
from aigc_jax.models.vq import vq
from aigc_jax.models.vqgan import vqgan
from aigc_jax.models.whisper import whisper

# The kinds a config may name; each is built from plain keyword arguments.
MODELS = {
  "clip": clip,
  "ctc": ctc,
  "decoder": decoder,
  "dit": dit,
  "encoder_decoder": encoder_decoder,
  "gan": gan,
  "resnet": resnet,
  "stylegan": stylegan,
  "tts": tts,
  "unet": unet,
  "vae": vae,
  "vit": vit,
  "vq": vq,
  "vqgan": vqgan,
  "encoder": encoder,
  "whisper": whisper,
}

# Keywords of theirs that change no result beyond rounding, whatever the kind:
# in a config they are not in the section model but in compute.
COMPUTE = (
  "dtype", "products", "remat", "unroll", "kernel", "fuse_projections",
  "embed_gradient",
)  # fmt: skip

# Several of them as one.
MODELS["roles"] = roles_of(MODELS)
MODELS["image_tokens"] = image_tokens_of(MODELS)
MODELS["prompted"] = prompted_of(MODELS)
MODELS["latent"] = latent_of(MODELS)

# What puts numbers for the widths of a kind that a config leaves None.
DERIVED = {"decoder": widths, "encoder_decoder": two_widths}
