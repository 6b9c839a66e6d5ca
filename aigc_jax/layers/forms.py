"""Which form of a computation is used: the formula, or one that is faster here.

Layers are written as formulas. Where a platform has a faster form of the same
numbers, `form` finds it in a table. In the context `plain_formulas` there are
formulas only, and no gradients but those that JAX derives from them.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

from aigc_jax import sharding
from aigc_jax.layers.cpu import FORMS

_plain = contextvars.ContextVar("plain_formulas", default=False)
_counted = contextvars.ContextVar("counted_products", default=False)


@contextlib.contextmanager
def plain_formulas() -> Iterator[None]:
  """What is traced in here has no derivative rule but those of JAX itself.

  For losses with a derivative inside. `jax.jvp` refuses functions with a rule
  for the backward pass alone; and a derivative of a derivative must reach the
  weights themselves, not their copies in another dtype. Slower, and more is
  kept for the backward pass; values are the same up to rounding.
  """
  token = _plain.set(True)
  try:
    yield
  finally:
    _plain.reset(token)


def are_plain() -> bool:
  """Whether `plain_formulas` is in force."""
  return _plain.get() or _counted.get()


@contextlib.contextmanager
def counted_products() -> Iterator[None]:
  """What is traced in here has each product of the model once, as a formula.

  Nothing is computed again, and attention multiplies only where positions see
  each other. To be counted, not run (see `flops.count`).
  """
  token = _counted.set(True)
  try:
    yield
  finally:
    _counted.reset(token)


def are_counted() -> bool:
  """Whether `counted_products` is in force."""
  return _counted.get()


def form(name: str, formula: Callable) -> Callable:
  """What computes `name` on the mesh in use: `formula`, or a row of FORMS."""
  if are_plain() or sharding.platform() != "cpu":
    return formula
  faster = FORMS[name]
  return formula if faster.alone and not sharding.alone() else faster.run
