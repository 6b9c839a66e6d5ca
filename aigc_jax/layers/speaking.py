"""From text to frames of sound: what a model that speaks says, and when."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

LEVEL = 2.0  # by which a log-mel spectrogram is multiplied to be learnt


class Uttered(NamedTuple):
  """What is predicted of an utterance.

  mel_BTC: of each frame and band without noise, float32. log_frames_B: the
  logarithm of how many frames the whole of it takes, float32.
  """

  mel_BTC: jax.Array
  log_frames_B: jax.Array


def spread(
  text_BND: jax.Array, count_B: jax.Array, steps_B: jax.Array, T: int
) -> jax.Array:
  """Tokens (B, N, D) as (B, T, D), each as often as the others of its text.

  The first `count` tokens of a row fill its first `steps` places evenly
  (average upsampling, arXiv:2506.13053); what lies behind repeats the last.
  """
  at_T = jnp.arange(T, dtype=jnp.int32)
  steps_B = jnp.maximum(steps_B, 1)
  which_BT = at_T * count_B[:, None] // steps_B[:, None]
  which_BT = jnp.clip(which_BT, 0, jnp.maximum(count_B, 1)[:, None] - 1)
  return jnp.take_along_axis(text_BND, which_BT[..., None], axis=1)
