"""Report: what a layer tells beside its output.

A layer that has something to tell, a loss of its own, a load, the moments of
what it saw, reports metrics.Means; those of all parts of a batch are added up
before anything is made of them, so that they say the same however the batch was
parted. What state no gradient moves (the collection "stats") is moved by such a
report, once a step: its value has a method `move`.
"""

from collections.abc import Mapping
from typing import Protocol, TypeVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from aigc_jax.metrics import Mean
from aigc_jax.tree import Tree

REPORTS = "reports"  # the collection of what layers report
STATS = "stats"  # the collection of what reports move


class Moves(Protocol):
  """A pytree of Means that moves the stats of the layer that reported it.

  One with `averages = True` says that these stats follow from the parameters:
  an average of the parameters has some of its own.
  """

  def move(self, old: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The layer's stats after a step, from those before it; same names."""


Reported = TypeVar("Reported", bound=Tree)


def reporting(module: nn.Module) -> bool:
  """Whether somebody asks for reports, which is so in training alone."""
  asked = module.is_mutable_collection(REPORTS)
  return asked and not module.is_initializing()


def report(module: nn.Module, name: str, value: Reported) -> None:
  """Adds `value`, a Mean or a pytree of them, to the module's report `name`.

  Several calls of one module, and several reports of one name, are one sum.
  Nothing happens where nobody asks.
  """
  if reporting(module):
    module.sow(REPORTS, name, value, reduce_fn=_added, init_fn=lambda: None)


def _added(before: Reported | None, value: Reported) -> Reported:
  return value if before is None else jax.tree.map(jnp.add, before, value)


def moved(stats: Tree, reports: Mapping) -> Tree:
  """The stats of all modules after what their reports say; others stay.

  Both are nested as the modules are. A report that moves nothing, a Mean of its
  own, is for the record alone.
  """
  new = dict(stats)
  for name, value in reports.items():
    if isinstance(value, Mapping):
      if name in new:
        new[name] = moved(new[name], value)
    elif hasattr(value, "move"):
      own = {k: x for k, x in new.items() if not isinstance(x, Mapping)}
      new |= value.move(own)
  return new


def averaged(average: Tree, stats: Tree, reports: Mapping) -> Tree:
  """The stats that are read with an average of the parameters, after a step.

  reports: of the model with those parameters and `average`, the stats so far.
  Where one `averages` it moves them; all others are `stats`.
  """
  new = dict(stats)
  for name, value in reports.items():
    if isinstance(value, Mapping):
      if name in new:
        new[name] = averaged(average[name], stats[name], value)
    elif getattr(value, "averages", False):
      own = {k: x for k, x in average.items() if not isinstance(x, Mapping)}
      new |= value.move(own)
  return new


def are_averaged(reports: Mapping) -> bool:
  """Whether any of them `averages`."""
  return any(
    are_averaged(x) if isinstance(x, Mapping) else getattr(x, "averages", False)
    for x in reports.values()
  )


def told(reports: Mapping, prefix: str = "") -> dict[str, Mean]:
  """The Means among the reports, by path: what a run records of them."""
  found = {}
  for name, value in reports.items():
    path = f"{prefix}{name}"
    if isinstance(value, Mapping):
      found |= told(value, f"{path}/")
    elif isinstance(value, Mean):
      # One with an axis is of many layers, or of many experts.
      found[path] = Mean(jnp.sum(value.sum), jnp.sum(value.weight))
  return found


@struct.dataclass
class OfLayers:
  """A report that moves stats, of all the layers of a stack: leading axis L."""

  value: Moves

  def move(self, old: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Each layer's stats by its own report."""
    return jax.vmap(lambda value, old: value.move(old))(self.value, old)

  @property
  def averages(self) -> bool:
    return getattr(self.value, "averages", False)


def of_layers(reports: Tree) -> Tree:
  """Reports of single layers, stacked, as a report of the stack."""
  if isinstance(reports, Mapping):
    return {name: of_layers(value) for name, value in reports.items()}
  return OfLayers(reports) if hasattr(reports, "move") else reports
