"""Laws of Whisper, beside those of all kinds (test_kinds.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import errors
from aigc_jax.presets import whisper
from tests import sound
from tests.golden import written

CLOSE = dict(rtol=2e-4, atol=2e-5)
# The sizes of the published tensors without the encoder's fixed positions,
# which are computed and no parameters.
PUBLISHED = {"tiny": 37_184_640, "base": 71_825_920, "small": 240_582_912}


def logits(batch):
  found = sound.predictor("whisper")(sound.params_of("whisper"), batch)
  return np.asarray(found.logits())


@pytest.mark.slow
def test_a_token_never_changes_the_logits_before_it():
  batch = sound.batch_of()
  other = (batch["tokens"][:, 3] + 1) % 36
  a = logits(batch)
  b = logits(batch | {"tokens": batch["tokens"].at[:, 3].set(other)})
  np.testing.assert_array_equal(a[:, :3], b[:, :3])
  assert not np.array_equal(a[:, 3:], b[:, 3:])


@pytest.mark.slow
def test_junk_behind_an_utterance_and_how_far_it_is_padded_change_nothing():
  batch = sound.batch_of()
  n = int(batch["audio_lengths"][1])
  a = logits(batch)
  junk = batch["audio"].at[1, n:].set(999)
  np.testing.assert_array_equal(a, logits(batch | {"audio": junk}))
  short = {k: x[1:] for k, x in batch.items()}
  short["audio"] = short["audio"][:, :n]
  np.testing.assert_allclose(a[1:], logits(short), **CLOSE)
  heard = batch["audio"].at[1, n - 900 : n].multiply(-3)
  assert np.any(a[1] != logits(batch | {"audio": heard})[1])


@pytest.mark.slow
def test_sound_beyond_what_the_model_hears_is_refused():
  batch = sound.batch_of()
  batch["audio"] = jnp.pad(batch["audio"], ((0, 0), (0, 1)))
  with pytest.raises(errors.BadConfig, match="3201 samples"):
    logits(batch)


@pytest.mark.slow
def test_cached_decoding_is_uncached_decoding():
  batch, params = sound.batch_of(), sound.params_of("whisper")
  model = sound.build("whisper")

  @jax.jit
  def following(tokens_BT, positions_BT, cache):
    args = tokens_BT, positions_BT, cache
    return model.apply({"params": params}, *args, method="next")

  begin = jax.jit(
    lambda batch: model.apply({"params": params}, batch, 9, method="begin")
  )
  cache, parts = begin(batch), []
  for start, stop in ((0, 4), (4, 5), (5, 7)):
    positions = jnp.broadcast_to(jnp.arange(start, stop), (2, stop - start))
    readout, cache = following(batch["tokens"][:, start:stop], positions, cache)
    parts.append(readout.logits())
  np.testing.assert_allclose(jnp.concatenate(parts, 1), logits(batch), **CLOSE)


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameters_are_as_many_as_published(size):
  assert written.count_of(f"whisper:{size}") == PUBLISHED[size]


def test_every_preset_is_held_against_a_published_count():
  assert set(whisper.SIZES) == set(PUBLISHED)


@pytest.mark.parametrize(
  ("change", "word"),
  [
    (dict(seconds=0.21), r"model.seconds=0.21.*0\.2"),
    (dict(seconds=0.0), "0.02"),
    (dict(bins=201), "at most 200"),
    (dict(heads=5), "model.heads=5"),
    (dict(start_token=37), "start_token"),
    (dict(position_length=0), "position_length"),
    (dict(dropout=1.0), "dropout"),
    (dict(activation="mish"), "gelu"),
  ],
)
def test_parts_that_cannot_go_together_are_refused(change, word):
  with pytest.raises(errors.BadConfig, match=word):
    model = sound.build("whisper", **change)
    jax.eval_shape(model.init, jax.random.key(0), model.example())
