r"""U-Nets of diffusion (arXiv:2006.11239, arXiv:2105.05233), at their counts.

  python -m aigc_jax.train --config=configs/unet.py:ddpm,cifar10 --workdir=DIR
  python -m aigc_jax.generate --workdir=DIR --weights=average --grid=4x8 \
    --out=x.png

Presets: ddpm, adm64, tiny. A second word names the dataset: imagenet, cifar10,
digits, which needs no download (tiny,digits), or one's own: folder or parquet
(aigc_jax/data/README.md).
What they are made of and how they are trained: aigc_jax/presets/unet.py.
"""

from aigc_jax.presets.unet import SIZES, get_config

__all__ = ["SIZES", "get_config"]
