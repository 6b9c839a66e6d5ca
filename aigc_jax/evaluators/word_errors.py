"""Word and character error rates of transcripts.

The least number of words put in, left out or put in another's place, over how
many the references have; of characters the same. Both texts are first written
alike (`alike`): compatible forms of Unicode as one, case folded (lower case,
and "ss" for a sharp s), punctuation and symbols left out but for an apostrophe
within a word, words parted by single spaces, which count as characters.
"""

import unicodedata
from collections.abc import Sequence

import numpy as np

from aigc_jax.evaluators.choices import Estimate, bootstrap

RESAMPLES = 300
SIGNATURE = "NFKC, case folded, no punctuation or symbols"
APOSTROPHES = {"\u2019": "'", "\u02bc": "'"}


def alike(text: str) -> str:
  """The text as it is compared."""
  text = unicodedata.normalize("NFKC", text).casefold()
  text = "".join(APOSTROPHES.get(c, c) for c in text)
  kept = []
  for i, c in enumerate(text):
    within = 0 < i < len(text) - 1
    if c == "'" and within and text[i - 1].isalnum() and text[i + 1].isalnum():
      kept.append(c)
    elif unicodedata.category(c)[0] in "PS":
      kept.append(" ")
    else:
      kept.append(c)
  return " ".join("".join(kept).split())


def distance(a: Sequence, b: Sequence) -> int:
  """The least number of changes of single items that make b of a.

  Levenshtein's: each is put in, left out or put in another's place.
  """
  if len(a) < len(b):
    a, b = b, a
  before = list(range(len(b) + 1))
  for i, x in enumerate(a, 1):
    row = [i]
    for j, y in enumerate(b, 1):
      row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
    before = row
  return before[-1]


def word_errors(
  texts: Sequence[str], references: Sequence[str]
) -> dict[str, Estimate]:
  """ "wer" and "cer" over all utterances together.

  Errors are deviations over resampled utterances. They may be above 1, where
  more is written than was said; nan, where the references say nothing.
  """
  pairs = [
    (alike(text), alike(reference))
    for text, reference in zip(texts, references, strict=True)
  ]
  found = {}
  for name, cut in (("wer", str.split), ("cer", list)):
    changes = np.array([distance(cut(a), cut(b)) for a, b in pairs], float)
    lengths = np.array([len(cut(b)) for _, b in pairs], float)

    def rate(which, changes=changes, lengths=lengths) -> float:
      total = lengths[which].sum()
      return float(changes[which].sum() / total) if total else float("nan")

    whole = bootstrap(rate, len(pairs), times=RESAMPLES)
    found[name] = Estimate(whole.value, whole.error, len(pairs), SIGNATURE)
  return found
