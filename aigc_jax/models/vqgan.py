"""VQ-GAN: a VQ-VAE whose images a second player tells from real ones.

arXiv:2012.09841; the second player is PatchGAN's (arXiv:1611.07004).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from aigc_jax import errors, sharding
from aigc_jax.layers.batch_norm import BatchNorm
from aigc_jax.layers.report import STATS, report
from aigc_jax.metrics import Mean
from aigc_jax.models.checks import in_halves
from aigc_jax.models.gan import NORMS, Discriminator, Judged
from aigc_jax.models.images import check_images
from aigc_jax.models.roles import Part
from aigc_jax.models.vq import Coded, Vq, vq

Batch = Mapping[str, jax.Array]


@struct.dataclass
class Drawn:
  """What the first player made of images, and after how many updates.

  steps: () float32, by which an objective lets the second player be heard.
  """

  coded: Coded
  steps: jax.Array


@struct.dataclass
class Update:
  """A report that counts the updates."""

  rows: Mean

  def move(self, old: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """One more, of however many parts it was."""
    return {"steps": old["steps"] + 1}


class Vqgan(nn.Module):
  """Two players under their names, `generator` and `discriminator`.

  Called with the role generator, what is `Drawn` of "images" (B, Y, X, C), as
  of a Vq; with discriminator, what is `Judged` of them; without, what is Coded
  of them. It makes codes as its Vq does.
  """

  book: Part  # the Vq
  make_discriminator: Callable[..., Discriminator]
  couples_rows: str = ""  # by what the rows of a batch depend on each other

  roles = ("generator", "discriminator")

  def setup(self):
    self.generator = self.book.model.clone()
    self.discriminator = self.make_discriminator()
    zeros = sharding.named(jnp.zeros, ".")
    self.steps = self.variable(STATS, "steps", zeros, (1,))

  def __call__(self, batch: Batch, role: str | None = None):
    players = {"generator": self.drawn, "discriminator": self.judged}
    if role is None:
      if self.is_initializing():
        self.judged(batch)
      return self.generator(batch)
    if role not in players:
      raise errors.BadConfig(
        f"the objective asks for a part {role!r}, and this model has "
        f"{', '.join(players)}: --config.objective.kind=vqgan"
      )
    return players[role](batch)

  def drawn(self, batch: Batch) -> Drawn:
    """Of the images of a batch, once in an update."""
    each = jnp.ones(len(batch["images"]))
    report(self, "update", Update(Mean.of(each, each)))
    return Drawn(self.generator(batch), self.steps.value[0])

  def judged(self, batch: Batch) -> Judged:
    """Of the images of a batch."""
    check_images(batch["images"], self.image, self.name)
    return self.discriminator(batch["images"])

  def encode(self, images_BYXC: jax.Array) -> jax.Array:
    return self.generator.encode(images_BYXC)

  def decode(self, codes_BT: jax.Array) -> jax.Array:
    return self.generator.decode(codes_BT)

  def reconstruct(self, images_BYXC: jax.Array) -> jax.Array:
    """The images that their codes make."""
    return self.generator.reconstruct(images_BYXC)

  @property
  def vq(self) -> Vq:
    """The first player by itself; its variables lie below "generator"."""
    return self.book.model

  @property
  def image(self) -> tuple[int, int, int]:
    return self.vq.image

  @property
  def codes(self) -> int:
    return self.vq.codes

  @property
  def places(self) -> tuple[int, int]:
    return self.vq.places

  @property
  def operand_dtype(self) -> jnp.dtype:
    """Of what products multiply."""
    return self.vq.dtype

  def example(self) -> dict[str, jax.ShapeDtypeStruct]:
    """An abstract batch of one row."""
    return self.vq.example()


def vqgan(
  *,
  image_size: int,
  channels: int,
  widths: Sequence[int],
  judge_widths: Sequence[int],
  judge_norm: str = "batch",
  norm_eps: float = 1e-5,
  norm_momentum: float = 0.1,
  judge_init_std: float | None = 0.02,
  quantizer: str = "ema",
  codes: int | None = None,
  dim: int | None = None,
  levels: Sequence[int] = (),
  decay: float = 0.99,
  revive: float = 0.1,
  cosine: bool = False,
  blocks: int = 0,
  attention: Sequence[int] = (),
  groups: int = 32,
  activation: str = "silu",
  dtype: str = "float32",
  remat: str = "none",
  kernel: str = "auto",
  fuse_projections: bool = True,
) -> Vqgan:
  """A Vqgan from plain values; the keys of `config.model`.

  judge_widths: of the stages of the discriminator, which judges places.
  judge_norm: batch or none. judge_init_std: of its weights; None is by fan-in.
  The others are those of a vq. Raises BadConfig where they cannot go together.
  """
  made = vq(
    image_size=image_size, channels=channels, widths=widths,
    quantizer=quantizer, codes=codes, dim=dim, levels=levels, decay=decay,
    revive=revive, cosine=cosine, blocks=blocks, attention=attention,
    groups=groups, activation=activation, dtype=dtype, remat=remat,
    kernel=kernel, fuse_projections=fuse_projections,
  )  # fmt: skip
  errors.choose(judge_norm, dict.fromkeys(NORMS), "model.judge_norm")
  if not 0 < norm_momentum <= 1:
    raise errors.BadConfig(
      f"model.norm_momentum={norm_momentum}: expected above 0, up to 1"
    )
  in_halves(image_size, judge_widths, "judge_widths")
  norm = partial(BatchNorm, norm_eps, norm_momentum)
  normed = judge_norm == "batch"
  return Vqgan(
    Part(made),
    partial(
      Discriminator, made.image, tuple(judge_widths), True,
      norm if normed else None, judge_init_std or 0.0, made.dtype,
    ),
    couples_rows="batch norm" if normed else "",
  )  # fmt: skip
