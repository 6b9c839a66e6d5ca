"""Squared error of the speech found in a noisy spectrogram, and of its length.

Flow matching, arXiv:2210.02747, on the straight path of objectives/paths.py, of
a model that predicts its end without noise. The spectrogram is made of the
samples here, on the device.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from aigc_jax import errors
from aigc_jax.layers.mel import HOP, log_mel
from aigc_jax.layers.noise import normal, uniform
from aigc_jax.layers.speaking import LEVEL
from aigc_jax.metrics import Mean
from aigc_jax.objectives.paths import Path

Batch = Mapping[str, jax.Array]
PATH = Path("velocity")  # the straight one


def speech(
  predict: Callable,
  batch: Batch,
  *,
  bins: int,
  text_dropout: float = 0.1,
  speaker_dropout: float = 0.1,
  duration: float = 1.0,
) -> dict[str, Mean]:
  """The squared error of a spectrogram without its noise, and of durations.

  Of "audio" (B, A) of "audio_lengths" the log-mel spectrogram of `bins` bands;
  the model gives `layers.speaking.Uttered`. Time and noise of a row come from
  its key in "draw" (B, 2). text_dropout, speaker_dropout: the share of rows
  that in training are not told what is said, for guidance without a classifier
  (arXiv:2207.12598), and who says it. duration: weight of the squared error of
  the logarithm of the length.

  Returns "loss"; "mel", the first of the two errors, the mean over frames and
  bands of an utterance; "duration", the mean absolute error of the logarithm
  of the length, of the rows that are told their text. All utterances count
  alike.
  Raises BadConfig for options out of range.
  """
  for name, value in (
    ("text_dropout", text_dropout), ("speaker_dropout", speaker_dropout)
  ):  # fmt: skip
    if not 0 <= value <= 1:
      raise errors.BadConfig(f"objective.{name}={value}: expected 0 to 1")
  if duration < 0:
    raise errors.BadConfig(f"objective.duration={duration}: expected 0 or more")
  if "draw" not in batch:
    raise errors.BadConfig(
      "objective.kind='speech' takes a key for each row from the data: "
      "--config.data.draw=True"
    )
  draw_B2 = batch["draw"]
  x_BFC, frames_B = target(batch, bins)
  t_B = uniform(draw_B2, "time")
  e_BFC = normal(draw_B2, "noise", x_BFC.shape[1:])
  asked = dict(
    batch, mel=PATH.between(x_BFC, e_BFC, t_B), mel_lengths=frames_B, time=t_B
  )
  real_B = jnp.any(batch["weights"] > 0, axis=1).astype(jnp.float32)
  told_B = jnp.ones_like(real_B)
  if getattr(predict, "trains", False):
    told_B = (uniform(draw_B2, "text") >= text_dropout).astype(jnp.float32)
    asked["weights"] = batch["weights"] * told_B[:, None]
    if "speakers" in batch:
      named_B = uniform(draw_B2, "speaker") >= speaker_dropout
      asked["speakers"] = jnp.where(named_B, batch["speakers"], 2**31 - 1)
  found = predict(asked)
  error_BF = jnp.mean((found.mel_BTC - x_BFC) ** 2, axis=-1)
  inside_BF = jnp.arange(error_BF.shape[1]) < frames_B[:, None]
  mel_B = jnp.sum(jnp.where(inside_BF, error_BF, 0.0), axis=1)
  mel_B = mel_B / jnp.maximum(frames_B, 1)
  apart_B = found.log_frames_B - jnp.log(jnp.maximum(frames_B, 1))
  loss_B = mel_B + duration * told_B * apart_B**2
  return {
    "loss": Mean.of(loss_B, real_B),
    "mel": Mean.of(mel_B, real_B),
    "duration": Mean.of(jnp.abs(apart_B), real_B * told_B),
  }


# What it puts into a batch for the model.
speech.makes = ("mel", "mel_lengths", "time")


def target(batch: Batch, bins: int) -> tuple[jax.Array, jax.Array]:
  """(spectrograms (B, F, bins) as they are learnt, how many frames (B,))."""
  audio_BA = batch["audio"]
  audio_BA = jnp.pad(audio_BA, ((0, 0), (0, -audio_BA.shape[1] % HOP)))
  mel_BFC = log_mel(audio_BA, batch["audio_lengths"], bins)
  return LEVEL * mel_BFC, -(batch["audio_lengths"] // -HOP)
