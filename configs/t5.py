"""T5 and T5 1.1 (arXiv:1910.10683, 2002.05202).

  python -m aigc_jax.train --config=configs/t5.py:v1_1_small --workdir=DIR

Presets: small, base, large, 3b, v1_1_small ... v1_1_xxl. A second word names
the dataset: c4, lm1b, or stdlib, which needs no download. What they are made of
and where that is published: aigc_jax/presets/t5.py.
"""

from aigc_jax.presets.t5 import SIZES, get_config

__all__ = ["SIZES", "get_config"]
