"""Prompts in, text out: completions, stop strings, text as it comes."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from aigc_jax.data import Decoder, check_ids, encode_special
from aigc_jax.errors import BadConfig
from aigc_jax.sampling.decode import Engine, Row
from aigc_jax.sampling.decodes import Hears


@dataclasses.dataclass(frozen=True)
class Completion:
  """Continuation number `sample` of prompt number `index`.

  tokens are all that were made; text ends before the stop string, if one was
  met. finish: "eot" (the model ended it), "stop" (a stop string), "length".
  score: of beam search.
  """

  index: int
  sample: int
  prompt: str
  text: str
  tokens: tuple[int, ...]
  finish: str
  score: float | None = None


def prompt_ids(
  tokenizer,
  text: str,
  *,
  special: bool = False,
  begin: bool = True,
  end: bool = False,
) -> tuple[int, ...]:
  """A prompt as the model reads it; the empty one begins a new text.

  special: whether special tokens in it are read as such. begin: whether what
  the tokenizer puts before a text is put there, if it is not there already.
  end: whether the end of text stands behind it, as it does in a source.
  """
  encode = tokenizer.encode
  if special:
    encode = functools.partial(encode_special, tokenizer)
  ids = tuple(encode(text).tolist()) if text else ()
  start = tuple(tokenizer.start) if begin else ()
  if not special or ids[: len(start)] != start:
    ids = (*start, *ids)
  if end and ids[-1:] != (tokenizer.eot,):
    return (*ids, tokenizer.eot)
  return ids or (tokenizer.eot,)


def reader(model, **how) -> Callable[..., tuple[int, ...]]:
  """`prompt_ids` as this model reads prompts."""
  return functools.partial(prompt_ids, end=model.source, **how)


class Cutter:
  """Text that comes in pieces, cut before the first of some stop strings.

  What may become a stop string is held back until it is certain.
  """

  def __init__(self, stops: Sequence[str]):
    self._stops = tuple(stops)
    self._held = ""
    self.stopped = False

  def push(self, text: str, final: bool = False) -> str:
    """The text that is certain now; nothing more once `stopped`."""
    if self.stopped:
      return ""
    text = self._held + text
    found = [at for at in (text.find(s) for s in self._stops) if at >= 0]
    if found:
      self.stopped, self._held = True, ""
      return text[: min(found)]
    begun = [] if final else [self._begun(stop, text) for stop in self._stops]
    keep = max(begun, default=0)
    self._held = text[len(text) - keep :]
    return text[: len(text) - keep]

  def _begun(self, stop: str, text: str) -> int:
    """How many characters at the end of `text` may begin `stop`."""
    longest = min(len(stop) - 1, len(text))
    fits = (n for n in range(longest, 0, -1) if text.endswith(stop[:n]))
    return next(fits, 0)


class _Writer:
  """One row becoming text."""

  def __init__(
    self, tokenizer, row: Row, stops: Sequence[str], ends: Sequence[int] = ()
  ):
    """ends: the ids at which the engine stops."""
    self._ends = ends
    self._decoder = Decoder(tokenizer, after=row.prompt)
    self._cutter = Cutter(stops)
    self.tokens: list[int] = []
    self.text, self.finish = "", ""

  def push(self, ids: np.ndarray, most: int) -> str:
    """The new text of these ids; sets `finish` where they end the row."""
    new = ""
    for i in ids.tolist():
      if self.finish:
        break
      self.tokens.append(i)
      if i in self._ends:
        new, self.finish = new + self._flush(), "eot"
        break
      new += self._cutter.push(self._decoder.push(i))
      if not self._cutter.stopped and len(self.tokens) == most:
        new, self.finish = new + self._flush(), "length"
      if self._cutter.stopped:
        self.finish = "stop"
    self.text += new
    return new

  def _flush(self) -> str:
    return self._cutter.push(self._decoder.flush(), final=True)


def generate(
  engine: Engine,
  tokenizer,
  prompts: Sequence[str],
  *,
  max_tokens: int,
  num_samples: int,
  stops: Sequence[str],
  batch: int,
  steps: int,
  keep: int | None = None,
  read: Callable[..., tuple[int, ...]] | None = None,
  show: Callable[[int, int, str], None] | None = None,
  poll: Callable[[], None] | None = None,
) -> list[Completion]:
  """`num_samples` continuations of each prompt, in the order of the prompts.

  batch: rows decoded together; steps: tokens between two looks at the text
  (at most the engine's group). keep: how many tokens of a prompt are read at
  most, its last ones; None is all. read(tokenizer, prompt) gives its ids,
  None is as the model reads.
  show(index, sample, text) is given new text as it comes; poll is called
  between looks, and may raise. Raises BadConfig for what cannot be done,
  BadData for a prompt with ids that the model lacks, before doing anything.
  """
  for name, value in dict(num_samples=num_samples, batch=batch).items():
    if value < 1:
      raise BadConfig(f"{name}={value}: expected at least 1")
  if any(not stop for stop in stops):
    raise BadConfig("stop='': an empty stop string would stop at once")
  rows, read = [], read or reader(engine.model)
  for index, prompt in enumerate(prompts):
    ids = read(tokenizer, prompt)
    if not isinstance(engine.model, Hears):  # whose prompts are no ids
      check_ids(tokenizer, ids, engine.model.vocab)
    ids = ids if keep is None else ids[-keep:]
    engine.check(len(ids), max_tokens)
    rows += [(index, Row(ids, sample)) for sample in range(num_samples)]
  # Alike in length together: less padding, and fewer buckets.
  order = sorted(range(len(rows)), key=lambda i: len(rows[i][1].prompt))
  done: dict[int, Completion] = {}
  for at in range(0, len(order), batch):
    part = order[at : at + batch]
    writers = _together(
      engine, tokenizer, [rows[i] for i in part], max_tokens, stops, steps,
      show, poll,
    )  # fmt: skip
    for i, writer in zip(part, writers, strict=True):
      index, row = rows[i]
      done[i] = Completion(
        index, row.sample, prompts[index], writer.text, tuple(writer.tokens),
        writer.finish,
      )  # fmt: skip
  return [done[i] for i in range(len(rows))]


def _together(
  engine, tokenizer, rows, max_tokens, stops, steps, show, poll
) -> list[_Writer]:
  """The writers of rows decoded in one batch, all of them finished."""
  session = engine.start([row for _, row in rows], max_tokens)
  ends = engine.stop_ids
  # A source is not what its target goes on from.
  apart = engine.model.source
  writers = [
    _Writer(tokenizer, Row(()) if apart else row, stops, ends)
    for _, row in rows
  ]
  while not all(w.finish for w in writers):
    if poll:
      poll()
    stopped = []
    for i, ids in enumerate(session.advance(steps)):
      if writers[i].finish:
        continue
      new = writers[i].push(ids, max_tokens)
      if new and show:
        show(rows[i][0], rows[i][1].sample, new)
      if writers[i].finish == "stop":
        stopped.append(i)
    session.stop(stopped)
  return writers


def finished(
  tokenizer, index, sample, prompt, after, tokens, stops, ends, most, score
) -> Completion:
  """The completion that tokens made all at once are."""
  writer = _Writer(tokenizer, Row(tuple(after)), stops, ends)
  writer.push(np.asarray(tokens, np.int32), most)
  return Completion(
    index, sample, prompt, writer.text, tuple(writer.tokens),
    writer.finish or "length", score,
  )  # fmt: skip
