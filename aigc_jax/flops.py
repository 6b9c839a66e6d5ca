"""What a step costs, counted from shapes.

A multiply-add is 2 FLOPs; the backward pass is twice the forward pass. Counted:
the matrix products with parameters and the two products of attention, over
the positions a query really sees. Not counted: the embedding look-up, norms,
biases, positions, softmax, the optimizer, and whatever is computed again. So

  F per trained token = 6 * matmul_params + 12 * sum over layers of N*H*context

with context the mean number of positions attended to. PaLM's convention
(arXiv:2204.02311, appendix B) takes the whole length as the context.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from aigc_jax import tree

HEAD = "head/table"
EMBED = "embed/table"


@dataclass(frozen=True)
class PerToken:
  """FLOPs of one token.

  matmul_params: parameters used in matrix products. attention: the sum over
  layers of N*H*context; each unit of it is a multiply-add for the scores and
  another for the mix, 4 FLOPs forward. attention_palm: the same with the whole
  length as context.
  """

  matmul_params: int
  attention: float
  attention_palm: float

  @property
  def train(self) -> float:
    """Forward and backward."""
    return 6 * self.matmul_params + 12 * self.attention

  @property
  def forward(self) -> float:
    """Forward only: evaluation."""
    return 2 * self.matmul_params + 4 * self.attention

  @property
  def palm(self) -> float:
    """Forward and backward by PaLM's convention, to compare with others."""
    return 6 * self.matmul_params + 12 * self.attention_palm


def per_token(
  params: tree.Tree,
  *,
  length: int,
  windows: Sequence[int | None],
  causal: bool = True,
) -> PerToken:
  """The cost of a token in sequences of `length`, from an abstract tree.

  params: named as the decoder's, "stack/attention/query/w" of (L, D, N, H).
  windows: one entry for each place of the repeated pattern of layers, as the
  model takes it; None is no window, and an empty pattern is none anywhere.
  """
  attention = palm = 0.0
  for name, x in tree.flat(params).items():
    if not name.endswith("attention/query/w"):
      continue
    *layers, _, heads, head_dim = x.shape
    for layer in range(math.prod(layers)):
      window = windows[layer % len(windows)] if windows else None
      attention += heads * head_dim * context(length, window, causal)
      palm += heads * head_dim * length
  return PerToken(matmul_params(params), attention, palm)


def matmul_params(params: tree.Tree) -> int:
  """How many parameters take part in matrix products.

  The weights "w" of every layer, and the table of the head: the embedding's
  own where the two are tied.
  """
  shapes = {name: x.shape for name, x in tree.flat(params).items()}
  head = HEAD if HEAD in shapes else EMBED
  return sum(
    math.prod(shape)
    for name, shape in shapes.items()
    if name.endswith("/w") or name == head
  )


def context(length: int, window: int | None, causal: bool) -> float:
  """The mean number of positions that a query sees, its own included.

  A causal window of w shows at most the last w positions: its first queries
  see 1, 2, ..., w - 1 of them.
  """
  if not causal:
    return float(length if window is None else min(window, length))
  seen = length if window is None else min(window, length)
  return seen - seen * (seen - 1) / (2 * length)
