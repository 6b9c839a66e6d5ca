"""What a batch is: the axes by letter, shape and dtype of each entry.

Known from the config alone, so that a step can be planned, compiled and
counted where no data is.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from aigc_jax.sharding import shardings


class Array(NamedTuple):
  """One entry of a batch; `shape` is that of the whole, on all devices.

  letters: an axis each, as `sharding.RULES` has them; "." has no rule.
  """

  letters: str
  shape: tuple[int, ...]
  dtype: np.dtype

  def abstract(self, mesh: jax.sharding.Mesh) -> jax.ShapeDtypeStruct:
    """The same for a program that is compiled for this mesh."""
    laid = shardings(self.letters, self.shape, mesh)
    return jax.ShapeDtypeStruct(self.shape, self.dtype, sharding=laid)


Spec = Mapping[str, Array]


def sizes(spec: Spec, letter: str) -> set[int]:
  """How long the axes of a letter are, over all entries."""
  return {
    size
    for array in spec.values()
    for name, size in zip(array.letters, array.shape, strict=True)
    if name == letter
  }
