r"""DistilBERT (arXiv:1910.01108): a student of half of BERT's layers.

  python -m aigc_jax.train --config=configs/distilbert.py:base --workdir=DIR \
    --config.frozen.teacher=hf:FOLDER

Presets: base, base_cased. A second word names the dataset: c4, lm1b, or stdlib,
which needs no download. What they are made of and where that is published:
aigc_jax/presets/distilbert.py.
"""

from aigc_jax.presets.distilbert import SIZES, get_config

__all__ = ["SIZES", "get_config"]
