"""Sound in, text out: by a model that writes, or one that aligns."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from aigc_jax import tree
from aigc_jax.errors import BadConfig, BadData, NonFinite
from aigc_jax.layers.readout import Aligned
from aigc_jax.sampling.beam import BeamSearch, search_texts
from aigc_jax.sampling.decode import NOT, Engine, bucket
from aigc_jax.sampling.decodes import Decodes, Hears
from aigc_jax.sampling.text import generate
from aigc_jax.sampling.words import WordSearch

Clip = np.ndarray  # samples (n,) int16 at 16 kHz


@runtime_checkable
class Aligns(Protocol):
  """A model that says of each step a token, or `blank` for nothing new.

  stride: frames of its spectrogram to a step.
  """

  blank: int
  stride: int

  def __call__(self, batch) -> Aligned:
    """Of "audio" (B, A), "audio_lengths" (B,)."""


def transcribes(model: nn.Module) -> bool:
  """Whether a model makes text of sound."""
  hears = isinstance(model, Hears) and isinstance(model, Decodes)
  return hears or isinstance(model, Aligns)


def check_transcribes(model: nn.Module, what: str) -> None:
  """BadConfig unless the model makes text of sound; `what` needs it."""
  if not transcribes(model):
    raise BadConfig(
      f"{what} makes text of sound, which a model of the kind "
      f"{type(model).__name__} does not: leave it out, or take a whisper or a "
      "ctc"
    )


def check_hears(model: nn.Module, what: str, beams, words) -> None:
  """BadConfig unless the model makes text of sound in the way asked for.

  beams, words: None where it is not by a search, not in known words alone.
  """
  check_transcribes(model, what)
  aligns = isinstance(model, Aligns)
  if words is not None and not aligns:
    raise BadConfig(
      "--words is of a model that says a token at each step, a ctc; this one "
      "has learnt words with its texts: leave it out"
    )
  if words is not None and beams is None:
    raise BadConfig("--words searches: say how widely, --beams=32")
  if aligns and words is None and beams is not None:
    raise BadConfig(
      "beams are of a model that writes; this one says the likeliest of each "
      "step: leave them out, or add known words, --words=FILE"
    )


class Greedy:
  """Of each step the likeliest, of runs of equal ones one, without blanks."""

  def __init__(self, model: Aligns, params: tree.Tree):
    self.blank, self._params = model.blank, params

    def heard(params, audio_BA, lengths_B):
      batch = {"audio": audio_BA, "audio_lengths": lengths_B}
      found = model.apply({"params": params}, batch)
      logits_BTV = found.readout.logits()
      inside_BT = jnp.arange(logits_BTV.shape[1]) < found.lengths_B[:, None]
      sound_BT = jnp.all(jnp.isfinite(logits_BTV), axis=-1)
      sound = jnp.all(sound_BT | ~inside_BT)
      return self._kept(logits_BTV), found.lengths_B, sound

    self._run = jax.jit(heard)

  def _kept(self, logits_BTV: jax.Array) -> jax.Array:
    """What of all steps a text is read from."""
    return jnp.argmax(logits_BTV, axis=-1)

  def _text(self, steps: np.ndarray) -> list[int]:
    """The tokens of what was kept of the steps of a clip."""
    return collapsed(steps, self.blank)

  def __call__(self, clips: Sequence[Clip]) -> list[list[int]]:
    """The tokens of each clip; NonFinite where one cannot be chosen."""
    longest = bucket(max(len(clip) for clip in clips))
    rows = bucket(len(clips), 1)
    audio, lengths = np.zeros((rows, longest), np.int16), np.zeros(rows, "i4")
    for row, clip in enumerate(clips):
      audio[row, : len(clip)], lengths[row] = clip, len(clip)
    kept, steps, sound = map(
      np.asarray, self._run(self._params, audio, lengths)
    )
    if not sound:
      raise NonFinite(f"the model's predictions for the sound {NOT}")
    return [self._text(kept[i, : steps[i]]) for i in range(len(clips))]


class InWords(Greedy):
  """The best text in known words, as a search of sampling/words.py finds it."""

  def __init__(self, model: Aligns, params: tree.Tree, search: WordSearch):
    super().__init__(model, params)
    self._text = search

  def _kept(self, logits_BTV: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(logits_BTV.astype(jnp.float32), axis=-1)


def collapsed(ids: np.ndarray, blank: int) -> list[int]:
  """What a row of steps says: of each run one, then no blanks."""
  first = np.append(True, ids[1:] != ids[:-1])[: len(ids)]
  return ids[first & (ids != blank)].tolist()


def transcribed(
  how: Greedy | Engine | BeamSearch,
  tokenizer,
  clips: Sequence[Clip] | Iterator[Clip],
  *,
  max_tokens: int,
  batch: int,
  names: Sequence[str] | None = None,
  poll: Callable[[], None] | None = None,
) -> Iterator[str]:
  """The text of each clip, in order; `batch` of them are held together.

  max_tokens: of each at most, where a model writes. names: of the clips, for
  messages. Raises BadData for a clip
  that is longer than the model hears, or has no samples.
  """
  together: list[Clip] = []
  for number, clip in enumerate(clips):
    _check(how, clip, f"clip {number}" if names is None else names[number])
    together.append(clip)
    if len(together) == batch:
      yield from _texts(how, tokenizer, together, max_tokens, batch, poll)
      together = []
  if together:
    yield from _texts(how, tokenizer, together, max_tokens, batch, poll)


def _check(how, clip: Clip, name: str) -> None:
  if not len(clip):
    raise BadData(f"{name}: it has no samples")
  most = None if isinstance(how, Greedy) else how.model.samples
  if most is not None and len(clip) > most:
    raise BadData(
      f"{name}: {len(clip) / 16_000:.2f} seconds, and the model hears "
      f"{most / 16_000:g}: cut it into pieces"
    )


def _texts(how, tokenizer, clips, max_tokens, batch, poll) -> list[str]:
  if poll:
    poll()
  if isinstance(how, Greedy):
    return [tokenizer.decode(ids) for ids in how(clips)]
  samples = [tuple(clip.tolist()) for clip in clips]
  # Prompts are texts elsewhere: here each is the number of a clip.
  names = [str(i) for i in range(len(clips))]
  asked = dict(
    max_tokens=max_tokens, num_samples=1, stops=(), poll=poll,
    read=lambda tokenizer, name: samples[int(name)],
  )  # fmt: skip
  if isinstance(how, BeamSearch):
    width = how.beams.width
    found = search_texts(how, tokenizer, names, batch=batch * width, **asked)
  else:
    found = generate(how, tokenizer, names, batch=batch, steps=16, **asked)
  return [completion.text for completion in found]
