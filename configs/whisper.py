r"""Whisper (arXiv:2212.04356), exact in its parameter counts.

  python -m aigc_jax.train --config=configs/whisper.py:tiny --workdir=DIR \
      --config.data.sources[0].path=FOLDER --config.data.tokenizer=hf:WHISPER

Presets: tiny, base, small. What they are made of and how they are trained:
aigc_jax/presets/whisper.py.
"""

from aigc_jax.presets.whisper import SIZES, get_config

__all__ = ["SIZES", "get_config"]
