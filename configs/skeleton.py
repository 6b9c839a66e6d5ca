"""Where configs of before find the skeleton; it is in aigc_jax.presets."""

from aigc_jax.presets.keys import skeleton

__all__ = ["skeleton"]
