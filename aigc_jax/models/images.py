"""What models of images share: their example, and the check of a size."""

import jax
import jax.numpy as jnp

from aigc_jax import errors


def image_example(
  image: tuple[int, int, int],
) -> dict[str, jax.ShapeDtypeStruct]:
  """An abstract batch of one image (Y, X, C)."""
  return {"images": jax.ShapeDtypeStruct((1, *image), jnp.float32)}


def check_images(
  images_BYXC: jax.Array, image: tuple[int, int, int], part: str | None = None
) -> None:
  """Raises BadConfig unless the images are of the model's size.

  part: which of a model's parts takes them; None for the model itself.
  """
  if images_BYXC.shape[1:] != image:
    given, wanted = (
      "x".join(map(str, s)) for s in (images_BYXC.shape[1:], image)
    )
    section = f"model.parts.{part}" if part else "model"
    raise errors.BadConfig(
      f"the model takes images of {wanted} (rows, columns, channels), the data "
      f"gives {given}: {_set('data', image)}, or "
      f"{_set(section, images_BYXC.shape[1:])}"
    )


def _set(section: str, image: tuple[int, int, int]) -> str:
  size, _, channels = image
  return (
    f"--config.{section}.image_size={size} "
    f"--config.{section}.channels={channels}"
  )
