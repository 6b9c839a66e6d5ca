"""What a model says, judged by what another hears; spectrograms in time."""

import types

import jax
import numpy as np
import pytest

from aigc_jax.data import tokenizers
from aigc_jax.errors import BadConfig
from aigc_jax.evaluators.spoken import Recogniser, Said, Spoken, SpokenScores
from aigc_jax.evaluators.spoken import aligned_distance as distance
from aigc_jax.run import record
from aigc_jax.sampling.speech import Line
from aigc_jax.sampling.transcripts import Greedy
from aigc_jax.trainer.changes import data_changes
from tests import sound


def reference(a, b) -> float:
  """The least sum over all paths, by trying each of them."""
  cost = np.abs(a[:, None] - b[None]).mean(axis=-1)
  T, S = cost.shape

  def least(t, s):
    if (t, s) == (T - 1, S - 1):
      return 0.0
    ways = []
    for dt, ds in ((1, 0), (0, 1), (1, 1)):
      if t + dt < T and s + ds < S:
        ways.append((dt + ds) * cost[t + dt, s + ds] + least(t + dt, s + ds))
    return min(ways)

  # Of the first pair both frames are new.
  return (2 * cost[0, 0] + least(0, 0)) / (T + S)


def test_the_distance_is_that_of_the_best_path():
  draw = np.random.default_rng(0)
  for T, S in ((1, 1), (1, 4), (4, 5), (5, 3)):
    a, b = draw.normal(size=(T, 3)), draw.normal(size=(S, 3))
    assert distance(a, b) == pytest.approx(reference(a, b))
    assert distance(a, b) == pytest.approx(distance(b, a))


def test_a_spectrogram_is_no_way_from_itself_said_slower():
  a = np.random.default_rng(0).normal(size=(6, 3))
  assert distance(a, np.repeat(a, 3, axis=0)) == 0
  assert distance(a, a[::-1]) > 0.1


class Parrot:
  """Says the recordings themselves."""

  def __init__(self, clips):
    self.clips = clips

  def __call__(self, lines, batch, poll):
    return [self.clips[line.speaker] for line in lines]


@pytest.mark.slow
def test_who_says_the_recordings_themselves_makes_the_errors_of_recordings():
  draw = np.random.default_rng(0)
  clips = [draw.integers(-9000, 9000, n).astype("i2") for n in (1600, 2400)]
  said = [Said(c, "ab c", Line([1], i)) for i, c in enumerate(clips)]
  heard = sound.build("ctc", vocab=257, blank=256)
  zeros = {
    "audio": np.zeros((1, 1600), "i2"),
    "audio_lengths": np.ones(1, "i4"),
  }
  params = jax.jit(heard.init)(jax.random.key(0), zeros)["params"]
  judge = Recogniser(
    Greedy(heard, sound.nn.unbox(params)), tokenizers.Bytes(), 9
  )
  spoken = Spoken(said, judge, 20)
  found = spoken.scores(Parrot(clips))
  assert set(found) == {
    "wer", "cer", "mel_db", "vocoded_wer", "vocoded_cer", "recorded_wer",
    "recorded_cer",
  }  # fmt: skip
  assert found["mel_db"].value == 0 and found["wer"].items == 2
  for name in ("wer", "cer"):
    assert found[name] == found[f"recorded_{name}"]
    assert 0 < found[name].value < np.inf
  turned = spoken.scores(Parrot(clips[::-1]))
  assert turned["mel_db"].value > 1


def test_a_curve_of_what_is_heard_notes_who_hears():
  def prints_of(judge: str):
    spoken = Spoken([], Recogniser(None, None, 9, judge), 20)
    scores = SpokenScores(
      None, None, spoken, name="spoken", average=False, fingerprint="held",
      poll=lambda: None,
    )  # fmt: skip
    stream = types.SimpleNamespace(fingerprint="data")
    return record.fingerprints(stream, {"spoken": (5, scores)})

  entries = record.entries({"evaluate": {"spoken": {"recogniser": "DIR"}}})
  before = {"evaluate.spoken": "held", "evaluate.spoken.recogniser": "one"}
  assert prints_of("one") == {"data": "data"} | before
  meta = {"heldout_fingerprints": before, "heldout_entries": entries}
  assert not data_changes(meta, prints_of("one"), entries, False, "step 3")
  with pytest.raises(BadConfig, match="evaluate.spoken.recogniser: one -> two"):
    data_changes(meta, prints_of("two"), entries, False, "step 3")
