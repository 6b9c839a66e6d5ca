"""SigLIP (arXiv:2303.15343), exact in its parameter counts.

  python -m aigc_jax.train --config=configs/siglip.py:digits --workdir=DIR

Presets: b16, l16, so400m, and digits, a small one that needs no download.
What they are made of and how they are trained: aigc_jax/presets/siglip.py.
"""

from aigc_jax.presets.siglip import SIZES, get_config

__all__ = ["SIZES", "get_config"]
