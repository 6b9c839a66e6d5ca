"""Pooling: one vector of many positions."""

from collections.abc import Callable

import jax
from flax import linen as nn

from aigc_jax.layers.attention import Attention
from aigc_jax.layers.mlp import Mlp
from aigc_jax.layers.norm import NormFactory
from aigc_jax.layers.patches import Tokens
from aigc_jax.layers.visible import Visible


class AttentionPool(nn.Module):
  """What a learned query reads of all positions, and an MLP added to it.

  Attention pooling as vision transformers have it since arXiv:2106.04560.
  """

  tokens: Callable[..., Tokens]
  attention: Callable[..., Attention]  # cross
  norm: NormFactory
  mlp: Callable[..., Mlp]

  @nn.compact
  def __call__(self, x_BSD: jax.Array) -> jax.Array:
    """(B, D)."""
    query_BTD = self.tokens(count=1, name="query_token")(len(x_BSD))
    y_BTD, _ = self.attention(name="attention")(
      query_BTD, Visible(causal=False), None, memory_BSD=x_BSD
    )
    more_BTD = self.mlp(name="mlp")(self.norm(name="norm")(y_BTD))
    return (y_BTD + more_BTD)[:, 0]
