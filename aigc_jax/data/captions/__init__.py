"""Images with captions: sources, and the data that is made of them."""

from aigc_jax.data.captions.kind import Captions

__all__ = ["Captions"]
