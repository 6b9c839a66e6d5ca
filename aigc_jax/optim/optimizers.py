"""Directions of descent: AdamW, Lion, Adafactor, SGD, Muon, all from optax.

Each entry of OPTIMIZERS maps (b1, b2, eps, mu_dtype) to a transformation from
gradients to a direction; clipping, weight decay and the learning rate are the
same for all and stand in `build`. Matrices of a stack are stored stacked over
layers, (L, ...), and with heads apart, (L, D, N, H): where an optimizer looks
at a matrix as a whole, it looks at each layer's alone, as (in, out).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from aigc_jax import tree

# Matrices of a stack: pattern -> axes summed over, axes of the result.
MATRICES: dict[str, MuonDimensionNumbers] = {
  "*stack/*/query/w": MuonDimensionNumbers((-3,), (-2, -1)),  # D -> N H
  "*stack/*/key/w": MuonDimensionNumbers((-3,), (-2, -1)),  # D -> K H
  "*stack/*/value/w": MuonDimensionNumbers((-3,), (-2, -1)),  # D -> K H
  "*stack/*/out/w": MuonDimensionNumbers((-3, -2), (-1,)),  # N H -> D
  "*stack/*/gate/w": MuonDimensionNumbers((-2,), (-1,)),  # D -> F
  "*stack/*/up/w": MuonDimensionNumbers((-2,), (-1,)),  # D -> F
  "*stack/*/down/w": MuonDimensionNumbers((-2,), (-1,)),  # F -> D
}

# Muon's momentum (b1 and b2 are those of the AdamW beside it), and the root
# mean square that its updates get: about AdamW's, so that one learning rate
# and weight decay serve both (arXiv:2502.16982, section 2.2).
MUON_MOMENTUM = 0.95
MUON_RMS = 0.2

# Adafactor: the second moment's decay is 1 - t**-0.8, and a layer's update is
# scaled down where its root mean square is above 1 (arXiv:1804.04235).
ADAFACTOR_DECAY = 0.8
ADAFACTOR_RMS = 1.0


def matrix(name: str) -> MuonDimensionNumbers | None:
  """How the parameter at this path is a matrix; None if it is not."""
  for pattern, axes in MATRICES.items():
    if tree.match((pattern,), name):
      return axes
  return None


def adamw(*, b1, b2, eps, mu_dtype) -> optax.GradientTransformation:
  """arXiv:1711.05101, of which this is Adam."""
  return optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=mu_dtype)


def lion(*, b1, b2, eps, mu_dtype) -> optax.GradientTransformation:
  """arXiv:2302.06675: wants a learning rate 3 to 10 times below AdamW's."""
  return optax.scale_by_lion(b1=b1, b2=b2, mu_dtype=mu_dtype)


def sgd(*, b1, b2, eps, mu_dtype) -> optax.GradientTransformation:
  """Heavy-ball momentum b1; b1 = 0 keeps no state."""
  if b1 == 0:
    return optax.identity()
  return optax.trace(decay=b1, accumulator_dtype=mu_dtype)


def adafactor(*, b1, b2, eps, mu_dtype) -> optax.GradientTransformation:
  """arXiv:1804.04235 with an absolute learning rate; b2 and eps are unused.

  b1 = 0 keeps no first moment, which is where the saving of memory is.
  """
  parts = [
    _as_matrices(optax.scale_by_factored_rms(decay_rate=ADAFACTOR_DECAY)),
    _clip_by_layer(ADAFACTOR_RMS),
  ]
  if b1 > 0:
    parts.append(optax.ema(b1, debias=True, accumulator_dtype=mu_dtype))
  return optax.chain(*parts)


