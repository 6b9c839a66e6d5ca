"""What own configs start from, wherever they stand; no clone is needed.

  from aigc_jax.presets import skeleton          every key with its default
  from aigc_jax.presets import published         a published architecture
  from aigc_jax.presets import llama             llama.get_config("llama32_1b")

The families are bert, clip, ctc, dalle, distilbert, dit, gan, gemma, gpt2,
gpt3, latent, llama, mistral, prompted, qwen, resnet, roberta, siglip, t5,
transformer, tts, unet, vae, vit, vq, whisper; each has its SIZES and
`get_config(preset)`.
Nothing here computes or imports JAX.
"""

from aigc_jax.presets.keys import skeleton
from aigc_jax.presets.published import published

__all__ = ["published", "skeleton"]
