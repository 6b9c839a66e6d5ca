r"""The Transformer (arXiv:1706.03762) for translation.

  python -m aigc_jax.train --config=configs/transformer.py:base --workdir=DIR \
      --config.data.sources[0].path=pairs.jsonl

Presets: base, big. What they are made of: aigc_jax/presets/transformer.py.
"""

from aigc_jax.presets.transformer import SIZES, get_config

__all__ = ["SIZES", "get_config"]
