"""Sound with transcripts as data."""

from aigc_jax.data.sound.kind import Sound

__all__ = ["Sound"]
