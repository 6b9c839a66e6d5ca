r"""Images by codes of a frozen VQ: DALL-E's order (arXiv:2102.12092) or none.

  python -m aigc_jax.train --config=configs/vq.py:tiny,digits --workdir=VQ
  python -m aigc_jax.train --config=configs/dalle.py:tiny,digits \
      --config.frozen.vq=VQ --workdir=DIR
  python -m aigc_jax.generate --workdir=DIR --grid=10x8 --guidance=2 --out=x.png

Told labels: small, maskgit (arXiv:2202.04200), tiny, tiny_masked. A second word
names the dataset: imagenet, cifar10, digits, which needs no download, or one's
own: folder or parquet (aigc_jax/data/README.md). Told captions: text, and
tiny_text and tiny_text_masked for the captioned digits:

  python -m aigc_jax.train --config=configs/dalle.py:tiny_text \
      --config.frozen.vq=VQ --workdir=DIR
  python -m aigc_jax.generate --workdir=DIR --prompt='a seven' --grid=4x4 \
      --out=x.png

What they are made of and how they are trained: aigc_jax/presets/dalle.py.
"""

from aigc_jax.presets.dalle import SIZES, get_config

__all__ = ["SIZES", "get_config"]
