"""Utterances of a store as rows: sound, and the tokens of what is said."""

from collections.abc import Callable

import numpy as np

from aigc_jax.data.columns import Columns
from aigc_jax.data.sound.decoding import RATE
from aigc_jax.data.tasks import Batch, Records
from aigc_jax.errors import BadData

HOP = 160  # samples from one frame of a spectrogram to the next


class Utterances:
  """A view: those utterances of a store that fit into a row.

  stride: of a model that writes a token at each so many frames at most; None
  for one that writes as much as it likes. What does not fit is counted.
  """

  def __init__(
    self,
    store: Columns,
    tokenizer,
    *,
    samples: int,
    tokens: int,
    stride: int | None,
    fingerprint: str,
  ):
    self.name, self.store, self.fingerprint = store.name, store, fingerprint
    try:
      self.texts = [text.decode() for text in store.column("text")]
    except UnicodeDecodeError as e:
      raise store.contradiction(f"a text that is not UTF-8 ({e})") from None
    self.ids = [
      np.append(ids, tokenizer.eot).astype(np.int32)
      for ids in tokenizer.encode_documents(self.texts)
    ]
    self._tokens = tokens
    long = store.column("samples") > samples
    wordy = np.array([len(ids) > tokens for ids in self.ids], bool)
    fast = np.zeros(len(self.ids), bool)
    if stride is not None:
      steps = np.ceil(np.ceil(store.column("samples") / HOP) / stride)
      fast = steps < [needed(ids[:-1]) for ids in self.ids]
    self.numbers = np.flatnonzero(~(long | wordy | fast))
    self.left_out = {
      f"longer than {samples / RATE:g} seconds": int(long.sum()),
      f"of more than {tokens} tokens": int((wordy & ~long).sum()),
      "too short for their text": int((fast & ~wordy & ~long).sum()),
    }
    if not len(self.numbers) and len(store):
      raise BadData(
        f"{self.name}: no utterance fits ({self._told()}): raise data.seconds "
        "or data.target_length"
      )

  def _told(self) -> str:
    some = [f"{n:,} {why}" for why, n in self.left_out.items() if n]
    return ", ".join(some)

  def tell(self, say: Callable[[str], None]) -> None:
    """Says what does not fit, where something does not."""
    if any(self.left_out.values()):
      say(
        f"{self.name!r} ({self.store.manifest['split']}): {len(self):,} of "
        f"{len(self.ids):,} utterances fit; left out are {self._told()}"
      )

  def __len__(self) -> int:
    return len(self.numbers)

  def utterance(self, i: int) -> tuple[np.ndarray, str]:
    """(samples (n,) int16, what is said) of one of them."""
    number = self.numbers[i]
    data = self._gathered(np.array([number]))["audio"][0]
    return np.frombuffer(data, "<i2"), self.texts[number]

  def speaker(self, i: int) -> int | None:
    """Who says one of them; None where the store does not say."""
    if "speaker" not in self.store.columns:
      return None
    return int(self.store.gather(self.numbers[i : i + 1])["speaker"][0])

  def _gathered(self, numbers: np.ndarray) -> Records:
    """Records of the store, whose sound is as long as they say."""
    found = self.store.gather(numbers)
    for data, samples in zip(found["audio"], found["samples"], strict=True):
      if len(data) != 2 * samples:
        raise self.store.contradiction(
          f"{len(data)} bytes of {samples} samples"
        )
    return found

  def gather(self, numbers: np.ndarray) -> Records:
    """ "audio" (n,) bytes, "target" (n, T) int32, "count" (n,), its tokens.

    And "speaker" (n,) int32 of a store that has it.
    """
    real = numbers >= 0
    own = np.full(len(numbers), -1)
    own[real] = self.numbers[numbers[real]]
    target = np.zeros((len(numbers), self._tokens), np.int32)
    count = np.zeros(len(numbers), np.int32)
    for row, number in enumerate(own.tolist()):
      if number >= 0:
        ids = self.ids[number]
        target[row, : len(ids)], count[row] = ids, len(ids)
    stored = self._gathered(own)
    found = {"audio": stored["audio"], "target": target, "count": count}
    if "speaker" in stored:
      found["speaker"] = stored["speaker"]
    return found


def needed(ids: np.ndarray) -> int:
  """Steps that tokens take, between two that are the same one more."""
  return len(ids) + int(np.sum(ids[1:] == ids[:-1]))


def to_batch(records: Records, start: int, samples: int) -> Batch:
  """The batch of `Utterances.gather`'s records, as this file begins with."""
  n = len(records["audio"])
  audio, lengths = np.zeros((n, samples), np.int16), np.zeros(n, np.int32)
  for row, data in enumerate(records["audio"]):
    sound = np.frombuffer(data, "<i2")
    audio[row, : len(sound)], lengths[row] = sound, len(sound)
  targets = records["target"]
  real = np.arange(targets.shape[1]) < records["count"][:, None]
  moved = np.pad(targets, ((0, 0), (1, 0)), constant_values=start)[:, :-1]
  found = {
    "audio": audio,
    "audio_lengths": lengths,
    "tokens": np.ascontiguousarray(moved),
    "targets": targets,
    "weights": real.astype(np.float32),
  }
  if "speaker" in records:
    found["speakers"] = records["speaker"].astype(np.int32)
  return found
