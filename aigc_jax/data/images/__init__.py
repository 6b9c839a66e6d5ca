"""Images with labels: sources, stores, decoding, augmentation."""

from aigc_jax.data.images.kind import Images

__all__ = ["Images"]
