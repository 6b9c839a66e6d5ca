"""What a step costs: counted from the traced program, or from shapes.

`count` counts any function. For a decoder `per_token` gives the same in closed
form, and the count by PaLM's convention.

A multiply-add is 2 FLOPs; the backward pass is twice the forward pass. Counted:
the matrix products with parameters and the two products of attention, over
the positions a query really sees. Not counted: the embedding look-up, norms,
biases, positions, softmax, the optimizer, and whatever is computed again. So

  F per trained token = 6 * matmul_params + 12 * sum over layers of N*H*context

with context the mean number of positions attended to. PaLM's convention
(arXiv:2204.02311, appendix B) takes the whole length as the context.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax

from aigc_jax import tree
from aigc_jax.layers.forms import counted_products
from aigc_jax.layers.visible import Visible

HEAD = "head/table"
EMBED = "embed/table"
# What a shard_map calls the mesh axes that it takes apart, by version of JAX.
_AXES = ("newly_manual_axes", "manual_axes")


def count(f: Callable, *args) -> int:
  """FLOPs of f(*args), traced and not run; args may be abstract.

  Those of products and convolutions, loops included. Attention counts the pairs
  of positions that see each other, nothing counts twice for being computed
  again. Of a branch the most expensive one counts. Raises ValueError for a loop
  whose length is not known.
  """
  with counted_products():
    # A function of its own, or JAX would return what it traced outside.
    jaxpr = jax.make_jaxpr(lambda *args: f(*args))(*args)
  return 2 * _multiply_adds(jaxpr.jaxpr)


def _multiply_adds(jaxpr) -> int:
  return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation) -> int:
  name, params = equation.primitive.name, equation.params
  shapes = [x.aval.shape for x in equation.invars if hasattr(x.aval, "shape")]
  if name == "dot_general":
    (summed, _), _ = params["dimension_numbers"]
    out = math.prod(equation.outvars[0].aval.shape)
    return out * math.prod(shapes[0][i] for i in summed)
  if name == "conv_general_dilated":
    # Each output reads one patch of the channels of its group.
    kernel = params["dimension_numbers"].rhs_spec
    out = math.prod(equation.outvars[0].aval.shape)
    return out * math.prod(shapes[1]) // shapes[1][kernel[0]]
  if name.startswith("ragged_dot"):
    # Each row meets the matrix of its group alone.
    return (
      math.prod(shapes[0])
      * math.prod(shapes[1])
      // (shapes[1][0] * shapes[0][-1])
    )
  inner = [
    _multiply_adds(getattr(x, "jaxpr", x))
    for value in params.values()
    for x in (value if isinstance(value, tuple | list) else (value,))
    if hasattr(getattr(x, "jaxpr", x), "eqns")
  ]
  if name == "while" and sum(inner):
    raise ValueError("products in a loop of unknown length cannot be counted")
  if name == "cond":
    return max(inner)
  if name == "shard_map":  # the program of one device
    mesh = params["mesh"]
    axes = next(params[name] for name in _AXES if name in params)
    devices = math.prod(mesh.shape[axis] for axis in axes)
    return devices * sum(inner)
  return params.get("length", 1) * sum(inner) if name == "scan" else sum(inner)


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
  see 1, 2, ..., w - 1 of them. Without causality it has both sides.
  """
  return Visible(causal, window).pairs(length, length) / length
