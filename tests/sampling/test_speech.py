"""Text in, sound out: lengths, speakers, repetition, guidance."""

import functools

import jax
import numpy as np
import pytest

from aigc_jax.data import tokenizers
from aigc_jax.errors import BadConfig, BadData
from aigc_jax.layers.mel import HOP
from aigc_jax.layers.speaking import spread
from aigc_jax.sampling.speech import (
  Line,
  Speaks,
  Synthesiser,
  line_of,
  speakers_of,
)
from tests import kinds, sound

LINES = [
  Line([4, 9, 36], 0), Line([7, 36], 3), Line([4, 9, 36], 3),
  Line([5] * 6 + [36], 5, frames=11),
]  # fmt: skip


@functools.cache
def spoken(guidance: float = 1.0, seed: int = 0):
  model = sound.build("tts")
  return Synthesiser(
    model, kinds.variables_of("tts"), frames=20, tokens=7, sampler="euler",
    steps=3, guidance=guidance, seed=seed,
  )  # fmt: skip


@pytest.mark.slow
def test_a_sample_is_the_same_whatever_is_said_beside_it():
  whole = spoken().mels(LINES, 4)
  for i in (1, 3):
    (alone,) = spoken().mels([LINES[i]], 4, [i])
    np.testing.assert_array_equal(alone, whole[i])
  again = spoken().mels(LINES[:2] + LINES[:2], 4, [0, 1, 0, 1])
  np.testing.assert_array_equal(again[0], again[2])
  np.testing.assert_array_equal(again[1], again[3])


@pytest.mark.slow
def test_numbers_seeds_speakers_and_guidance_make_others():
  line = LINES[0]
  a, b, c = spoken().mels([line, line, line._replace(speaker=1)], 4, [0, 1, 0])
  (d,) = spoken(seed=1).mels([line], 4, [0])
  (e,) = spoken(guidance=2.0).mels([line], 4, [0])
  assert a.shape == b.shape and not np.array_equal(a, b)
  assert not np.array_equal(a, d) and not np.array_equal(a, e)
  assert a.shape != c.shape or not np.array_equal(a, c)


@pytest.mark.slow
def test_a_length_that_is_given_is_kept_and_else_it_is_the_models():
  found = spoken().mels(LINES, 4)
  model, variables = sound.build("tts"), kinds.variables_of("tts")
  ids = np.zeros((1, 7), np.int32)
  ids[0, :3] = LINES[0].ids
  batch = dict(
    targets=ids, weights=(np.arange(7) < 3)[None].astype(np.float32),
    speakers=np.array([0], np.int32),
  )  # fmt: skip
  frames = np.exp(model.apply(variables, batch, method="log_frames")[0])
  assert len(found[0]) == np.clip(round(float(frames)), 1, 20)
  assert len(found[3]) == 11 and found[3].shape[1] == model.bins
  (wave,) = spoken()([LINES[3]], 4)
  assert wave.dtype == np.int16 and len(wave) == 11 * HOP


def test_each_token_has_as_many_places_as_the_others_of_its_text():
  text = np.arange(4.0)[None, :, None] * np.ones((2, 1, 1))
  found = np.asarray(spread(text, np.array([3, 2]), np.array([6, 5]), 7))
  assert found[0, :, 0].tolist() == [0, 0, 1, 1, 2, 2, 2]
  assert found[1, :, 0].tolist() == [0, 0, 0, 1, 1, 1, 1]


@pytest.mark.slow
def test_what_lies_behind_an_utterance_or_its_text_changes_nothing():
  batch = sound.spoken_batch(2, 7)
  model, variables = sound.build("tts"), kinds.variables_of("tts")
  batch["weights"] = batch["weights"].at[:, 5:].set(0.0)
  apply = jax.jit(model.apply)
  a = apply(variables, batch)
  frames = 3 * (-(batch["mel_lengths"] // -3))  # of whole steps
  behind = np.arange(20)[None] >= np.asarray(frames)[:, None]
  assert behind.any()
  junk = dict(
    batch, mel=batch["mel"] + 9.0 * behind[..., None],
    targets=batch["targets"].at[:, 5:].set(3),
  )  # fmt: skip
  b = apply(variables, junk)
  np.testing.assert_allclose(a.log_frames_B, b.log_frames_B, rtol=1e-6)
  real = ~behind[..., None]
  np.testing.assert_allclose(a.mel_BTC * real, b.mel_BTC * real, atol=1e-5)


def test_a_text_is_said_as_the_data_has_it():
  line = line_of(tokenizers.Bytes(), " two  one\n", 3, 9)
  assert bytes(line.ids[:-1]) == b"two one" and line.ids[-1] == 256
  with pytest.raises(BadData, match="12 tokens.*9 at most"):
    line_of(tokenizers.Bytes(), "seven seven", 0, 9)
  with pytest.raises(BadData, match="without a word"):
    line_of(tokenizers.Bytes(), "  ", 0, 9)


def test_speakers_are_those_of_the_model_in_turn():
  assert speakers_of([], 5, 3).tolist() == [0, 1, 2, 0, 1]
  assert speakers_of(["2", "none"], 3, 3).tolist() == [2, 3, 2]
  assert speakers_of([], 2, 0).tolist() == [0, 0]
  with pytest.raises(BadConfig, match="from 0 to 2, or none"):
    speakers_of(["3"], 1, 3)
  with pytest.raises(BadConfig, match="speakers=0: expected none"):
    speakers_of(["0"], 1, 0)


def test_what_makes_no_sound_of_text_is_refused():
  assert isinstance(sound.build("tts"), Speaks)
  with pytest.raises(BadConfig, match="Ctc does not.*take a tts"):
    Synthesiser(
      sound.build("ctc"), {}, frames=2, tokens=2, sampler="euler", steps=1,
      guidance=1.0, seed=0,
    )  # fmt: skip
