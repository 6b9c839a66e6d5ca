"""What models of images share: their example, and the check of a size."""

import jax
import jax.numpy as jnp

from aigc_jax import errors


def image_example(
  image: tuple[int, int, int],
) -> dict[str, jax.ShapeDtypeStruct]:
  """An abstract batch of one image (Y, X, C)."""
  return {"images": jax.ShapeDtypeStruct((1, *image), jnp.float32)}


def check_images(images_BYXC: jax.Array, image: tuple[int, int, int]) -> None:
  """Raises BadConfig unless the images are of the model's size."""
  if images_BYXC.shape[1:] != image:
    given, wanted = (
      "x".join(map(str, s)) for s in (images_BYXC.shape[1:], image)
    )
    raise errors.BadConfig(
      f"the model takes images of {wanted} (rows, columns, channels), the data "
      f"gives {given}: {_set('data', image)}, or "
      f"{_set('model', images_BYXC.shape[1:])}; a model of parts has them by "
      "part (model.parts.NAME.image_size)"
    )


def _set(section: str, image: tuple[int, int, int]) -> str:
  size, _, channels = image
  return (
    f"--config.{section}.image_size={size} "
    f"--config.{section}.channels={channels}"
  )
