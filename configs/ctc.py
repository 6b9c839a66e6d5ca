r"""An encoder for speech, trained by connectionist temporal classification.

  python -m aigc_jax.train --config=configs/ctc.py:small --workdir=DIR \
      --config.data.sources[0].path=FOLDER

Presets: small, base. What they are made of: aigc_jax/presets/ctc.py; what a
FOLDER holds: aigc_jax/data/README.md.
"""

from aigc_jax.presets.ctc import SIZES, get_config

__all__ = ["SIZES", "get_config"]
