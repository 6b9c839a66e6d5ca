"""Checks of plain values that models share; each refusal names the key."""

from aigc_jax import errors


def at_least_1(**values: object) -> None:
  """Raises BadConfig for a value that is not a whole number from 1."""
  for name, value in values.items():
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
      raise errors.BadConfig(f"model.{name}={value!r}: expected at least 1")


def share(**values: float) -> None:
  """Raises BadConfig for a value that is not from 0 to below 1."""
  for name, value in values.items():
    if not 0 <= value < 1:
      raise errors.BadConfig(f"model.{name}={value}: expected 0 to below 1")
