"""Sound on its way into a stack: a spectrogram, then convolutions over time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from aigc_jax import sharding
from aigc_jax.layers.einsum import Einsum
from aigc_jax.layers.mel import hidden, log_mel
from aigc_jax.layers.mlp import activate

WIDTH = 3  # frames that a convolution sees


class TimeConvolution(nn.Module):
  """WIDTH neighbours at every stride-th place, with a bias, written as product.

  Beyond both ends there are zeros.
  """

  channels: int
  dim: int
  dtype: jnp.dtype
  stride: int = 1
  std: float = 0.0
  products: str = "plain"

  @nn.compact
  def __call__(self, x_BTC: jax.Array) -> jax.Array:
    """(B, T / stride, D), rounded up."""
    T = x_BTC.shape[1]
    x_BTC = jnp.pad(x_BTC, ((0, 0), (WIDTH // 2, WIDTH // 2), (0, 0)))
    seen = [x_BTC[:, i : i + T : self.stride] for i in range(WIDTH)]
    project = Einsum(
      "BTXC,XCD->BTD", (WIDTH, self.channels, self.dim), self.dtype, True,
      self.std, products=self.products, name="projection",
    )  # fmt: skip
    return project(jnp.stack(seen, axis=2))


class Ear(nn.Module):
  """16-bit samples as vectors, HOP x all strides samples apart.

  bins: bands of the spectrogram. strides: of each convolution, in order.
  """

  bins: int
  activation: str
  convolution: Callable[..., TimeConvolution]
  strides: tuple[int, ...]
  dim: int

  @nn.compact
  def __call__(
    self,
    audio_BA: jax.Array,
    lengths_B: jax.Array,
    masks_BM4: jax.Array | None = None,
  ) -> jax.Array:
    """(B, T, D) of whole steps of samples (B, A), silent behind `lengths`.

    masks: what is hidden of spectrograms, as `mel.hidden` takes it.
    """
    x_BTC = log_mel(audio_BA, lengths_B, self.bins)
    if masks_BM4 is not None:
      x_BTC = hidden(x_BTC, lengths_B, masks_BM4)
    for i, stride in enumerate(self.strides, 1):
      convolve = self.convolution(
        channels=x_BTC.shape[-1], dim=self.dim, stride=stride,
        name=f"convolution_{i}",
      )  # fmt: skip
      x_BTC = activate(self.activation, convolve(x_BTC))
    return sharding.constrain(x_BTC, "BTD")
