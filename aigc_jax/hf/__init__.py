"""Hugging Face folders: one table per family, read in both directions.

load(folder) -> Imported            what is in a folder, checked
read_params(imported, abstract, shardings) -> params
choose_family(kwargs) -> Family     which architecture a decoder is
write(folder, params, kwargs, ...)  config.json and safetensors
"""

from aigc_jax.hf.families import FAMILIES, WORDLESS, choose_family
from aigc_jax.hf.incoming import Imported, load, read_params
from aigc_jax.hf.outgoing import write

__all__ = [
  "FAMILIES",
  "WORDLESS",
  "Imported",
  "choose_family",
  "load",
  "read_params",
  "write",
]
