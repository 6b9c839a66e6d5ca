"""DiT (arXiv:2212.09748): images by flow matching or diffusion.

  python -m aigc_jax.train --config=configs/dit.py:s2,cifar10 --workdir=DIR
  python -m aigc_jax.generate --workdir=DIR --grid=4x8 --out=x.png

Presets: s2, b2, l2, xl2, tiny. A second word names the dataset: imagenet,
cifar10, digits, which needs no download (tiny,digits), or one's own: folder or
parquet (aigc_jax/data/README.md).
What they are made of and how they are trained: aigc_jax/presets/dit.py.
"""

from aigc_jax.presets.dit import SIZES, get_config

__all__ = ["SIZES", "get_config"]
