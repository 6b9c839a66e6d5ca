r"""Two players: one draws images, the other tells them from real ones.

  python -m aigc_jax.train --config=configs/gan.py:dcgan,cifar10 --workdir=DIR
  python -m aigc_jax.generate --workdir=DIR --weights=average --grid=4x8 \
    --out=x.png

Presets: dcgan, patchgan, style, tiny, tiny_style. A second word names the
dataset: imagenet, cifar10, digits, which needs no download (tiny,digits), or
one's own: folder or parquet (aigc_jax/data/README.md).
What they are made of and how they are trained: aigc_jax/presets/gan.py.
"""

from aigc_jax.presets.gan import SIZES, get_config

__all__ = ["SIZES", "get_config"]
