"""RoBERTa (arXiv:1907.11692), exact in its parameter counts.

  python -m aigc_jax.train --config=configs/roberta.py:base --workdir=DIR

Presets: base, large. A second word names the dataset: c4, lm1b, or stdlib,
which needs no download. What they are made of and where that is published:
aigc_jax/presets/roberta.py.
"""

from aigc_jax.presets.roberta import SIZES, get_config

__all__ = ["SIZES", "get_config"]
