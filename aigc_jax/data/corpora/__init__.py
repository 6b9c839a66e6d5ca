"""Corpora that need no download: TFDS builders over text on every machine.

A corpus is a module with `fingerprint() -> str`, cheap, and
`prepare(data_dir, say) -> directory`, which writes ArrayRecord once.
"""

from aigc_jax.data.corpora import stdlib

CORPORA = {"stdlib": stdlib}
