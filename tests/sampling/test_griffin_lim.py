"""Sound of spectrograms: an exact inverse, the published method, a real one."""

import jax
import numpy as np
import pytest

from aigc_jax.layers.mel import HOP, WINDOW, filters, log_mel, waves
from aigc_jax.layers.mel import frames as frames_of
from aigc_jax.sampling import griffin_lim as gl


def voice(seconds: float = 0.5, seed: int = 0) -> np.ndarray:
  """A vowel that rises, breath, and silence at the end, from -1 to 1."""
  from scipy.signal import lfilter  # takes a second

  draw = np.random.default_rng(seed)
  at = np.arange(int(seconds * 16_000)) / 16_000
  phase = 2 * np.pi * np.cumsum(110 + 60 * at) / 16_000
  hum = sum(np.sin(k * phase) / k for k in range(1, 30))
  for rate, width in ((700, 90), (1200, 110), (2600, 160)):  # of a mouth
    r, w = np.exp(-np.pi * width / 16_000), 2 * np.pi * rate / 16_000
    hum = hum + lfilter([1 - r], [1, -2 * r * np.cos(w), r * r], hum)
  loud = np.where(at < 0.8 * seconds, np.sin(np.pi * at / seconds / 0.8), 0.0)
  sound = loud * (hum + 0.1 * draw.normal(size=len(at)))
  return 0.5 * sound / np.abs(sound).max()


def test_the_spectrum_is_that_of_the_mel_layer():
  wave = voice()
  cut = np.asarray(jax.jit(frames_of)(wave[None].astype(np.float32)))[0]
  both = cut.astype(np.float64) @ waves().astype(np.float64)
  real, imaginary = np.split(both, 2, axis=1)
  found = gl.spectrum(wave)
  np.testing.assert_allclose(found.real, real, atol=2e-5)
  np.testing.assert_allclose(found.imag, -imaginary, atol=2e-5)


def test_a_spectrum_with_its_phases_gives_its_sound_back():
  wave = voice()
  np.testing.assert_allclose(gl.samples(gl.spectrum(wave)), wave, atol=1e-12)


def reference(magnitude_TF, turns: int, momentum: float) -> np.ndarray:
  """The published method in float64, by PyTorch's transforms."""
  torch = pytest.importorskip("torch", reason="needs the extra [parity]: torch")
  angles_TF = np.random.default_rng(0).uniform(0, 2 * np.pi, magnitude_TF.shape)
  size_FT = torch.from_numpy(magnitude_TF.T.copy())
  window = torch.hann_window(WINDOW, dtype=torch.float64)
  how = dict(n_fft=WINDOW, hop_length=HOP, window=window, center=True)

  def sound(spectrum_FT):
    return torch.istft(spectrum_FT, length=size_FT.shape[1] * HOP, **how)

  spectrum_FT = size_FT * torch.exp(1j * torch.from_numpy(angles_TF.T.copy()))
  before_FT = torch.zeros_like(spectrum_FT)
  for _ in range(turns):
    again_FT = torch.stft(
      sound(spectrum_FT), pad_mode="reflect", return_complex=True, **how
    )[:, :-1]  # the frame at the very end is not one of ours
    ahead_FT = again_FT + momentum * (again_FT - before_FT)
    before_FT = again_FT
    spectrum_FT = size_FT * ahead_FT / ahead_FT.abs().clamp(min=1e-10)
  return sound(spectrum_FT).numpy()


@pytest.mark.parametrize("momentum", [0.0, 0.99])
def test_it_is_the_published_method(momentum):
  magnitude = np.abs(gl.spectrum(voice()))
  found = gl.griffin_lim(magnitude, np.random.default_rng(0), 8, momentum)
  np.testing.assert_allclose(
    found, reference(magnitude, 8, momentum), rtol=1e-6, atol=1e-8
  )


def test_phases_are_found_for_magnitudes_of_a_sound():
  magnitude = np.abs(gl.spectrum(voice()))
  found = gl.griffin_lim(magnitude, np.random.default_rng(0))
  assert gl.convergence(found, magnitude) < 0.08
  slow = gl.griffin_lim(magnitude, np.random.default_rng(0), momentum=0.0)
  assert gl.convergence(found, magnitude) < gl.convergence(slow, magnitude)


def test_powers_are_found_whose_bands_are_those_given():
  power = np.abs(gl.spectrum(voice())) ** 2
  bands = power @ filters(80)
  found = gl.unfolded(bands)
  assert (found >= 0).all()
  apart = np.linalg.norm(found @ filters(80) - bands) / np.linalg.norm(bands)
  assert apart < 0.02


compiled = jax.jit(log_mel, static_argnums=2)


def mel_of(clip: np.ndarray) -> np.ndarray:
  return np.asarray(compiled(clip[None], np.array([len(clip)]), 80))[0]


def test_a_spectrogram_sounds_as_the_recording_it_is_of():
  """Within 1 dB of a band on average, of 80 that there are."""
  clip = np.rint(32768 * voice()).astype(np.int16)
  mel = mel_of(clip)
  sound = gl.sound_of(mel, np.random.default_rng(0))
  assert sound.shape == clip.shape and sound.dtype == np.int16
  loud = mel > mel.max() - 1.0  # 40 dB
  assert 40 * np.abs(mel_of(sound) - mel)[loud].mean() < 1.0
  again = gl.sound_of(mel, np.random.default_rng(0))
  np.testing.assert_array_equal(sound, again)


def test_what_is_louder_than_16_bits_is_cut_and_silence_is_quiet():
  loud = gl.sound_of(np.full((4, 80), 3.0), np.random.default_rng(0))
  assert np.abs(loud.astype(int)).max() >= 32767
  still = gl.sound_of(np.full((4, 80), -1.5), np.random.default_rng(0))
  assert np.abs(still).max() < 8
