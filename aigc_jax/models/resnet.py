"""ResNet: convolutions with batch norm, each pair or triple added to its input.

Deep residual learning, arXiv:1512.03385; where blocks have a bottleneck the
stride is that of its 3 x 3 convolution, as in everybody's implementations.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax import errors, sharding
from aigc_jax.layers.batch_norm import BatchNorm
from aigc_jax.layers.classifier import Classifier, Scores, classifier
from aigc_jax.layers.convolution import Convolution, largest_of_neighbours
from aigc_jax.layers.stack import REMAT
from aigc_jax.models.checks import at_least_1
from aigc_jax.models.decoder import checked_dtype
from aigc_jax.models.images import check_images, image_example

Batch = Mapping[str, jax.Array]
NARROW = 4  # how many times a bottleneck is narrower than what it adds to
STEMS = ("large", "small")


class Residual(nn.Module):
  """relu(x + convolutions of x); x by a projection where its shape changes.

  Two convolutions of 3 x 3, or with a bottleneck 1 x 1, 3 x 3, 1 x 1.
  """

  channels: int
  dim: int
  stride: int
  bottleneck: bool
  dtype: jnp.dtype
  norm: Callable[..., BatchNorm]
  zero_init: bool  # whether the block begins as the identity

  @nn.compact
  def __call__(self, x_BYXC: jax.Array) -> jax.Array:
    C, D, inner = self.channels, self.dim, self.dim // NARROW
    if self.bottleneck:
      steps = [
        (1, C, inner, 1),
        (3, inner, inner, self.stride),
        (1, inner, D, 1),
      ]
    else:
      steps = [(3, C, D, self.stride), (3, D, D, 1)]
    y = x_BYXC
    for i, (width, channels, dim, stride) in enumerate(steps, start=1):
      last = i == len(steps)
      y = Convolution(
        width, channels, dim, self.dtype, stride, name=f"conv{i}"
      )(y)
      y = self.norm(zero_init=self.zero_init and last, name=f"norm{i}")(y)
      y = y if last else jax.nn.relu(y)
    if (C, self.stride) != (D, 1):
      x_BYXC = Convolution(1, C, D, self.dtype, self.stride, name="shortcut")(
        x_BYXC
      )
      x_BYXC = self.norm(name="norm_shortcut")(x_BYXC)
    return sharding.constrain(jax.nn.relu(x_BYXC + y), "BYXD")


class Stem(nn.Module):
  """What comes before the blocks.

  large: a quarter of the size, by 7 x 7 pixels and the largest of neighbours.
  small: 3 x 3 pixels at their own size, for images as small as CIFAR's.
  """

  kind: str
  channels: int
  dim: int
  dtype: jnp.dtype
  norm: Callable[..., BatchNorm]

  @nn.compact
  def __call__(self, images_BYXC: jax.Array) -> jax.Array:
    width, stride = (7, 2) if self.kind == "large" else (3, 1)
    x = Convolution(
      width, self.channels, self.dim, self.dtype, stride, name="conv"
    )(images_BYXC)
    x = jax.nn.relu(self.norm(name="norm")(x))
    return largest_of_neighbours(x) if self.kind == "large" else x


class Resnet(nn.Module):
  """Scores of labels for "images" (B, Y, X, C) of a batch."""

  image: tuple[int, int, int]  # Y, X, C
  dtype: jnp.dtype
  stem: Callable[..., Stem]
  blocks: tuple[Callable[..., Residual], ...]
  names: tuple[str, ...]  # of the blocks
  head: Callable[..., Classifier]

  # What makes the rows of a batch depend on each other in training.
  couples_rows = "batch norm"

  @nn.compact
  def __call__(self, batch: Batch) -> Scores:
    images_BYXC = batch["images"]
    check_images(images_BYXC, self.image)
    x_BYXC = self.stem(name="stem")(images_BYXC)
    for block, name in zip(self.blocks, self.names, strict=True):
      x_BYXC = block(name=name)(x_BYXC)
    x_BD = jnp.mean(x_BYXC, axis=(1, 2), dtype=jnp.float32)
    return self.head(name="head")(x_BD)

  @property
  def operand_dtype(self) -> jnp.dtype:
    """Of what products multiply."""
    return self.dtype

  def example(self) -> dict[str, jax.ShapeDtypeStruct]:
    """An abstract batch of one row."""
    return image_example(self.image)


def resnet(
  *,
  classes: int,
  image_size: int,
  channels: int,
  blocks: Sequence[int],
  widths: Sequence[int],
  bottleneck: bool,
  stem: str,
  stem_dim: int,
  norm_eps: float,
  norm_momentum: float,
  zero_init_residual: bool,
  init_std: float | None,
  dtype: str,
  remat: str,
) -> Resnet:
  """A Resnet from plain values; the keys of `config.model`.

  blocks and widths: of each stage, the first of which keeps the stem's size and
  each other halves it. stem: large or small, see Stem. norm_momentum: by what
  share of the way the running moments go to a batch's, a step.
  zero_init_residual: whether each block begins as the identity
  (arXiv:1706.02677, section 5.1). init_std: of the head; None is by fan-in.
  Raises BadConfig where they cannot go together.
  """
  at_least_1(
    classes=classes, image_size=image_size, channels=channels, stem_dim=stem_dim
  )
  if len(blocks) != len(widths) or not len(blocks):
    raise errors.BadConfig(
      f"model.blocks={tuple(blocks)} and model.widths={tuple(widths)}: "
      "expected one number in each for every stage"
    )
  for i, (count, width) in enumerate(zip(blocks, widths, strict=True)):
    at_least_1(**{f"blocks[{i}]": count, f"widths[{i}]": width})
    if bottleneck and width % NARROW:
      raise errors.BadConfig(
        f"model.widths[{i}]={width} is not divisible by {NARROW}, by which a "
        "bottleneck is narrower"
      )
  errors.choose(stem, dict.fromkeys(STEMS), "model.stem")
  policy = errors.choose(remat, REMAT, "compute.remat")
  if not 0 < norm_momentum <= 1:
    raise errors.BadConfig(
      f"model.norm_momentum={norm_momentum}: expected above 0, up to 1"
    )
  kind = checked_dtype(dtype)
  norm = functools.partial(BatchNorm, norm_eps, norm_momentum)
  block = Residual
  if remat != "none":
    block = nn.remat(Residual, policy=policy, prevent_cse=False)
  made, names, before = [], [], stem_dim
  for s, (count, width) in enumerate(zip(blocks, widths, strict=True)):
    for b in range(count):
      stride = 2 if s and not b else 1
      made.append(
        functools.partial(
          block,
          before,
          width,
          stride,
          bottleneck,
          kind,
          norm,
          zero_init_residual,
        )
      )
      names.append(f"stage{s}_block{b}")
      before = width
  return Resnet(
    image=(image_size, image_size, channels),
    dtype=kind,
    stem=functools.partial(Stem, stem, channels, stem_dim, kind, norm),
    blocks=tuple(made),
    names=tuple(names),
    head=functools.partial(
      classifier, before, classes, dtype=kind, std=init_std or 0.0
    ),
  )
