r"""Images from captions, by a DiT or a U-Net that reads them.

  python -m aigc_jax.train --config=configs/prompted.py:digits --workdir=DIR
  python -m aigc_jax.generate --workdir=DIR --weights=average --grid=2x8 \
    --prompt="a seven" --prompt="the digit two" --guidance=2 --out=x.png

Presets: b2, unet; digits and digits_unet need no download. b2_clip, unet_clip,
digits_clip and digits_unet_clip read by the text tower of a run that is frozen:

  python -m aigc_jax.train --config=configs/clip.py:digits --workdir=CLIP
  python -m aigc_jax.train --config=configs/prompted.py:digits_clip \
      --config.frozen.text=CLIP --workdir=DIR

What they are made of and how they are trained: aigc_jax/presets/prompted.py.
"""

from aigc_jax.presets.prompted import SIZES, get_config

__all__ = ["SIZES", "get_config"]