def muon(*, b1, b2, eps, mu_dtype) -> optax.GradientTransformation:
  """MATRICES in Muon with Nesterov momentum, all others in AdamW."""

  def labels(params):
    return _with_names(
      lambda name, _: "adamw" if matrix(name) is None else "muon", params
    )

  def axes(params):
    return _with_names(lambda name, _: matrix(name), params)

  matrices = optax.chain(
    scale_by_muon(
      beta=MUON_MOMENTUM, mu_dtype=mu_dtype, weight_dimension_numbers=axes
    ),
    _stateless(_scale_by_shape),
  )
  others = adamw(b1=b1, b2=b2, eps=eps, mu_dtype=mu_dtype)
  return optax.partition({"muon": matrices, "adamw": others}, labels)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
  "adamw": adamw,
  "lion": lion,
  "adafactor": adafactor,
  "sgd": sgd,
  "muon": muon,
}


def at_once(
  *,
  kind: str,
  b1: float,
  b2: float,
  eps: float,
  mu_dtype: str,
  clip: float | None = None,
  epsilon: float = 1.0,
  **_,
) -> bool:
  """Whether an update may be applied in the pass that makes it.

  Each number of it has to be made of a few others, which is less work than to
  write it and read it, and has to be finite wherever the norm of the gradients
  is. Then their squares are, in float32, and so are sums of them that decay. By
  AdamW's second moment the first one is bounded (Cauchy-Schwarz on both sums)
  where its decay is slower, b1**2 < b2, and 1 - b2 is not zero in float32; and
  what has no square in float32 but zero is below 1e-18, and so below 1e12 eps.
  A first moment in bfloat16 decays more slowly, by its rounding. epsilon: the
  least factor of eps, by which gradients are divided once they are clipped.
  """
  decay = b1 + (2**-8 if mu_dtype == "bfloat16" else 0)
  bounded = epsilon == 1 or 0 < (clip or 0) < 1e18 * epsilon
  bounded &= decay**2 < b2 < 1 - 2**-23 and eps >= 1e-30
  return kind in ("lion", "sgd") or (kind == "adamw" and bounded)


def _scale_by_shape(name: str, u: jax.Array) -> jax.Array:
  """An orthogonal (in, out) matrix to a root mean square of MUON_RMS."""
  ins, outs = _in_out(u.shape, matrix(name))
  return u * (MUON_RMS * math.sqrt(max(ins, outs)))


def _clip_by_layer(threshold: float) -> optax.GradientTransformation:
  """Scales each layer's update down to a root mean square of `threshold`."""

  def clip(name, u):
    # A stacked parameter is a layer along its first axis.
    axes = tuple(range(1 if "stack" in name.split("/") else 0, u.ndim))
    rms = jnp.sqrt(jnp.mean(jnp.square(u), axis=axes, keepdims=True))
    return u / jnp.maximum(1.0, rms / threshold)

  return _stateless(clip)


def _as_matrices(
  inner: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """`inner`, which sees each of MATRICES as (L, in, out)."""

  def fold(x):
    return _with_names(_fold, x)

  def unfold(x, like):
    return jax.tree.map(lambda a, b: a.reshape(b.shape), x, like)

  def update(updates, state, params=None):
    new, state = inner.update(fold(updates), state, fold(params))
    return unfold(new, updates), state

  return optax.GradientTransformation(lambda p: inner.init(fold(p)), update)


def _fold(name: str, x: jax.Array) -> jax.Array:
  axes = matrix(name)
  if axes is None:
    return x
  used = len(axes.reduction_axis) + len(axes.output_axis)
  return jnp.reshape(x, (*x.shape[:-used], *_in_out(x.shape, axes)))


def _in_out(shape, axes: MuonDimensionNumbers) -> tuple[int, int]:
  ins = math.prod(shape[a] for a in axes.reduction_axis)
  return ins, math.prod(shape[a] for a in axes.output_axis)


def _with_names(f: Callable, x: tree.Tree) -> tree.Tree:
  """`f(path, leaf)` at every leaf."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: f(tree.name_of(path), leaf), x
  )


def _stateless(f: Callable) -> optax.GradientTransformation:
  """A transformation `f(path, update) -> update` without a state."""
  return optax.stateless(lambda updates, _: _with_names(f, updates))
