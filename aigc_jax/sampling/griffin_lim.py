"""Sound of a spectrogram that has no phases, as layers/mel.py makes it.

The phases are those whose sound has nearly that spectrogram: Griffin and Lim,
1984, with the acceleration of Perraudin, Balazs and Sondergaard, WASPAA 2013.
In float64 on the host, so that the same numbers give the same sound.
"""

import numpy as np

from aigc_jax.layers.mel import HOP, LEAST, WINDOW, filters

AROUND = WINDOW // 2
FOLDS = 200  # turns in which powers are found behind bands
TURNS = 60  # in which phases are
MOMENTUM = 0.99  # 0 is the method of 1984


def sound_of(
  mel_TC: np.ndarray, draw: np.random.Generator, turns: int = TURNS
) -> np.ndarray:
  """Samples (T * HOP,) int16 of a log-mel spectrogram, as `log_mel` scales it.

  draw: of the phases that it begins with.
  """
  power_TC = 10.0 ** (4.0 * mel_TC.astype(np.float64) - 4.0)
  power_TF = unfolded(power_TC)
  wave_A = griffin_lim(np.sqrt(power_TF), draw, turns)
  return np.clip(np.rint(32768.0 * wave_A), -32768, 32767).astype(np.int16)


def unfolded(bands_TC: np.ndarray) -> np.ndarray:
  """(T, F) powers, none negative, whose bands are nearly the given ones.

  The least squares, by the products of Lee and Seung, 2001, which keep what is
  positive so.
  """
  fold_FC = filters(bands_TC.shape[1]).astype(np.float64)
  wanted_TF = bands_TC @ fold_FC.T
  # From each band's mean over its rates; where there is none, nothing is heard.
  found_TF = wanted_TF / np.maximum(fold_FC.sum(axis=1), 1e-8)
  both_FF = fold_FC @ fold_FC.T
  for _ in range(FOLDS):
    found_TF *= wanted_TF / np.maximum(found_TF @ both_FF, LEAST**2)
  return found_TF


def griffin_lim(
  magnitude_TF: np.ndarray,
  draw: np.random.Generator,
  turns: int = TURNS,
  momentum: float = MOMENTUM,
) -> np.ndarray:
  """Samples (T * HOP,) float64 whose spectrum has nearly these magnitudes.

  Each turn takes the sound of the spectrum so far, and of that sound's spectrum
  the phases.
  """
  angles_TF = draw.uniform(0.0, 2.0 * np.pi, magnitude_TF.shape)
  spectrum_TF = magnitude_TF * np.exp(1j * angles_TF)
  before_TF = np.zeros_like(spectrum_TF)
  for _ in range(turns):
    again_TF = spectrum(samples(spectrum_TF))
    ahead_TF = again_TF + momentum * (again_TF - before_TF)
    before_TF = again_TF
    size_TF = np.maximum(np.abs(ahead_TF), LEAST)
    spectrum_TF = magnitude_TF * ahead_TF / size_TF
  return samples(spectrum_TF)


def spectrum(wave_A: np.ndarray) -> np.ndarray:
  """(T, F) complex, of windows as `layers.mel.frames` cuts A = T * HOP."""
  padded = np.pad(wave_A, AROUND, mode="reflect")
  cut = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)
  return np.fft.rfft(cut[: len(wave_A) : HOP] * _hann(), axis=-1)


def samples(spectrum_TF: np.ndarray) -> np.ndarray:
  """(T * HOP,): the sound whose spectrum is nearest, in squares."""
  T = len(spectrum_TF)
  window = _hann()
  parts_TX = np.fft.irfft(spectrum_TF, WINDOW, axis=-1) * window
  wave, weight = _added(parts_TX), _added(np.tile(window**2, (T, 1)))
  inside = slice(AROUND, AROUND + T * HOP)
  return wave[inside] / np.maximum(weight[inside], LEAST)


def _added(parts_TX: np.ndarray) -> np.ndarray:
  """Windows laid over each other, HOP apart."""
  T = len(parts_TX)
  found = np.zeros(WINDOW + T * HOP)
  for i, part in enumerate(parts_TX):
    found[i * HOP : i * HOP + WINDOW] += part
  return found


def _hann() -> np.ndarray:
  return 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(WINDOW) / WINDOW)


def convergence(wave_A: np.ndarray, magnitude_TF: np.ndarray) -> float:
  """How far a sound's magnitudes are from these, as a share of their norm."""
  apart_TF = np.abs(spectrum(wave_A)) - magnitude_TF
  return float(np.linalg.norm(apart_TF) / np.linalg.norm(magnitude_TF))
