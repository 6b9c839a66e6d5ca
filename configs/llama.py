"""Llama 1, 2, 3, 3.1, 3.2 (arXiv:2302.13971, 2307.09288, 2407.21783).

  python -m aigc_jax.train --config=configs/llama.py:llama3_8b --workdir=DIR

Presets: llama1_7b ... llama1_65b, llama2_7b ... llama2_70b, llama3_8b ...
llama3_405b, llama31_8b, llama31_70b, llama32_1b, llama32_3b.
A second word names the dataset: c4, lm1b, or stdlib, which needs no download.
What they are made of and where that is published: aigc_jax/presets/llama.py.
"""

from aigc_jax.presets.llama import SIZES, get_config

__all__ = ["SIZES", "get_config"]
