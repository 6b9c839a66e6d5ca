"""Mistral 7B (arXiv:2310.06825).

  python -m aigc_jax.train --config=configs/mistral.py:7b --workdir=DIR

Presets: 7b, 7b_v03.
A second word names the dataset: c4, lm1b, or stdlib, which needs no download.
What they are made of and where that is published: aigc_jax/presets/mistral.py.
"""

from aigc_jax.presets.mistral import SIZES, get_config

__all__ = ["SIZES", "get_config"]
