"""Speech that a model makes, as another model understands it.

Held-out utterances are spoken anew, their texts by their speakers, and written
down by a recogniser; its errors in the recordings themselves stand beside, and
in those whose spectrograms alone were kept ("vocoded"), which is the best that
a perfect spectrogram could reach. By which recogniser has to be told beside the
numbers: those by two cannot be compared.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from aigc_jax.evaluators.choices import Estimate, bootstrap
from aigc_jax.evaluators.drawn import or_none, variables_of
from aigc_jax.evaluators.word_errors import RESAMPLES, word_errors
from aigc_jax.layers.mel import HOP, log_mel
from aigc_jax.sampling.beam import BeamSearch
from aigc_jax.sampling.decode import Engine
from aigc_jax.sampling.griffin_lim import sound_of
from aigc_jax.sampling.speech import Line, Synthesiser
from aigc_jax.sampling.transcripts import Greedy, transcribed

DECIBELS = 40.0  # of power, in a spectrogram's 1
SIGNATURE = "mean absolute dB of mel bands, frames aligned by time warping"
AT_ONCE = 16  # utterances
Poll = Callable[[], None]


class Recogniser(NamedTuple):
  """how: what makes text of sound. tokens: that it writes at most.

  fingerprint: of its parameters and tokenizer; "" where it is not known. said:
  of what else makes it what it is, "" where these do.
  """

  how: Greedy | Engine | BeamSearch
  tokenizer: object
  tokens: int
  fingerprint: str = ""
  said: str = ""


class Said(NamedTuple):
  """A held-out utterance: its samples (n,) int16, its text, how to say it."""

  clip: np.ndarray
  text: str
  line: Line


class Spoken:
  """Utterances to be spoken anew, and who writes them down.

  said: the utterances. bins: bands of the spectrograms that are compared.
  """

  def __init__(self, said: Sequence[Said], recogniser: Recogniser, bins: int):
    self.said, self.recogniser, self._bins = list(said), recogniser, bins
    self._texts = [one.text for one in self.said]
    self._mel = jax.jit(log_mel, static_argnums=2)
    self._known: dict[str, Estimate] | None = None

  def scores(
    self, synthesiser: Synthesiser, poll: Poll = lambda: None
  ) -> dict[str, Estimate]:
    """ "wer", "cer", "mel_db", and what recordings reach: "recorded_wer" ..."""
    sounds = synthesiser([one.line for one in self.said], AT_ONCE, poll=poll)
    apart = [
      aligned_distance(self.mel(sound), self.mel(one.clip)) * DECIBELS
      for sound, one in zip(sounds, self.said, strict=True)
    ]
    found = bootstrap(
      lambda which: float(np.mean(np.asarray(apart)[which])), len(apart),
      times=RESAMPLES,
    )  # fmt: skip
    mel_db = Estimate(found.value, found.error, len(apart), SIGNATURE)
    return self._heard(sounds, poll) | {"mel_db": mel_db} | self._recorded(poll)

  def _recorded(self, poll: Poll) -> dict[str, Estimate]:
    """Of the recordings, and of what is left of them without phases."""
    if self._known is None:
      clips = [one.clip for one in self.said]
      draw = np.random.default_rng(0)
      without = [sound_of(self.mel(clip), draw) for clip in clips]
      self._known = {
        f"{prefix}_{name}": estimate
        for prefix, some in (("vocoded", without), ("recorded", clips))
        for name, estimate in self._heard(some, poll).items()
      }
    return self._known

  def _heard(self, clips: Sequence[np.ndarray], poll: Poll):
    own = self.recogniser
    texts = transcribed(
      own.how, own.tokenizer, clips, max_tokens=own.tokens, batch=AT_ONCE,
      poll=poll,
    )  # fmt: skip
    return word_errors(list(texts), self._texts)

  def mel(self, clip: np.ndarray) -> np.ndarray:
    """The log-mel spectrogram (frames, bins) of samples."""
    frames = -(-len(clip) // HOP)
    # Of lengths a few, so that few programs are made.
    whole = np.zeros((1, -(-frames // 64) * 64 * HOP), np.int16)
    whole[0, : len(clip)] = clip
    lengths = np.array([len(clip)], np.int32)
    return np.asarray(self._mel(whole, lengths, self._bins))[0, :frames]


class SpokenScores:
  """evaluate(step, state) -> {"eval/<name>/wer": ...}."""

  def __init__(
    self,
    synthesiser: Synthesiser,
    mesh: jax.sharding.Mesh,
    spoken: Spoken,
    *,
    name: str,
    average: bool,
    fingerprint: str,
    poll: Poll,
  ):
    self._synthesiser, self._mesh, self._spoken = synthesiser, mesh, spoken
    self._name, self._average, self._poll = name, average, poll
    self.fingerprint = fingerprint
    judge = spoken.recogniser.fingerprint
    self.judges = {"recogniser": judge} if judge else {}
    if spoken.recogniser.said:
      self.judges["recogniser.config"] = spoken.recogniser.said

  def __call__(self, step: int, state) -> dict[str, float]:
    """The scores of this state."""
    with jax.set_mesh(self._mesh):
      self._synthesiser.use(variables_of(state, self._average))
      found = or_none(
        self._name, step, self._spoken.scores, self._synthesiser, self._poll
      )
      self._synthesiser.drop()
    if found is None:
      return {}
    return {f"eval/{self._name}/{k}": e.value for k, e in found.items()}


def aligned_distance(a_TC: np.ndarray, b_SC: np.ndarray) -> float:
  """The mean absolute difference along the best path through both.

  Dynamic time warping (Sakoe and Chiba, 1978): from the first frames to the
  last, each step to the next frame of either or of both; of all such paths the
  least sum, over the frames of both.
  """
  cost = np.abs(a_TC[:, None] - b_SC[None]).mean(axis=-1)
  T, S = cost.shape
  least = np.full((T + 1, S + 1), np.inf)
  least[0, 0] = 0.0
  for t in range(T):
    # A step of both counts twice, as two steps of one each do.
    above = np.minimum(least[t, 1:] + cost[t], least[t, :-1] + 2 * cost[t])
    before = np.inf
    for s in range(S):
      before = min(above[s], before + cost[t, s])
      least[t + 1, s + 1] = before
  return float(least[T, S] / (T + S))
