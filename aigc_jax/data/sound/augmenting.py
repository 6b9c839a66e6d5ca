"""Augmentations: functions of an utterance and of numbers drawn for it.

Every number comes from a Draw, so that what is heard of an utterance is a
function of (seed, place in the order, name), on any number of hosts and after
any stop. Held-out sets are heard as they are.
"""

import dataclasses
import math

import numpy as np

from aigc_jax.data.draw import Draw
from aigc_jax.data.sound.utterances import HOP
from aigc_jax.errors import BadConfig

SLOWEST = 50  # percent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment:
  """What is done to a training utterance; keys of `config.data.augment`.

  speed: by how many percent, at most, it is faster or slower, its pitch with it
  (Ko et al., Interspeech 2015); never so slow that it would not fit its row.
  gain: by how many decibels it is louder or softer. times, time_width,
  time_share: SpecAugment's (arXiv:1904.08779) masks over time, how many, of how
  many frames of 10 ms at most, and of which share of the utterance. bands,
  band_width: those over the bands of the spectrogram.
  """

  speed: int = 0
  gain: float = 0.0
  times: int = 0
  time_width: int = 100
  time_share: float = 1.0
  bands: int = 0
  band_width: int = 27

  def __post_init__(self):
    legal = {
      "speed": 0 <= self.speed <= SLOWEST,
      "gain": 0 <= self.gain < math.inf,
      "times": self.times >= 0,
      "time_width": self.time_width >= 1,
      "time_share": 0 < self.time_share <= 1,
      "bands": self.bands >= 0,
      "band_width": self.band_width >= 1,
    }
    for key, good in legal.items():
      if not good:
        raise BadConfig(
          f"data.augment.{key}={getattr(self, key)!r} is out of range (see "
          "aigc_jax/data/sound/augmenting.py)"
        )

  @property
  def hidden(self) -> int:
    """How many rectangles of a spectrogram are hidden."""
    return self.times + self.bands

  def heard(
    self, clips: list[np.ndarray], longest: int, draw: Draw
  ) -> list[np.ndarray]:
    """Utterances, each samples (n,) int16, at other speeds and levels."""
    if self.speed:
      by = draw.below("speed", 2 * self.speed + 1) - self.speed
      clips = [
        at_speed(clip, percent, longest)
        for clip, percent in zip(clips, by.tolist(), strict=True)
      ]
    if self.gain:
      by = self.gain * (2 * draw.uniform("gain").astype(np.float64) - 1)
      clips = [
        whole(clip * 10 ** (decibels / 20))
        for clip, decibels in zip(clips, by.tolist(), strict=True)
      ]
    return clips

  def masks(self, samples_B: np.ndarray, bins: int, draw: Draw) -> np.ndarray:
    """(B, hidden, 4) int32 of utterances of so many samples.

    Each rectangle is its first frame, how many frames, its first band, how many
    bands.
    """
    frames_B1, found = -(-samples_B[:, None] // HOP), []
    if self.times:
      wide, at = np.moveaxis(draw.uniform("times", self.times, 2), -1, 0)
      most_B1 = np.minimum(
        self.time_width, np.floor(self.time_share * frames_B1)
      )
      wide = np.floor(wide * (most_B1 + 1))
      first = np.floor(at * (frames_B1 - wide + 1))
      found.append(_rectangles(first, wide, 0, bins))
    if self.bands:
      high, at = np.moveaxis(draw.uniform("bands", self.bands, 2), -1, 0)
      high = np.floor(high * (self.band_width + 1))
      low = np.floor(at * (bins - high + 1))
      found.append(_rectangles(0, frames_B1, low, high))
    return np.concatenate(found, axis=1).astype(np.int32)


def _rectangles(*sides) -> np.ndarray:
  return np.stack(np.broadcast_arrays(*sides), axis=-1)


def whole(samples_N: np.ndarray) -> np.ndarray:
  """As samples of 16 bits; what is too loud ends at the end of the scale."""
  return np.clip(np.rint(samples_N), -(1 << 15), (1 << 15) - 1).astype("<i2")


def at_speed(clip_N: np.ndarray, percent: int, longest: int) -> np.ndarray:
  """Samples (n,) that are over `percent` faster, or slower where below 0."""
  slowest = math.ceil(100 * len(clip_N) / longest) - 100
  rate = 100 + max(percent, slowest)
  if rate == 100 or not len(clip_N):
    return clip_N
  from scipy import signal  # slow to import, and rarely needed

  common = math.gcd(rate, 100)
  found = signal.resample_poly(
    clip_N.astype(np.float64), 100 // common, rate // common
  )
  return whole(found[:longest])
