"""CLIP (arXiv:2103.00020), exact in its parameter counts.

  python -m aigc_jax.train --config=configs/clip.py:digits --workdir=DIR

Presets: b32, b16, l14, l14_336, and digits, a small one that needs no download.
What they are made of and how they are trained: aigc_jax/presets/clip.py.
"""

from aigc_jax.presets.clip import SIZES, get_config

__all__ = ["SIZES", "get_config"]
