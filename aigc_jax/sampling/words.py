"""Texts of known words that fit a row of steps: a search with a language model.

Of a text y that is written in known words alone the search wants the largest

  log p(y | sound) + weight * log p(y) + reward * words of y

The first is of connectionist temporal classification, over all alignments; the
second of n-grams of words that were counted in other texts.
"""

import collections
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from aigc_jax import files
from aigc_jax.errors import BadConfig, BadData

LARGEST = 1 << 26  # bytes of a file of texts
END = ""  # the word behind the last
ORDER = 3  # words of an n-gram
WEIGHT, REWARD = 0.5, 1.0  # common ones, tuned on nothing
Context = tuple[str, ...]


class NGrams:
  """How likely words follow others, by interpolation of Witten and Bell.

  p(w | c) = (count(c w) + kinds(c) p(w | shorter c)) / (count(c) + kinds(c)),
  where kinds(c) is how many different words follow c; of no context at all,
  every word that there is is as likely.
  """

  def __init__(self, lines: Iterable[Sequence[str]], order: int = ORDER):
    self.order = order
    self._counts = collections.defaultdict(collections.Counter)
    for line in lines:
      words = [*line, END]
      for i, word in enumerate(words):
        for back in range(min(order - 1, i) + 1):
          self._counts[tuple(words[i - back : i])][word] += 1
    self._totals = {c: sum(f.values()) for c, f in self._counts.items()}
    self.words = sorted(set(self._counts[()]) - {END})

  def log_p(self, word: str, context: Context) -> float:
    """Of a word, or the END, behind the last words of a context."""
    p = 1.0 / (len(self.words) + 1)
    context = context[max(len(context) - self.order + 1, 0) :]
    for start in range(len(context), -1, -1):
      followers = self._counts.get(context[start:])
      if followers is None:
        break
      kinds, total = len(followers), self._totals[context[start:]]
      p = (followers[word] + kinds * p) / (total + kinds)
    return math.log(p)


class Known(NamedTuple):
  """Texts whose words alone are to be heard, and how much they decide.

  weight: of the logarithm of a text's likelihood. reward: of each word, nats.
  """

  texts: Sequence[str]
  weight: float = WEIGHT
  reward: float = REWARD

  def search(self, tokenizer, blank: int, width: int) -> "WordSearch":
    """The search of a model with this tokenizer. Raises BadConfig."""
    if tokenizer.name != "bytes":
      raise BadConfig(
        "--words spells words letter by letter, and the tokenizer of this run "
        f"is {tokenizer.name}: leave it out, or train with "
        "--config.data.tokenizer=bytes"
      )
    return WordSearch(
      NGrams(text.split() for text in self.texts),
      lambda text: tokenizer.encode(text).tolist(),
      blank=blank, width=width, weight=self.weight, reward=self.reward,
    )  # fmt: skip


def known(path: str, weight: float, reward: float) -> Known:
  """Of the texts in a file, one a line. Raises BadData."""
  text = files.given_text(path, LARGEST, "--words")
  text = text.removeprefix("\ufeff")  # what some editors put first
  texts = [line for line in files.lines_of(text) if line.strip()]
  if not texts:
    raise BadData(f"--words={path}: no text in it, expected one a line")
  return Known(texts, weight, reward)


class Node:
  """Where one is within words: what may come next, and whether one ends."""

  __slots__ = ("after", "best", "word")

  def __init__(self):
    self.after: dict[int, Node] = {}
    self.word: str | None = None
    self.best = -math.inf  # of the words from here on, the likeliest alone


class Place(NamedTuple):
  """What is known of a text that is not yet at its end."""

  node: Node
  context: Context  # words before
  score: float  # of them


class WordSearch:
  """The best text of a row of steps, in tokens.

  spell: the tokens of a text; those of words must be parted by that of " ".
  width: texts that are kept at each step.
  """

  def __init__(
    self,
    grams: NGrams,
    spell: Callable[[str], Sequence[int]],
    *,
    blank: int,
    width: int,
    weight: float,
    reward: float,
  ):
    self._grams, self._blank, self._width = grams, blank, width
    self._weight, self._reward = weight, reward
    (self._space,) = spell(" ")
    self._root = Node()
    for word in grams.words:
      alone, node = grams.log_p(word, ()), self._root
      node.best = max(node.best, alone)
      for token in spell(word):
        node = node.after.setdefault(token, Node())
        node.best = max(node.best, alone)
      node.word = word

  def __call__(self, logs_TV: np.ndarray) -> list[int]:
    """Of log probabilities of steps; [] is a text of no words."""
    places = {(): Place(self._root, (), 0.0)}
    # Of each text: it ends in a blank, it ends in its last token.
    kept = {(): (0.0, -math.inf)}
    for logs_V in logs_TV.tolist():
      kept = self._step(kept, places, logs_V)
      places = {text: places[text] for text in kept}
    ends = {text: self._ended(places[text]) for text in kept}
    ends = {text: end for text, end in ends.items() if end is not None}
    if not ends:
      return []
    best = max(ends, key=lambda text: (_sum(*kept[text]) + ends[text], text))
    return list(best)

  def _step(self, kept, places, logs_V):
    found = collections.defaultdict(lambda: [-math.inf, -math.inf])
    for text, (silent, voiced) in kept.items():
      both = _sum(silent, voiced)
      own = found[text]
      own[0] = _sum(own[0], both + logs_V[self._blank])
      if text:
        own[1] = _sum(own[1], voiced + logs_V[text[-1]])
      place = places[text]
      for token in self._next(place):
        before = silent if text and text[-1] == token else both
        if before == -math.inf:
          continue
        longer = (*text, token)
        if longer not in places:
          places[longer] = self._after(place, token)
        new = found[longer]
        new[1] = _sum(new[1], before + logs_V[token])
    ranked = sorted(
      found, key=lambda text: (-self._promise(places[text], found[text]), text)
    )
    return {text: tuple(found[text]) for text in ranked[: self._width]}

  def _next(self, place: Place):
    yield from place.node.after
    if place.node.word is not None:
      yield self._space

  def _after(self, place: Place, token: int) -> Place:
    if token != self._space:
      return place._replace(node=place.node.after[token])
    word = place.node.word
    score = place.score + self._gain(word, place.context)
    return Place(self._root, (*place.context, word)[1 - ORDER :], score)

  def _gain(self, word: str, context: Context) -> float:
    log_p = self._grams.log_p(word, context)
    return self._weight * log_p + (self._reward if word != END else 0.0)

  def _promise(self, place: Place, logs) -> float:
    """What a text is kept by: of a word begun, the likeliest that it may be."""
    rest = 0.0
    if place.node is not self._root:
      rest = self._weight * place.node.best + self._reward
    return _sum(*logs) + place.score + rest

  def _ended(self, place: Place) -> float | None:
    """What is said of the words of a whole text; None within a word."""
    if place.node.word is not None:
      place = self._after(place, self._space)
    elif place.context or place.node is not self._root:
      return None
    return place.score + self._gain(END, place.context)


def _sum(a: float, b: float) -> float:
  """Logarithm of a sum, of logarithms."""
  if a < b:
    a, b = b, a
  return a if b == -math.inf else a + math.log1p(math.exp(b - a))
