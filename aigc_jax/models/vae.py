"""VAE: an image as a few numbers with a deviation, and back.

Variational autoencoder, arXiv:1312.6114; small convolutions both ways.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from aigc_jax.layers.einsum import Einsum
from aigc_jax.layers.noise import normal
from aigc_jax.layers.stages import doubled, halved
from aigc_jax.models.checks import at_least_1, in_halves
from aigc_jax.models.decoder import checked_dtype
from aigc_jax.models.images import check_images, image_example

Batch = Mapping[str, jax.Array]


@struct.dataclass
class Told:
  """What a VAE says of images: Gaussians of codes, and pixels of a code.

  All float32. log_scale: of the pixels' distribution, each by itself.
  """

  mean_BZ: jax.Array
  log_var_BZ: jax.Array
  pixels_BYXC: jax.Array
  log_scale_BYXC: jax.Array


class Encoder(nn.Module):
  """(B, Y, X, C) -> mean and log variance (B, Z) of a code, or of places."""

  image: tuple[int, int, int]
  widths: tuple[int, ...]
  latent: int
  activation: str
  dtype: jnp.dtype
  places: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    x = halved(x, self.widths, self.activation, self.dtype)
    equation, shape = "BYXD,YXDZ->BZ", (*x.shape[1:], 2 * self.latent)
    if self.places:
      equation, shape = "BYXD,DZ->BYXZ", shape[2:]
    code = Einsum(equation, shape, self.dtype, True, name="code")(x)
    mean, log_var = jnp.split(code.astype(jnp.float32), 2, axis=-1)
    return mean, log_var


class Painter(nn.Module):
  """A code (B, Z), or of places -> the pixels' means and log scales."""

  image: tuple[int, int, int]
  widths: tuple[int, ...]
  latent: int
  activation: str
  dtype: jnp.dtype
  places: bool

  @nn.compact
  def __call__(self, code: jax.Array) -> tuple[jax.Array, jax.Array]:
    Y, X, C = self.image
    small, width = 2 ** len(self.widths), self.widths[-1]
    equation, shape = "BZ,ZYXD->BYXD", (Y // small, X // small, width)
    if self.places:
      equation, shape = "BYXZ,ZD->BYXD", shape[2:]
    x = Einsum(equation, (self.latent, *shape), self.dtype, True, name="code")(
      code
    )
    x = doubled(x, self.widths, 2 * C, self.activation, self.dtype)
    mean, log_scale = jnp.split(x, 2, axis=-1)
    return mean, log_scale


class Vae(nn.Module):
  """What is `Told` of "images" (B, Y, X, C), by a code drawn by their "draw".

  The code is the posterior's mean and noise of the row's key times its
  deviation. places: whether each place of the last stage has `latent` numbers
  of its own, (Y / 2**n, X / 2**n, latent), and not the image as a whole.
  """

  image: tuple[int, int, int]  # Y, X, C
  widths: tuple[int, ...]
  latent: int
  activation: str
  dtype: jnp.dtype
  places: bool = False

  gradual = False  # an image is drawn at once
  classes = 0

  def setup(self):
    parts = (
      self.image, self.widths, self.latent, self.activation, self.dtype,
      self.places,
    )  # fmt: skip
    self.encoder = Encoder(*parts)
    self.decoder = Painter(*parts)

  def __call__(self, batch: Batch) -> Told:
    images_BYXC = batch["images"]
    check_images(images_BYXC, self.image)
    mean, log_var = self.encoder(images_BYXC)
    noise = normal(batch["draw"], "code", self.noise)
    code = mean + jnp.exp(log_var / 2) * noise
    flat = lambda x: x.reshape(len(x), -1)  # noqa: E731
    return Told(flat(mean), flat(log_var), *self.decoder(code))

  @property
  def noise(self) -> tuple[int, ...]:
    """Shape of a code, which before an image is noise."""
    small = 2 ** len(self.widths)
    places = (self.image[0] // small, self.image[1] // small)
    return (*places, self.latent) if self.places else (self.latent,)

  def moments(self, images_BYXC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and deviation of the images' codes, (B, *noise) float32."""
    check_images(images_BYXC, self.image)
    mean, log_var = self.encoder(images_BYXC)
    return mean, jnp.exp(log_var / 2)

  def decode(self, code: jax.Array) -> jax.Array:
    """The means of the pixels of codes (B, *noise)."""
    return self.decoder(code)[0]

  def draw(
    self, noise: jax.Array, time_B: jax.Array, labels_B: jax.Array
  ) -> jax.Array:
    """The means of the pixels of codes (B, Z); time and labels are nothing."""
    return self.decoder(noise)[0]

  def reconstruct(self, images_BYXC: jax.Array) -> jax.Array:
    """The means of the pixels of the images' likeliest codes."""
    check_images(images_BYXC, self.image)
    return self.decoder(self.encoder(images_BYXC)[0])[0]

  @property
  def operand_dtype(self) -> jnp.dtype:
    """Of what products multiply."""
    return self.dtype

  def example(self) -> dict[str, jax.ShapeDtypeStruct]:
    """An abstract batch of one row."""
    return image_example(self.image) | {
      "draw": jax.ShapeDtypeStruct((1, 2), jnp.uint32)
    }


def vae(
  *,
  image_size: int,
  channels: int,
  widths: Sequence[int],
  latent: int,
  places: bool = False,
  activation: str = "silu",
  dtype: str = "float32",
) -> Vae:
  """A Vae from plain values; the keys of `config.model`.

  widths: of the stages, each of which halves rows and columns. latent: how many
  numbers a code has; with `places`, each place of it, as latent diffusion reads
  them. Raises BadConfig where they cannot go together.
  """
  at_least_1(image_size=image_size, channels=channels, latent=latent)
  in_halves(image_size, widths)
  return Vae(
    image=(image_size, image_size, channels),
    widths=tuple(widths),
    latent=latent,
    activation=activation,
    dtype=checked_dtype(dtype),
    places=places,
  )
