"""What a CPU computes otherwise than the formulas say, since it is faster.

The compiler for CPUs transposes operands at the pace of scattered writes,
writes out what a reduction reads, and makes exp() again for each of its uses.
The forms here avoid that. Each gives the numbers of its formula, up to the
rounding of sums: `layers.forms.form` takes it where it applies, and a test
holds each row of the table against the formula it stands for. What they bring
is measured in experiments/speed.
"""

from collections.abc import Callable
from typing import NamedTuple

from aigc_jax.layers.cpu import (
  activations,
  convolutions,
  neighbours,
  norms,
  products,
  rounding,
  sums,
)


class Form(NamedTuple):
  """What computes it instead, and whether on a single device only."""

  run: Callable
  alone: bool


# By the name that `form` is asked for.
FORMS = {
  "activate": Form(activations.activate, alone=True),
  "convolve": Form(convolutions.convolve, alone=True),
  "largest": Form(sums.largest, alone=True),
  "largest_of_neighbours": Form(neighbours.largest, alone=True),
  "multiplied": Form(products.multiplied, alone=False),
  "over_places": Form(sums.over_places, alone=True),
  "over_rows": Form(sums.over_rows, alone=True),
  "packed": Form(rounding.packed, alone=False),
  "rounded": Form(rounding.rounded, alone=False),
  "column_sums": Form(norms.column_sums, alone=True),
  "row_sums": Form(norms.row_sums, alone=True),
  "total": Form(sums.total, alone=True),
  "weight_gradient": Form(products.weight_gradient, alone=True),
}
