"""Laws of CTC encoders, beside those of all kinds (test_kinds.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import errors
from tests import sound


def said(batch):
  found = sound.predictor("ctc")(sound.params_of("ctc"), batch)
  return np.asarray(found.readout.logits()), np.asarray(found.lengths_B)


@pytest.mark.slow
def test_an_utterance_says_the_same_however_far_it_is_padded():
  batch = sound.masked_batch()
  logits, steps = said(batch)
  assert (logits != said(sound.batch_of())[0]).any()
  n = int(batch["audio_lengths"][1])
  # 2,800 samples are 8.75 steps of 320.
  assert steps.tolist() == [10, 9] and logits.shape == (2, 10, 37)
  row = {k: x[1:] for k, x in batch.items()}
  for audio in (row["audio"][:, :n], jnp.pad(row["audio"], ((0, 0), (0, 777)))):
    again, own = said(row | {"audio": audio})
    assert own == [9]
    np.testing.assert_allclose(
      again[0, :9], logits[1, :9], rtol=2e-4, atol=2e-5
    )
  junk = batch["audio"].at[1, n:].set(999)
  np.testing.assert_array_equal(said(batch | {"audio": junk})[0], logits)


@pytest.mark.parametrize(
  ("change", "word"),
  [
    (dict(stride=3), "1, 2 or 4"),
    (dict(blank=37), "model.blank=37"),
    (dict(heads=5), "model.heads=5"),
    (dict(bins=201), "at most 200"),
    (dict(activation="mish"), "gelu"),
  ],
)
def test_parts_that_cannot_go_together_are_refused(change, word):
  with pytest.raises(errors.BadConfig, match=word):
    model = sound.build("ctc", **change)
    jax.eval_shape(model.init, jax.random.key(0), model.example())
