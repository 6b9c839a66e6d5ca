r"""Speech synthesis: text to a log-mel spectrogram, by flow matching.

  python -m experiments.speech.speak --out=digits
  python -m aigc_jax.train --config=configs/tts.py:digits --workdir=DIR \
      --config.data.sources[0].path=digits
  python -m aigc_jax.generate --workdir=DIR --weights=average \
      --prompt="three seven" --out=x.wav

Presets: small, base, digits. What they are made of and how they are trained:
aigc_jax/presets/tts.py.
"""

from aigc_jax.presets.tts import SIZES, get_config

__all__ = ["SIZES", "get_config"]
