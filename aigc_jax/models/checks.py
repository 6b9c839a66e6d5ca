"""Checks of plain values that models share; each refusal names the key."""

from collections.abc import Sequence

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


def in_patches(image_size: int, patch: int) -> None:
  """Raises BadConfig for an image that whole patches do not cover."""
  if image_size % patch:
    below = image_size // patch * patch or patch
    raise errors.BadConfig(
      f"model.image_size={image_size} is not divisible by model.patch={patch}: "
      f"the nearest sizes that are: {below} and "
      f"{-(-image_size // patch) * patch}"
    )


def in_halves(
  image_size: int, widths: Sequence[int], key: str = "widths"
) -> None:
  """Raises BadConfig unless each stage, a width, can halve an image."""
  if not len(widths):
    raise errors.BadConfig(f"model.{key} is empty: name at least one stage")
  at_least_1(**{f"{key}[{i}]": width for i, width in enumerate(widths)})
  small = 2 ** len(widths)
  if image_size % small:
    raise errors.BadConfig(
      f"model.image_size={image_size} cannot be halved {len(widths)} times, "
      f"once for each of model.{key}: a multiple of {small}, or fewer widths"
    )
