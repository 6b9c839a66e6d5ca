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


def in_stages(image_size: int, widths: Sequence[int], groups: int) -> None:
  """Raises BadConfig unless each stage can be normalised, and halved but last.

  groups: of channels that are normalised together.
  """
  if not len(widths):
    raise errors.BadConfig("model.widths is empty: name at least one stage")
  at_least_1(**{f"widths[{i}]": width for i, width in enumerate(widths)})
  for i, width in enumerate(widths):
    if width % groups or width % 2:
      raise errors.BadConfig(
        f"model.widths[{i}]={width} is not divisible by model.groups={groups}, "
        "and by 2"
      )
  small = 2 ** (len(widths) - 1)
  if image_size % small:
    raise errors.BadConfig(
      f"model.image_size={image_size} cannot be halved {len(widths) - 1} "
      f"times, between the stages of model.widths: a multiple of {small}, or "
      "fewer widths"
    )


def attending(
  image_size: int, widths: Sequence[int], attention: Sequence[int]
) -> tuple[bool, ...]:
  """Of each stage, the first of `image_size` rows, whether `attention` has it.

  Raises BadConfig for rows that no stage has.
  """
  rows = [image_size >> i for i in range(len(widths))]
  for size in attention:
    if size not in rows:
      raise errors.BadConfig(
        f"model.attention={tuple(attention)}: no stage has {size} rows; they "
        f"have {', '.join(map(str, rows))}: such as attention=({rows[-1]},)"
      )
  return tuple(size in tuple(attention) for size in rows)
