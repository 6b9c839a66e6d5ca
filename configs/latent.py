r"""Latent diffusion (arXiv:2112.10752): a DiT or a U-Net on codes of a VAE.

  python -m aigc_jax.train --config=configs/vae.py:tiny_places,digits \
      --workdir=VAE
  python -m aigc_jax.train --config=configs/latent.py:tiny,digits \
      --config.frozen.vae=VAE --workdir=DIR
  python -m aigc_jax.generate --workdir=DIR --weights=average --grid=10x8 \
      --guidance=2 --out=x.png

Presets: b2, xl2, unet, sd, tiny, tiny_unet, tiny_sd. A second word names the
dataset: imagenet, cifar10, digits, which needs no download, or one's own:
folder or parquet (aigc_jax/data/README.md).
What they are made of and how they are trained: aigc_jax/presets/latent.py.
"""

from aigc_jax.presets.latent import SIZES, get_config

__all__ = ["SIZES", "get_config"]
