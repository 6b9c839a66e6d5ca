"""GAN: one network draws images, another tells them from real ones.

Generative adversarial networks, arXiv:1406.2661, of convolutions as in DCGAN
(arXiv:1511.06434); with `patches` the judge is PatchGAN's (arXiv:1611.07004),
which judges overlapping places of an image and not the whole.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from aigc_jax import errors, sharding
from aigc_jax.layers.batch_norm import BatchNorm
from aigc_jax.layers.convolution import Convolution, Doubled
from aigc_jax.layers.einsum import Einsum
from aigc_jax.layers.noise import normal
from aigc_jax.models.checks import at_least_1, in_halves
from aigc_jax.models.decoder import checked_dtype
from aigc_jax.models.images import check_images, image_example

Batch = Mapping[str, jax.Array]
NORMS = ("batch", "none")
LEAK = 0.2  # slope of the discriminator's ReLU below zero


@struct.dataclass
class Judged:
  """What a discriminator says: the higher, the more an image looks real.

  scores_BS: float32, of S places of each image, or of the image, S = 1.
  coupled: whether in training the rows of a batch depend on each other.
  """

  scores_BS: jax.Array
  coupled: bool = struct.field(pytree_node=False, default=False)


class Gan(nn.Module):
  """Two players under their names, `generator` and `discriminator`.

  Called with the role generator, images (B, Y, X, C) of the rows' keys in
  "draw"; with discriminator, what is `Judged` of "images"; without, both.
  """

  image: tuple[int, int, int]  # Y, X, C
  noise: tuple[int, ...]  # shape of what an image is drawn from
  dtype: jnp.dtype
  make_generator: Callable[..., nn.Module]
  make_discriminator: Callable[..., nn.Module]
  couples_rows: str = ""  # by what the rows of a batch depend on each other

  gradual = False  # an image is drawn at once
  classes = 0

  def setup(self):
    self.generator = self.make_generator()
    self.discriminator = self.make_discriminator()

  def __call__(self, batch: Batch, role: str | None = None):
    roles = {"generator": self.drawn, "discriminator": self.judged}
    if role is None:
      return {name: play(batch) for name, play in roles.items()}
    if role not in roles:
      raise errors.BadConfig(
        f"the objective asks for a part {role!r}, and this model has "
        f"{', '.join(roles)}: --config.objective.kind=adversarial"
      )
    return roles[role](batch)

  def drawn(self, batch: Batch) -> jax.Array:
    """(B, Y, X, C) float32, an image of each row's key."""
    return self.generator(normal(batch["draw"], "image", self.noise))

  def judged(self, batch: Batch) -> Judged:
    """Of the images of a batch."""
    check_images(batch["images"], self.image)
    return self.discriminator(batch["images"])

  def draw(
    self, noise: jax.Array, time_B: jax.Array, labels_B: jax.Array
  ) -> jax.Array:
    """The images of some noise; time and labels are nothing."""
    return self.generator(noise)

  @property
  def operand_dtype(self) -> jnp.dtype:
    """Of what products multiply."""
    return self.dtype

  def example(self) -> dict[str, jax.ShapeDtypeStruct]:
    """An abstract batch of one row."""
    return image_example(self.image) | {
      "draw": jax.ShapeDtypeStruct((1, 2), jnp.uint32)
    }


class Bias(nn.Module):
  """A number for each channel."""

  @nn.compact
  def __call__(self, x_BYXD: jax.Array) -> jax.Array:
    zeros = sharding.named(nn.initializers.zeros, "D")
    bias_D = self.param("bias", zeros, x_BYXD.shape[-1:])
    return x_BYXD + bias_D.astype(x_BYXD.dtype)


