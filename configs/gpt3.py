"""GPT-3 (arXiv:2005.14165, table 2.1), with dense attention in every layer.

  python -m aigc_jax.train --config=configs/gpt3.py:125m --workdir=DIR

Presets: 125m, 350m, 760m, 1.3b, 2.7b, 6.7b, 13b, 175b.
A second word names the dataset: c4, lm1b, or stdlib, which needs no download.
What they are made of and where that is published: aigc_jax/presets/gpt3.py.
"""

from aigc_jax.presets.gpt3 import SIZES, get_config

__all__ = ["SIZES", "get_config"]
