"""How long a run is: steps, or an amount that it may consume.

An amount is met by steps of any size: how many are left is settled from what
the run has consumed when it goes on, so a batch that was changed on the way
changes the number of steps and not the amount.
"""

import math
from typing import Any

from aigc_jax.errors import BadConfig
from aigc_jax.trainer.consumed import TOTALS, Consumed


def read(config: dict[str, Any]) -> None:
  """Checks the keys of the budget, and makes what is not given None.

  1e6 is 1,000,000; 0 steps beside a total are none. Raises BadConfig unless
  just one of `steps` and the totals is given.
  """
  for name in TOTALS:
    config[name] = _positive(name, config.get(name))
  given = {n: config[n] for n in TOTALS if config[n] is not None}
  if len(given) > 1:
    first, second = list(given)[:2]
    raise BadConfig(
      f"{first}={given[first]} and {second}={given[second]} both say when the "
      f"run ends: leave one out, such as --config.{second}=None"
    )
  steps = config["steps"]
  if not given:
    if steps is None:
      raise BadConfig(
        f"nothing says when the run ends: set steps, or one of "
        f"{', '.join(TOTALS)}"
      )
    config["steps"] = _whole("steps", steps)
    return
  name, total = next(iter(given.items()))
  if steps and not _settled_before(config):
    raise BadConfig(
      f"steps={steps} and {name}={total} both say when the run ends: leave one "
      f"out, --config.steps=None or --config.{name}=None"
    )
  config["steps"] = None


def _settled_before(config: dict) -> bool:
  """Whether steps are those of total_tokens, as config.json once had both."""
  each = config["data"]["batch"] * config["data"].get("length", 1)
  total = config["total_tokens"]
  return bool(total) and config["steps"] == math.ceil(total / each)


def _positive(name: str, value) -> int | float | None:
  if value is None:
    return None
  if not value > 0:
    raise BadConfig(f"{name}={value}: expected a positive number, or None")
  return value if name == "tokens_per_parameter" else _whole(name, value)


def _whole(name: str, value) -> int:
  """The integer that 1e6, 1000 or 1000.0 is."""
  if value != int(value) or value < 0:
    raise BadConfig(
      f"{name}={value}: expected 0 or more, a whole number (1e6 is one)"
    )
  return int(value)


def settle(
  config: dict[str, Any],
  each: Consumed,
  parameters: int,
  consumed: Consumed,
  step: int,
) -> int:
  """The last step of a run that stands at `step` and has consumed so much.

  each: what a step takes. Of a total, the first step at which it is reached,
  at the end of a call of the device. Raises BadConfig for a total of what the
  data does not count.
  """
  found = total(config, parameters)
  if found is None:
    return config["steps"]
  unit, amount = found
  size = each.amount(unit)
  if size <= 0:
    raise BadConfig(f"total_{unit}: a step of this run has no {unit}")
  missing = amount - (consumed.amount(unit) if step else 0)
  call = config["compute"]["steps_per_call"]
  return step + max(0, -(-missing // (size * call)) * call)


def total(config: dict[str, Any], parameters: int) -> tuple[str, int] | None:
  """(unit, amount) that ends the run; None where steps do."""
  for name, unit in TOTALS.items():
    value = config[name]
    if value is not None:
      per_parameter = name == "tokens_per_parameter"
      return unit, math.ceil(value * parameters) if per_parameter else value
  return None
