"""BERT (arXiv:1810.04805), exact in its parameter counts.

  python -m aigc_jax.train --config=configs/bert.py:base --workdir=DIR

Presets: base, large, base_cased, large_cased. A second word names the dataset:
c4, lm1b, or stdlib, which needs no download. What they are made of and where
that is published: aigc_jax/presets/bert.py.
"""

from aigc_jax.presets.bert import SIZES, get_config

__all__ = ["SIZES", "get_config"]
