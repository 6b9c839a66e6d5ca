r"""VQ-VAE (arXiv:1711.00937) or FSQ: images as a small grid of codes.

  python -m aigc_jax.train --config=configs/vq.py:small,cifar10 --workdir=DIR
  python -m aigc_jax.generate --workdir=DIR --grid=4x8 --reconstruct \
      --out=x.png

Presets: small, fsq, f16, gan, vqgan, vqgan_16384, tiny, tiny_gan; those with
gan in their names are VQ-GANs (arXiv:2012.09841). A second word names the
dataset: imagenet, cifar10, digits, which needs no download (tiny,digits), or
one's own: folder or parquet (aigc_jax/data/README.md).
What they are made of and how they are trained: aigc_jax/presets/vq.py.
"""

from aigc_jax.presets.vq import SIZES, get_config

__all__ = ["SIZES", "get_config"]
