"""GPT-2 (Radford et al. 2019), exact in its parameter counts.

  python -m aigc_jax.train --config=configs/gpt2.py:small --workdir=DIR

Presets: small, medium, large, xl.
A second word names the dataset: c4, lm1b, or stdlib, which needs no download.
What they are made of and where that is published: aigc_jax/presets/gpt2.py.
"""

from aigc_jax.presets.gpt2 import SIZES, get_config

__all__ = ["SIZES", "get_config"]
