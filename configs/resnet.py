r"""ResNet (arXiv:1512.03385), exact in its parameter counts.

  python -m aigc_jax.train --config=configs/resnet.py:r50 --workdir=DIR

Presets: r18, r34, r50, r101, r152.
A second word names the dataset: imagenet, cifar10, or digits, which needs no
download; or one's own: parquet, or folder, with a folder of images for each
label (aigc_jax/data/README.md):

  --config=configs/resnet.py:r50,folder --config.data.sources[0].path=PICTURES \
    --config.model.classes=10
What they are made of and how they are trained: aigc_jax/presets/resnet.py.
"""

from aigc_jax.presets.resnet import SIZES, get_config

__all__ = ["SIZES", "get_config"]
