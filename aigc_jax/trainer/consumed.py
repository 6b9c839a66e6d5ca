"""What a run has consumed: added to as it goes, and part of its checkpoints.

A batch, a length or a model that changes on resume changes what a step takes.
So nothing here is a number of steps times the size of today.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from aigc_jax.errors import BadConfig

EXAMPLES = "examples"  # the unit that all data has
# The config keys that say how much a run consumes, and of which unit.
TOTALS = {
  "total_tokens": "tokens",
  "total_examples": EXAMPLES,
  "total_flops": "flops",
  "tokens_per_parameter": "tokens",  # times the number of parameters
}


@dataclass(frozen=True)
class Consumed:
  """Amounts of one step, or of a whole run: they add up.

  units: {"examples": n} and what else the data counts, such as tokens. flops
  is a whole number, as sums of it must be exact.
  """

  units: Mapping[str, int] = field(default_factory=lambda: {EXAMPLES: 0})
  flops: int = 0

  def after(self, steps: int, each: "Consumed") -> "Consumed":
    """This and `steps` steps more, `each` of that size."""
    names = [*each.units, *(n for n in self.units if n not in each.units)]
    return Consumed(
      {
        name: self.units.get(name, 0) + steps * each.units.get(name, 0)
        for name in names
      },
      self.flops + steps * each.flops,
    )

  def amount(self, name: str) -> int:
    """Of a unit, or of "flops"; raises BadConfig for a unit it lacks."""
    if name == "flops":
      return self.flops
    if name not in self.units:
      raise BadConfig(
        f"total_{name}: the data of this run counts no {name} (it counts: "
        f"{', '.join(self.units)})"
      )
    return self.units[name]

  def as_row(self) -> dict:
    """As the rows of metrics.jsonl have it."""
    return {**self.units, "flops": float(self.flops)}

  def as_meta(self) -> dict:
    """As a checkpoint holds it; `of_meta` reads it again."""
    return {"units": dict(self.units), "flops": self.flops}


def of_meta(meta: Mapping) -> Consumed | None:
  """What a checkpoint says of it; None in one from before it did."""
  found = meta.get("consumed")
  return Consumed(found["units"], found["flops"]) if found else None
