"""How an image becomes a few places, and they an image: the nets there are."""

import functools
from collections.abc import Callable, Sequence

import jax.numpy as jnp

from aigc_jax import errors
from aigc_jax.layers.attention import Attention
from aigc_jax.layers.group_norm import GroupNorm
from aigc_jax.layers.residual import PlacesAttention
from aigc_jax.layers.residual_stages import ResidualStages
from aigc_jax.layers.stack import REMAT
from aigc_jax.layers.stages import Stages
from aigc_jax.models.checks import at_least_1, attending, in_halves, in_stages

EPS = 1e-6  # of group norm, in all that is published


def nets(
  *,
  image_size: int,
  widths: Sequence[int],
  blocks: int,
  attention: Sequence[int],
  groups: int,
  activation: str,
  dtype: jnp.dtype,
  remat: str,
  kernel: str,
  fused: bool,
) -> Stages | ResidualStages:
  """The stages of these keys of a model, both ways.

  blocks: 0 is of stages without any. Raises BadConfig where they cannot go
  together.
  """
  errors.choose(remat, REMAT, "compute.remat")
  if not blocks:
    if attention:
      raise errors.BadConfig(
        f"model.attention={tuple(attention)} is of stages of residual blocks: "
        "--config.model.blocks=2, or leave it empty"
      )
    in_halves(image_size, widths)
    return Stages(tuple(widths), activation, dtype)
  at_least_1(blocks=blocks, groups=groups)
  in_stages(image_size, widths, groups)
  if activation != "silu":
    raise errors.BadConfig(
      f"model.activation={activation!r}: residual blocks have silu"
    )
  norm = functools.partial(GroupNorm, groups, EPS)

  def places(width: int) -> Callable[..., PlacesAttention]:
    own = functools.partial(
      Attention, width, 1, 1, width, dtype, bias=True, out_bias=True,
      kernel=kernel, out_factor=0.0, fused=fused,
    )  # fmt: skip
    return functools.partial(PlacesAttention, norm, own)

  return ResidualStages(
    widths=tuple(widths),
    blocks=blocks,
    attends=attending(image_size, widths, attention),
    dtype=dtype,
    norm=norm,
    attention=places,
    remat=remat,
  )
