"""Qwen 2 (arXiv:2407.10671) and Qwen 3 (arXiv:2505.09388), dense sizes.

  python -m aigc_jax.train --config=configs/qwen.py:qwen3_0.6b --workdir=DIR

Presets: qwen2_0.5b ... qwen2_72b, qwen3_0.6b ... qwen3_32b.
A second word names the dataset: c4, lm1b, or stdlib, which needs no download.
What they are made of and where that is published: aigc_jax/presets/qwen.py.
"""

from aigc_jax.presets.qwen import SIZES, get_config

__all__ = ["SIZES", "get_config"]