class Generator(nn.Module):
  """A code (B, Z) -> an image of values from -1 to 1.

  From the smallest size on, each stage doubles rows and columns. norm: batch
  norm before each ReLU, or none and biases instead.
  """

  image: tuple[int, int, int]
  widths: tuple[int, ...]
  latent: int
  norm: Callable[..., BatchNorm] | None
  std: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, code_BZ: jax.Array) -> jax.Array:
    Y, X, C = self.image
    small, plain = 2 ** len(self.widths), self.norm is None
    x = Einsum(
      "BZ,ZYXD->BYXD", (self.latent, Y // small, X // small, self.widths[-1]),
      self.dtype, plain, std=self.std, name="code",
    )(code_BZ)  # fmt: skip
    for i, width in reversed(list(enumerate(self.widths))):
      if self.norm is not None:
        x = self.norm(name=f"norm{i}")(x)
      below = self.widths[i - 1] if i else C
      x = jax.nn.relu(x)
      x = Doubled(width, below, self.dtype, self.std, name=f"double{i}")(x)
      x = Bias(name=f"shift{i}")(x) if plain else x
    return jnp.tanh(x.astype(jnp.float32))


class Discriminator(nn.Module):
  """Images -> Judged; each stage halves rows and columns.

  The first stage has no norm, nor has the last one's sum over all places. With
  patches the last stage keeps its size, and every place is judged.
  """

  image: tuple[int, int, int]
  widths: tuple[int, ...]
  patches: bool
  norm: Callable[..., BatchNorm] | None
  std: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, images_BYXC: jax.Array) -> Judged:
    Y, X, before = self.image
    x, plain = images_BYXC, self.norm is None
    for i, width in enumerate(self.widths):
      last = i + 1 == len(self.widths)
      stride = 1 if last and self.patches else 2
      x = self._convolved(x, before, width, stride, f"half{i}")
      if plain or (self.patches and not i):
        x = Bias(name=f"shift{i}")(x)
      if i and self.norm is not None:
        x = self.norm(name=f"norm{i}")(x)
      x, before = jax.nn.leaky_relu(x, LEAK), width
    if self.patches:
      x = self._convolved(x, before, 1, 1, "score")
      x = Bias(name="shift")(x)
    else:
      small = 2 ** len(self.widths)
      x = Einsum(
        "BYXD,YXDZ->BZ", (Y // small, X // small, before, 1), self.dtype,
        plain, std=self.std, name="score",
      )(x)  # fmt: skip
    scores_BS = x.astype(jnp.float32).reshape(len(x), -1)
    return Judged(scores_BS, coupled=not plain)

  def _convolved(self, x, before: int, width: int, stride: int, name: str):
    return Convolution(
      4, before, width, self.dtype, stride, self.std, name=name
    )(x)


def gan(
  *,
  image_size: int,
  channels: int,
  widths: Sequence[int],
  latent: int,
  generator_norm: str = "batch",
  discriminator_norm: str = "batch",
  patches: bool = False,
  norm_eps: float = 1e-5,
  norm_momentum: float = 0.1,
  init_std: float | None = 0.02,
  dtype: str = "float32",
) -> Gan:
  """A Gan of convolutions from plain values; the keys of `config.model`.

  widths: of the stages, from the largest rows and columns to the smallest, the
  same of both players. latent: how many numbers an image is drawn from.
  generator_norm, discriminator_norm: batch or none. patches: whether places are
  judged and not whole images. init_std: of all weights; None is by fan-in.
  What is drawn goes from -1 to 1, and so should the data. Raises BadConfig
  where they cannot go together.
  """
  at_least_1(image_size=image_size, channels=channels, latent=latent)
  in_halves(image_size, widths)
  for key, norm in (
    ("generator_norm", generator_norm),
    ("discriminator_norm", discriminator_norm),
  ):
    errors.choose(norm, dict.fromkeys(NORMS), f"model.{key}")
  if not 0 < norm_momentum <= 1:
    raise errors.BadConfig(
      f"model.norm_momentum={norm_momentum}: expected above 0, up to 1"
    )
  kind, image = checked_dtype(dtype), (image_size, image_size, channels)
  norms = {"batch": partial(BatchNorm, norm_eps, norm_momentum), "none": None}
  std, widths = init_std or 0.0, tuple(widths)
  return Gan(
    image=image,
    noise=(latent,),
    dtype=kind,
    make_generator=partial(
      Generator, image, widths, latent, norms[generator_norm], std, kind
    ),
    make_discriminator=partial(
      Discriminator, image, widths, patches, norms[discriminator_norm], std,
      kind,
    ),
    couples_rows="batch norm"
    if "batch" in (generator_norm, discriminator_norm)
    else "",
  )  # fmt: skip
