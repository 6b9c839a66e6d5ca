"""VAE: an image as a few numbers with a deviation, and back.

Variational autoencoder, arXiv:1312.6114; small convolutions both ways, or the
residual blocks of latent diffusion's (arXiv:2112.10752).
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from aigc_jax import errors
from aigc_jax.layers.einsum import Einsum
from aigc_jax.layers.noise import normal
from aigc_jax.layers.residual_stages import ResidualStages
from aigc_jax.layers.stages import Stages
from aigc_jax.models.checks import at_least_1
from aigc_jax.models.decoder import checked_dtype
from aigc_jax.models.images import check_images, image_example
from aigc_jax.models.nets import nets

Batch = Mapping[str, jax.Array]


@struct.dataclass
class Told:
  """What a VAE says of images: Gaussians of codes, and pixels of a code.

  All float32. log_scale: of the pixels' distribution, each by itself; None
  where the model tells none.
  """

  mean_BZ: jax.Array
  log_var_BZ: jax.Array
  pixels_BYXC: jax.Array
  log_scale_BYXC: jax.Array | None


class Encoder(nn.Module):
  """(B, Y, X, C) -> mean and log variance (B, Z) of a code, or of places.

  projects: whether a product makes them of what the stages end with, which else
  are they.
  """

  stages: Stages | ResidualStages
  latent: int
  dtype: jnp.dtype
  places: bool
  projects: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    code = self.stages.down(x, 2 * self.latent)
    if self.projects:
      equation, shape = "BYXD,YXDZ->BZ", (*code.shape[1:], 2 * self.latent)
      if self.places:
        equation, shape = "BYXD,DZ->BYXZ", shape[2:]
      code = Einsum(equation, shape, self.dtype, True, name="code")(code)
    mean, log_var = jnp.split(code.astype(jnp.float32), 2, axis=-1)
    return mean, log_var


class Painter(nn.Module):
  """A code (B, Z), or of places -> means and log scales (or None) of pixels."""

  image: tuple[int, int, int]
  stages: Stages | ResidualStages
  latent: int
  dtype: jnp.dtype
  places: bool
  projects: bool
  scales: bool

  @nn.compact
  def __call__(self, code: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    Y, X, C = self.image
    small, width = 2**self.stages.halvings, self.stages.channels(self.latent)
    equation, shape = "BZ,ZYXD->BYXD", (Y // small, X // small, width)
    if self.places:
      equation, shape = "BYXZ,ZD->BYXD", shape[2:]
    x, shape = code, (self.latent, *shape)
    if self.projects:
      x = Einsum(equation, shape, self.dtype, True, name="code")(x)
    if not self.scales:
      return self.stages.up(x, C), None
    mean, log_scale = jnp.split(self.stages.up(x, 2 * C), 2, axis=-1)
    return mean, log_scale


class Vae(nn.Module):
  """What is `Told` of "images" (B, Y, X, C), by a code drawn by their "draw".

  The code is the posterior's mean and noise of the row's key times its
  deviation. places: whether each place of the last stage has `latent` numbers
  of its own, (Y / 2**n, X / 2**n, latent), and not the image as a whole.
  projects: whether products of their own stand between stages and code.
  scales: whether the log scale of each pixel's distribution is told.
  """

  image: tuple[int, int, int]  # Y, X, C
  stages: Stages | ResidualStages
  latent: int
  dtype: jnp.dtype
  places: bool = False
  projects: bool = True
  scales: bool = True

  gradual = False  # an image is drawn at once
  classes = 0

  def setup(self):
    parts = (
      self.stages, self.latent, self.dtype, self.places, self.projects
    )  # fmt: skip
    self.encoder = Encoder(*parts)
    self.decoder = Painter(self.image, *parts, self.scales)

  def __call__(self, batch: Batch) -> Told:
    images_BYXC = batch["images"]
    check_images(images_BYXC, self.image, self.name)
    mean, log_var = self.encoder(images_BYXC)
    noise = normal(batch["draw"], "code", self.noise)
    code = mean + jnp.exp(log_var / 2) * noise
    flat = lambda x: x.reshape(len(x), -1)  # noqa: E731
    return Told(flat(mean), flat(log_var), *self.decoder(code))

  @property
  def noise(self) -> tuple[int, ...]:
    """Shape of a code, which before an image is noise."""
    small = 2**self.stages.halvings
    places = (self.image[0] // small, self.image[1] // small)
    return (*places, self.latent) if self.places else (self.latent,)

  def moments(self, images_BYXC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and deviation of the images' codes, (B, *noise) float32."""
    check_images(images_BYXC, self.image, self.name)
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
    check_images(images_BYXC, self.image, self.name)
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
  projects: bool = True,
  blocks: int = 0,
  attention: Sequence[int] = (),
  groups: int = 32,
  scales: bool = True,
  activation: str = "silu",
  dtype: str = "float32",
  remat: str = "none",
  kernel: str = "auto",
  fuse_projections: bool = True,
) -> Vae:
  """A Vae from plain values; the keys of `config.model`.

  widths: of the stages, each of which halves rows and columns. latent: how many
  numbers a code has; with `places`, each place of it, as latent diffusion reads
  them. projects: whether one more product makes a code of what the stages of
  blocks end with, and another what the way back begins with; without, as in
  what came after latent diffusion's first, these are the code. blocks: residual
  ones of a stage, and one more on the way back; each stage but the last is then
  followed by one of half the size. attention: rows of the stages of blocks
  whose places read each other, besides the middle.
  groups: of channels that blocks normalise together. scales: whether it tells
  the scale of each pixel; else the objective has one for all. Raises BadConfig
  where they cannot go together.
  """
  at_least_1(image_size=image_size, channels=channels, latent=latent)
  kind = checked_dtype(dtype)
  if not projects and not (blocks and places):
    raise errors.BadConfig(
      f"model.projects={projects} is of stages of residual blocks whose code "
      "has places: --config.model.blocks=2 --config.model.places=True, or "
      "--config.model.projects=True"
    )
  return Vae(
    image=(image_size, image_size, channels),
    stages=nets(
      image_size=image_size, widths=widths, blocks=blocks, attention=attention,
      groups=groups, activation=activation, dtype=kind, remat=remat,
      kernel=kernel, fused=fuse_projections,
    ),
    latent=latent,
    dtype=kind,
    places=places,
    projects=projects,
    scales=scales,
  )  # fmt: skip
