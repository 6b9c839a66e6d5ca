r"""ViT (arXiv:2010.11929), exact in its parameter counts.

  python -m aigc_jax.train --config=configs/vit.py:s16 --workdir=DIR

Presets: s16, b16, l16.
A second word names the dataset: imagenet, cifar10, or digits, which needs no
download; or one's own: parquet, or folder, with a folder of images for each
label (aigc_jax/data/README.md):

  --config=configs/vit.py:s16,folder --config.data.sources[0].path=PICTURES \
    --config.model.classes=10
What they are made of and how they are trained: aigc_jax/presets/vit.py.
"""

from aigc_jax.presets.vit import SIZES, get_config

__all__ = ["SIZES", "get_config"]
