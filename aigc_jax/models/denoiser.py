"""What models have in common that take noise away from images step by step."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax.models.images import image_example


class Denoiser(nn.Module):
  """A module of "images" and "time" that is told labels, captions or nothing.

  It has image, (Y, X, C); classes, how many labels it knows; text_length, how
  many tokens of a caption; 0 is of what it is not told. features: how many
  numbers each token of "text" (B, S, features) has, where another model read
  the caption.
  """

  gradual = True  # noise becomes an image step by step

  @property
  def noise(self) -> tuple[int, ...]:
    """Shape of the noise that an image begins as."""
    return self.image

  def draw(
    self,
    noise: jax.Array,
    time_B: jax.Array,
    given: jax.Array,
    text_BSD: jax.Array | None = None,
  ) -> jax.Array:
    """What the objective trained this to predict, (B, Y, X, C).

    given: labels (B,), or tokens of captions (B, S). text: their features.
    """
    told = {"labels" if given.ndim == 1 else "tokens": given}
    if text_BSD is not None:
      told["text"] = text_BSD
    found = self({"images": noise, "time": time_B} | told)
    return found[..., : self.image[-1]]

  def example(self) -> dict[str, jax.ShapeDtypeStruct]:
    """An abstract batch of one row."""
    found = image_example(self.image)
    found["time"] = jax.ShapeDtypeStruct((1,), jnp.float32)
    if self.classes:
      found["labels"] = jax.ShapeDtypeStruct((1,), jnp.int32)
    if self.text_length:
      shape = (1, self.text_length)
      found["tokens"] = jax.ShapeDtypeStruct(shape, jnp.int32)
      if self.features:
        shape = (*shape, self.features)
        found["text"] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return found
