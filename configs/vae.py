"""A variational autoencoder of small images, its bits per dimension a bound.

  python -m aigc_jax.train --config=configs/vae.py:small,cifar10 --workdir=DIR
  python -m aigc_jax.generate --workdir=DIR --grid=4x8 --out=x.png

Presets: small, places, sd, sd3, tiny, tiny_places, tiny_sd. A second word names
the dataset: imagenet, cifar10, digits, which needs no download (tiny,digits),
or one's own: folder or parquet (aigc_jax/data/README.md).
What they are made of and how they are trained: aigc_jax/presets/vae.py.
"""

from aigc_jax.presets.vae import SIZES, get_config

__all__ = ["SIZES", "get_config"]
