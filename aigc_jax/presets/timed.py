"""Small models of the families that are timed on a CPU. Not a run by itself.

Each is a preset with what makes it small. Nothing drops anything, images come
as they are, and all step by AdamW and clip: so a peer's model is the same one.
"""

from ml_collections import ConfigDict

from aigc_jax.presets import (
  bert,
  clip,
  ctc,
  dit,
  gan,
  resnet,
  t5,
  tts,
  unet,
  vae,
  vit,
  vq,
  whisper,
)

PRESETS = dict(
  bert=bert, clip=clip, ctc=ctc, dit=dit, gan=gan, resnet=resnet, t5=t5,
  tts=tts, unet=unet, vae=vae, vit=vit, vq=vq, whisper=whisper,
)  # fmt: skip

# name: (preset, what is changed)
FAMILIES = {
  "bert_small": (
    "bert:base",
    {
      "compute.unroll": None, "model.layers": 6, "model.dim": 384,
      "model.heads": 6, "model.mlp_dim": 1536, "model.vocab": 8192,
      "model.dropout": 0.0, "model.pooler": False, "model.next_sentence": False,
      "model.position_length": 128, "objective.next_sentence": False,
      "data.task.next_sentence": False, "data.length": 128, "data.batch": 16,
      "data.tokenizer_vocab": 4096,
    },
  ),
  "t5_small": (
    "t5:small",
    {
      "compute.unroll": None, "model.dim": 256, "model.encoder_layers": 4,
      "model.decoder_layers": 4, "model.heads": 4, "model.head_dim": 64,
      "model.mlp_dim": 1024, "model.vocab": 8192,
      "data.task.first_sentinel": 8191, "data.length": 254, "data.batch": 8,
      "data.tokenizer_vocab": 4096, "objective.z_loss": 0.0,
      "objective.chunk": None,
    },
  ),
  "vit_small": (
    "vit:s16",
    {
      "compute.unroll": None, "model.layers": 6, "model.dim": 192,
      "model.heads": 3, "model.mlp_dim": 768, "data.batch": 8,
    },
  ),
  "resnet_small": (
    "resnet:r18",
    {
      "model.image_size": 112, "data.image_size": 112, "data.batch": 8,
    },
  ),
  "clip_small": (
    "clip:b32",
    {
      "compute.unroll": None, "model.patch": 32, "model.image_dim": 192,
      "model.image_heads": 3, "model.image_layers": 6,
      "model.image_mlp_dim": 768, "model.text_dim": 128, "model.text_heads": 2,
      "model.text_layers": 6, "model.text_mlp_dim": 512,
      "model.text_length": 32, "model.vocab": 8192, "model.text_end": 8191,
      "model.embed_dim": 128, "data.start": 8190, "data.length": 32,
      "data.batch": 16, "data.tokenizer": "bytes",
    },
  ),
  "whisper_small": (
    "whisper:tiny",
    {
      "compute.unroll": None, "model.vocab": 8192, "model.start_token": 8191,
      "model.position_length": 64, "data.target_length": 64, "data.batch": 1,
      "objective.chunk": None,
    },
  ),
  "dit_small": (
    "dit:tiny,cifar10",
    {
      "compute.unroll": None, "data.image_size": 32, "model.image_size": 32,
      "model.dim": 192, "model.layers": 6, "data.batch": 8,
    },
  ),
  "unet_small": (
    "unet:tiny,cifar10",
    {
      "data.image_size": 32, "model.image_size": 32, "model.attention": (16,),
      "data.batch": 4,
    },
  ),
  "vae_small": (
    "vae:tiny,cifar10",
    {
      "data.image_size": 32, "model.image_size": 32, "data.batch": 16,
    },
  ),
  "vae_sd_small": (
    "vae:tiny_sd,cifar10",
    {
      "data.image_size": 32, "model.image_size": 32, "data.batch": 8,
    },
  ),
  "vq_small": (
    "vq:tiny,cifar10",
    {
      "data.image_size": 32, "model.image_size": 32, "data.batch": 16,
    },
  ),
  "gan_small": (
    "gan:tiny,cifar10",
    {
      "data.batch": 16,
    },
  ),
  "ctc_small": (
    "ctc:small",
    {
      "compute.unroll": None, "data.batch": 1,
    },
  ),
  "tts_small": (
    "tts:digits",
    {
      "compute.unroll": None, "data.batch": 8,
    },
  ),
}  # fmt: skip
ADAMW = dict(learning_rate=1e-4, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1)
CLIP = 1.0
# What makes more than one image of one, or another one.
AS_THEY_ARE = dict(operations=0, mixup=None, cutmix=None, crop=None)


def small(name: str) -> ConfigDict:
  """The config of one of FAMILIES."""
  preset, changes = FAMILIES[name]
  family, _, size = preset.partition(":")
  config = PRESETS[family].get_config(size)
  config.optim.update(
    kind="adamw", schedule="constant", warmup_steps=0, average=None, clip=CLIP,
    groups=(), **ADAMW,
  )  # fmt: skip
  augment = config.data.get("augment", {})
  augment.update({k: v for k, v in AS_THEY_ARE.items() if k in augment})
  with config.ignore_type():
    config.update_from_flattened_dict(changes)
  return config
