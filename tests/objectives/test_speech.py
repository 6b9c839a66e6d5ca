"""The objective of speech: what it asks for, weighs and leaves out."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.errors import BadConfig
from aigc_jax.layers.mel import log_mel
from aigc_jax.layers.speaking import LEVEL, Uttered
from aigc_jax.objectives import OBJECTIVES
from tests import sound

speech = functools.partial(OBJECTIVES["speech"], bins=20)


def batch_of(rows: int = 4):
  made = OBJECTIVES["speech"].makes
  batch = sound.spoken_batch(rows, 7)
  return {name: x for name, x in batch.items() if name not in made}


def exact(batch):
  """(the spectrograms of a batch as they are learnt, frames)."""
  mel = log_mel(batch["audio"], batch["audio_lengths"], 20)
  return LEVEL * mel, -(batch["audio_lengths"] // -160)


class Teller:
  """A model that says what it is given, and keeps what it was asked."""

  def __init__(self, mel, log_frames, trains=False):
    self.told, self.trains = Uttered(mel, log_frames), trains

  def __call__(self, batch):
    self.asked = batch
    return self.told


@pytest.mark.slow
def test_who_knows_the_speech_has_no_loss_whatever_it_says_behind_it():
  batch = batch_of()
  mel, frames = exact(batch)
  behind = jnp.arange(mel.shape[1])[None] >= frames[:, None]
  assert behind.any()
  knows = Teller(mel + 9.0 * behind[..., None], jnp.log(frames))
  found = speech(knows, batch)
  for name in ("loss", "mel", "duration"):
    np.testing.assert_allclose(found[name].value(), 0, atol=1e-10)
  # The last row says nothing: it pads the batch.
  assert found["loss"].weight == 3


@pytest.mark.slow
def test_the_noisy_spectrogram_lies_between_noise_and_speech():
  batch = batch_of()
  mel, frames = exact(batch)
  model = Teller(mel, jnp.log(frames))
  speech(model, batch)
  t = np.asarray(model.asked["time"])[:, None, None]
  assert ((0 <= t) & (t < 1)).all() and len(np.unique(t)) == 4
  noise = (np.asarray(model.asked["mel"]) - (1 - t) * mel) / t
  assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1
  np.testing.assert_array_equal(model.asked["mel_lengths"], frames)


@pytest.mark.slow
def test_errors_are_means_of_utterances_and_of_lengths():
  batch = batch_of()
  mel, frames = exact(batch)
  off = jnp.array([1.0, 2.0, 0.0, 5.0])
  wrong = Teller(mel + off[:, None, None], jnp.log(frames) + 0.5 * off)
  found = speech(wrong, batch, duration=2.0)
  assert found["mel"].value() == pytest.approx(5 / 3, rel=1e-5)
  assert found["duration"].value() == pytest.approx(1.5 / 3, rel=1e-5)
  length = (0.25 + 1.0) / 3
  assert found["loss"].value() == pytest.approx(5 / 3 + 2 * length, rel=1e-5)


@pytest.mark.slow
def test_only_in_training_a_share_is_told_nothing_of_text_or_speaker():
  batch = batch_of(64)
  batch["weights"] = jnp.ones_like(batch["weights"])
  mel, frames = exact(batch)
  for trains in (False, True):
    model = Teller(mel, jnp.log(frames) + 1.0, trains)
    found = speech(model, batch, text_dropout=0.5, speaker_dropout=0.25)
    told = np.asarray(model.asked["weights"]).any(axis=1)
    named = np.asarray(model.asked["speakers"]) == batch["speakers"]
    if not trains:
      assert told.all() and named.all()
      continue
    assert 0.25 < told.mean() < 0.75 and 0.5 < named.mean() < 0.95
    # How long a text takes is not asked where there is none.
    assert found["duration"].weight == told.sum()
    assert found["loss"].value() == pytest.approx(told.mean(), rel=1e-5)


@pytest.mark.parametrize(
  ("options", "word"),
  [
    (dict(text_dropout=1.5), "text_dropout"),
    (dict(speaker_dropout=-0.1), "speaker_dropout"),
    (dict(duration=-1.0), "duration"),
  ],
)
def test_options_out_of_range_are_refused(options, word):
  with pytest.raises(BadConfig, match=word):
    speech(Teller(None, None), batch_of(), **options)


def test_without_keys_the_way_out_is_named():
  batch = batch_of()
  del batch["draw"]
  with pytest.raises(BadConfig, match="--config.data.draw=True"):
    speech(Teller(None, None), batch)
