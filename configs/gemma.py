"""Gemma 1, 2 and 3, text only (arXiv:2403.08295, 2408.00118, 2503.19786).

  python -m aigc_jax.train --config=configs/gemma.py:gemma2_2b --workdir=DIR

Presets: gemma1_2b, gemma1_7b, gemma2_2b, gemma2_9b, gemma2_27b, gemma3_270m,
gemma3_1b.
A second word names the dataset: c4, lm1b, or stdlib, which needs no download.
What they are made of and where that is published: aigc_jax/presets/gemma.py.
"""

from aigc_jax.presets.gemma import SIZES, get_config

__all__ = ["SIZES", "get_config"]
