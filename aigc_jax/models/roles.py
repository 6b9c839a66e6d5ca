"""Roles: several models as one, each under a name, for objectives that ask.

A teacher and a student, two towers, two players: `predict(batch, "teacher")`.
Which of them are trained is the config's `frozen`, not the model's.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax import errors
from aigc_jax.layers.parametrization import Factors
from aigc_jax.signature import call, kind_of


@dataclasses.dataclass(frozen=True)
class Part:
  """A model that flax does not see until it is called under its name."""

  model: nn.Module


class Roles(nn.Module):
  """The models of `parts` by name; each one's parameters lie below its own.

  Called with a role, the output of that one; without, {name: output} of all.
  """

  parts: Mapping[str, Part]

  @property
  def operand_dtype(self) -> jnp.dtype:
    """Of what products multiply, which is the same in all parts."""
    return next(iter(self.parts.values())).model.operand_dtype

  @property
  def vocab(self) -> int:
    """The most ids that a part has."""
    return max(getattr(p.model, "vocab", 0) for p in self.parts.values())

  @property
  def limits(self) -> dict[str, float]:
    """The most that parameters may be, by path, of parts that have such."""
    return {
      f"{name}/{path}": most
      for name, part in self.parts.items()
      for path, most in getattr(part.model, "limits", {}).items()
    }

  def factors(self, path: str, optimizer: str) -> Factors:
    """Those of the part that has the parameter at this path."""
    return factors_of_part(self.parts, path, optimizer)

  def example(self) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of one row with what any of the parts reads, abstract."""
    found = {}
    for part in self.parts.values():
      found |= part.model.example()
    return found

  @nn.compact
  def __call__(self, batch, role: str | None = None):
    if role is not None:
      return self._part(role)(batch)
    return {name: self._part(name)(batch) for name in self.parts}

  def _part(self, role: str) -> nn.Module:
    if role not in self.parts:
      raise errors.BadConfig(
        f"the objective asks for a part {role!r}, and model.parts has "
        f"{', '.join(self.parts)}"
      )
    return self.parts[role].model.clone(parent=self, name=role)


def factors_of_part(
  parts: Mapping[str, Part], path: str, optimizer: str
) -> Factors:
  """Of a parameter at "name/...": what the model of that part says of it."""
  name, _, own = path.partition("/")
  said = getattr(parts[name].model, "factors", None)
  return Factors() if said is None else said(own, optimizer)


def parts_of(
  parts: Mapping, models: Mapping[str, Callable], names: Sequence[str] = ()
) -> dict[str, Part]:
  """The models of model.parts, each section a config.model of its own.

  names: those that there must be, and no others; () is any. Raises BadConfig
  for a part that is none.
  """
  if names and sorted(parts) != sorted(names):
    raise errors.BadConfig(
      f"model.parts has {', '.join(parts) or 'nothing'}: expected "
      f"{' and '.join(names)}"
    )
  made = {}
  for name, section in parts.items():
    where = f"model.parts.{name}"
    if not isinstance(section, Mapping):
      raise errors.BadConfig(f"{where}={section!r}: expected a model's keys")
    make, rest = kind_of(where, section, models)
    made[name] = Part(call(make, where, rest))
  return made


def check_told(parts: Mapping, name: str, told: Mapping) -> None:
  """Raises BadConfig unless keys of the whole are those of the part `name`.

  The data is held to the former, and the part to the latter.
  """
  for key, value in told.items():
    theirs = parts[name].get(key)
    if value != theirs:
      raise errors.BadConfig(
        f"model.{key}={value}, and model.parts.{name}.{key}={theirs}: "
        f"the data is held to both: --config.model.{key}={theirs}, or "
        f"--config.model.parts.{name}.{key}={value}"
      )


def roles_of(models: Mapping[str, Callable]) -> Callable[..., Roles]:
  """`roles`, of models of these kinds."""

  def roles(*, parts: Mapping) -> Roles:
    """Roles from plain values: each part is a config.model of its own.

    Raises BadConfig for a part that is none, or for parts that multiply in
    different dtypes.
    """
    if not parts:
      raise errors.BadConfig("model.parts is empty: name at least one model")
    made = parts_of(parts, models)
    if len({part.model.operand_dtype for part in made.values()}) > 1:
      raise errors.BadConfig(
        "model.parts: parts of one model multiply in one dtype: give them the "
        "same dtype and products, those of config.compute"
      )
    return Roles(made)

  return roles
