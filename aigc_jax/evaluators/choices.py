"""Accuracy on questions with choices, as lm-evaluation-harness defines it.

  acc        the right choice has the largest log likelihood
  acc_norm   ... the largest log likelihood per character of the choice
  acc_bytes  ... the largest log likelihood per UTF-8 byte of the choice

A choice is scored with the space before it, its length is taken without. Ties
go to the first. (lm_eval 0.4, ConfigurableTask.process_results.)
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from aigc_jax.evaluators.formats import Item
from aigc_jax.evaluators.likelihood import Likelihood, Scorer


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A score, its standard error (nan for one item), and how many items.

  signature: what exactly was computed, of scores that have variants.
  """

  value: float
  error: float
  items: int
  signature: str = ""


def mean(values: Sequence[float]) -> Estimate:
  """The mean and its standard error, the sample's deviation over sqrt(n)."""
  values = np.asarray(values, np.float64)
  n = len(values)
  error = values.std(ddof=1) / math.sqrt(n) if n > 1 else math.nan
  return Estimate(float(values.mean()), float(error), n)


def bootstrap(
  statistic: Callable[[np.ndarray], float], items: int, *, times: int = 1000
) -> Estimate:
  """statistic(indices) of all items; its deviation over resampled items.

  Resamples of which there is none (nan), as of words where nothing is said, do
  not count.
  """
  rng = np.random.default_rng(0)
  error = math.nan
  if items > 1:
    draws = [statistic(rng.integers(0, items, items)) for _ in range(times)]
    draws = [draw for draw in draws if not math.isnan(draw)]
    error = np.std(draws, ddof=1) if len(draws) > 1 else math.nan
  return Estimate(float(statistic(np.arange(items))), float(error), items)


def accuracies(
  items: Sequence[Item], scores: Sequence[Sequence[float]]
) -> dict[str, Estimate]:
  """acc, acc_norm and acc_bytes of log likelihoods, one for each choice."""
  hits: dict[str, list[float]] = {"acc": [], "acc_norm": [], "acc_bytes": []}
  for item, logprobs in zip(items, scores, strict=True):
    logprobs = np.asarray(logprobs, np.float64)
    lengths = {
      "acc": np.ones(len(logprobs)),
      "acc_norm": np.array([len(c) for c in item.choices]),
      "acc_bytes": np.array([len(c.encode()) for c in item.choices]),
    }
    for name, length in lengths.items():
      hits[name].append(float(np.argmax(logprobs / length) == item.label))
  return {name: mean(values) for name, values in hits.items()}


def last_words(found: Sequence[Likelihood]) -> dict[str, Estimate]:
  """acc: greedy decoding writes the text; perplexity of the texts (LAMBADA)."""
  logprobs = np.array([f.logprob for f in found], np.float64)

  def perplexity(which: np.ndarray) -> float:
    return float(np.exp(min(-logprobs[which].mean(), 700.0)))

  return {
    "acc": mean([float(f.greedy) for f in found]),
    "perplexity": bootstrap(perplexity, len(found)),
  }


def evaluate(
  scorer: Scorer, items: Sequence[Item], kind: str
) -> dict[str, Estimate]:
  """The scores of a task whose format says `kind`: choices or last_word."""
  pairs = [
    (item.context, item.between + choice)
    for item in items
    for choice in item.choices
  ]
  found = scorer.pairs(pairs)
  if kind == "last_word":
    return last_words(found)
  each = iter(found)
  return accuracies(
    items, [[next(each).logprob for _ in item.choices] for item in items]
  )
