"""The Python standard library as a TFDS dataset."""

from aigc_jax.data.corpora.stdlib.stdlib import Stdlib, fingerprint, prepare

__all__ = ["Stdlib", "fingerprint", "prepare"]
