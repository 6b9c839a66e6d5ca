"""Log-mel spectrograms are those that Whisper was trained on."""

import jax
import numpy as np
import pytest

from aigc_jax import sharding
from aigc_jax.data.sound import decoding, kind
from aigc_jax.layers import mel

A = 4800


def sounds() -> tuple[np.ndarray, np.ndarray]:
  """(B, A) int16 and lengths: a hum, noise, a click, and nothing."""
  at, draw = np.arange(A), np.random.default_rng(0)
  audio = np.zeros((4, A))
  audio[0] = 20_000 * np.sin(at * 0.2) + 30 * draw.normal(size=A)
  audio[1, :3000] = draw.normal(size=3000) * 3000
  audio[2, 1000] = 32767
  lengths = np.array([A, 3000, 2000, 0], np.int32)
  return np.clip(np.rint(audio), -32768, 32767).astype(np.int16), lengths


log_mel = jax.jit(mel.log_mel, static_argnums=2)


def spectrogram(audio, lengths, bins=80):
  return np.asarray(log_mel(audio, lengths, bins))


def test_sound_is_stored_as_it_is_heard():
  assert (decoding.RATE, kind.HOP) == (mel.RATE, mel.HOP)


@pytest.mark.parametrize("bins", [80, 128])
def test_it_is_that_of_transformers(bins):
  transformers = pytest.importorskip("transformers")
  made = transformers.WhisperFeatureExtractor(feature_size=bins, chunk_length=1)
  np.testing.assert_allclose(
    mel.filters(bins), made.mel_filters, rtol=0, atol=1e-7
  )
  audio, lengths = sounds()
  audio = np.pad(audio, ((0, 0), (0, 16_000 - A)))
  theirs = made(
    [row / 32768 for row in audio], sampling_rate=16_000, return_tensors="np"
  ).input_features.swapaxes(1, 2)
  ours = spectrogram(audio, lengths, bins)
  assert ours.shape == theirs.shape == (4, 100, bins)
  apart = np.abs(ours - theirs)
  assert apart.max() < 2e-4 and apart.mean() < 1e-6


def test_sound_is_padded_and_junk_behind_it_is_silence():
  audio, lengths = sounds()
  junk = np.where(np.arange(A) < lengths[:, None], audio, 12_345)
  np.testing.assert_array_equal(
    spectrogram(audio, lengths), spectrogram(junk.astype(np.int16), lengths)
  )
  longer = np.pad(audio, ((0, 0), (0, 1600)))
  a, b = spectrogram(longer, lengths), spectrogram(audio, lengths)
  np.testing.assert_allclose(a[1:3, :29], b[1:3, :29], atol=1e-6)


def test_no_row_depends_on_another_and_devices_keep_their_own():
  audio, lengths = (np.tile(x, (2, 1) if x.ndim > 1 else 2) for x in sounds())
  whole = spectrogram(audio, lengths)
  np.testing.assert_allclose(
    spectrogram(audio[:1], lengths[:1]), whole[:1], atol=2e-4
  )
  mesh = sharding.make_mesh(
    data=8, fsdp=1, expert=1, tensor=1, sequence=1, pipeline=1
  )
  put = lambda x, letters: jax.device_put(  # noqa: E731
    x, sharding.shardings(letters, x.shape, mesh)
  )
  with jax.set_mesh(mesh):
    cut = put(audio, "B."), put(lengths, "B")
    run = jax.jit(mel.log_mel, static_argnums=2).lower(*cut, 80).compile()
    np.testing.assert_allclose(run(*cut), whole, atol=2e-4)
    program = run.as_text()
  assert "all-gather" not in program and "all-reduce" not in program


def test_its_range_is_eight_decades_below_the_loudest_place():
  audio, lengths = sounds()
  found = spectrogram(audio, lengths)
  for row in found[:3]:
    assert row.max() - row.min() <= 2.0 + 1e-6
  # Silence is the least there is, not nan.
  np.testing.assert_array_equal(found[3], np.full((30, 80), -1.5, np.float32))


def test_what_is_hidden_of_a_spectrogram_is_its_mean_and_nothing_else():
  draw = np.random.default_rng(0)
  x = draw.normal(size=(2, 9, 5)).astype(np.float32)
  lengths = np.array([9 * 160, 5 * 160 - 3], np.int32)
  masks = np.zeros((2, 3, 4), np.int32)
  masks[0, 0], masks[0, 1] = (2, 3, 0, 5), (0, 9, 3, 1)
  masks[1, 2] = (1, 2, 1, 2)
  found = np.asarray(jax.jit(mel.hidden)(x, lengths, masks))
  wanted = np.array(x)
  wanted[0, 2:5] = wanted[0, :, 3] = np.mean(x[0])
  wanted[1, 1:3, 1:3] = np.mean(x[1, :5])
  np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
