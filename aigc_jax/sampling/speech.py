"""Text in, sound out: by a model that finds spectrograms behind noise.

The noise of a sample is a function of (seed, number) and all shapes are those
of the data, so that a sample is the same whatever else is asked for.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from aigc_jax import sharding
from aigc_jax.errors import BadConfig, BadData
from aigc_jax.layers.speaking import LEVEL, Uttered
from aigc_jax.objectives.paths import Path
from aigc_jax.sampling.griffin_lim import sound_of
from aigc_jax.sampling.images import NotDrawn, guided, noise_of, walk

SOONEST = 0.05  # time below which noise is not divided by the time
PATH = Path("velocity")  # the straight one
Poll = Callable[[], None]


@runtime_checkable
class Speaks(Protocol):
  """A flax module that finds the spectrogram of a text behind noise.

  bins: its bands. speakers: how many voices it tells apart.
  """

  bins: int
  speakers: int

  def __call__(self, batch) -> Uttered:
    """Of "mel", "mel_lengths", "time", "targets", "weights", "speakers"."""

  def log_frames(self, batch) -> jax.Array:
    """(B,): the logarithm of how many frames a text takes."""


class Line(NamedTuple):
  """What one sample is to say: its tokens, who says it, frames or None.

  frames: how many it takes; None is as long as the model finds right.
  """

  ids: Sequence[int]
  speaker: int
  frames: int | None = None


def check_speaks(model: nn.Module, what: str) -> None:
  """BadConfig unless the model speaks; `what` needs it."""
  if not isinstance(model, Speaks):
    raise BadConfig(
      f"{what} makes sound of text, which a model of the kind "
      f"{type(model).__name__} does not: leave it out, or take a tts"
    )


def speakers_of(given: Sequence[str], count: int, speakers: int) -> np.ndarray:
  """(count,) numbers of who speaks: those given in turn, or all there are.

  "none" is anyone. Raises BadConfig for one that the model has not.
  """
  found = []
  for word in given:
    if word != "none" and (not word.isdecimal() or int(word) >= speakers):
      known = f"numbers from 0 to {speakers - 1}, or " if speakers else ""
      raise BadConfig(f"speakers={word}: expected {known}none")
    found.append(speakers if word == "none" else int(word))
  return np.resize(found or np.arange(max(speakers, 1)), count).astype(np.int32)


class Synthesiser:
  """Spectrograms of lines, by their numbers.

  frames, tokens: of the longest utterance and text, as the data has them.
  sampler, steps, guidance: as of sampling/images.py; guidance is towards what
  is said.
  """

  def __init__(
    self,
    model: nn.Module,
    variables,
    *,
    frames: int,
    tokens: int,
    sampler: str,
    steps: int,
    guidance: float,
    seed: int,
  ):
    check_speaks(model, "speaking")
    self.model, self._variables = model, variables
    self._shape, self._seed = (frames, tokens), seed

    def draw(variables, numbers_B, lines, lengths_B):
      """(spectrograms (B, F, C), how many frames (B,)); 0 is not known."""
      found_B = model.apply(variables, lines, method="log_frames")
      found_B = jnp.round(jnp.exp(jnp.clip(found_B, 0, np.log(frames))))
      found_B = jnp.clip(found_B.astype(jnp.int32), 1, frames)
      lengths_B = jnp.where(lengths_B > 0, lengths_B, found_B)
      z = noise_of(seed, numbers_B, (frames, model.bins))

      def predict(z, t_B, told_B):
        times = len(z) // len(lengths_B)  # twice the rows, where it is guided
        asked = {k: jnp.concatenate([x] * times) for k, x in lines.items()}
        asked["weights"] = asked["weights"] * told_B[:, None]
        asked |= {"mel": z, "time": t_B}
        asked["mel_lengths"] = jnp.concatenate([lengths_B] * times)
        x = model.apply(variables, asked).mel_BTC
        return (z - x) / jnp.maximum(t_B, SOONEST)[:, None, None]

      x = walk(
        guided(predict, 0, guidance), PATH, sharding.constrain_rows(z),
        jnp.ones_like(lengths_B), sampler=sampler, steps=steps,
      )  # fmt: skip
      return sharding.constrain(x / LEVEL, "..."), lengths_B

    self._draw = jax.jit(draw)

  def use(self, variables) -> None:
    """Speaks with others from now on; what is compiled stays."""
    self._variables = variables

  def drop(self) -> None:
    """Holds on to no variables."""
    self._variables = None

  def mels(
    self,
    lines: Sequence[Line],
    batch: int,
    numbers: Sequence[int] | None = None,
    poll: Poll = lambda: None,
  ) -> list[np.ndarray]:
    """The log-mel spectrogram (frames, bins) of each line.

    batch: how many are made at once. numbers: of the samples, 0 and on by
    default. `poll` is called between batches and may raise. Raises BadData for
    a text that is too long, BadConfig for what is not finite.
    """
    frames, tokens = self._shape
    numbers = np.arange(len(lines)) if numbers is None else numbers
    found = []
    for start in range(0, len(lines), batch):
      poll()
      some = lines[start : start + batch]
      given = _batch(some, batch, tokens)
      own = np.resize(np.asarray(numbers[start : start + batch]), batch)
      lengths = [min(line.frames or 0, frames) for line in some]
      lengths += [0] * (batch - len(some))
      mels, counts = self._draw(
        self._variables, own.astype(np.uint32), given, np.array(lengths, "i4")
      )
      mels, counts = np.asarray(mels), np.asarray(counts)
      found += [mels[i, : counts[i]] for i in range(len(some))]
    if not all(np.isfinite(mel).all() for mel in found):
      raise NotDrawn(
        "what is said is not finite: more --steps, less --guidance, or another "
        "checkpoint"
      )
    return found

  def __call__(
    self,
    lines: Sequence[Line],
    batch: int,
    numbers: Sequence[int] | None = None,
    poll: Poll = lambda: None,
  ) -> list[np.ndarray]:
    """The samples (n,) int16 at 16 kHz of each line; see `mels`."""
    numbers = range(len(lines)) if numbers is None else numbers
    sounds = []
    mels = self.mels(lines, batch, numbers, poll)
    for number, mel in zip(numbers, mels, strict=True):
      poll()
      draw = np.random.default_rng([self._seed, int(number)])
      sounds.append(sound_of(mel, draw))
    return sounds


def line_of(tokenizer, text: str, speaker: int, tokens: int) -> Line:
  """What is to be said, as the data writes it. Raises BadData."""
  text = " ".join(text.split())
  if not text:
    raise BadData("a prompt without a word in it says nothing: give it some")
  ids = [*tokenizer.encode_documents([text])[0], tokenizer.eot]
  if len(ids) > tokens:
    raise BadData(
      f"{text[:40]!r}: {len(ids)} tokens, and the model was trained on "
      f"{tokens} at most: cut it into pieces"
    )
  return Line(ids, speaker)


def _batch(lines: Sequence[Line], rows: int, tokens: int) -> dict:
  """What the model reads of lines, in `rows` rows; the last is repeated."""
  targets = np.zeros((rows, tokens), np.int32)
  weights = np.zeros((rows, tokens), np.float32)
  speakers = np.zeros(rows, np.int32)
  for row in range(rows):
    line = lines[min(row, len(lines) - 1)]
    n = len(line.ids)
    targets[row, :n], weights[row, :n] = line.ids, 1.0
    speakers[row] = line.speaker
  return {"targets": targets, "weights": weights, "speakers": speakers}
