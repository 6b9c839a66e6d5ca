"""Scores of written text against references: BLEU, chrF, ROUGE, METEOR.

What counts as a word depends on the writing of the references: where no spaces
stand between words each character is one, and BLEU is told (sacrebleu's zh,
ja-mecab or char). A score that is not by the package's own words has a
signature that says so.

By the packages others use, so that numbers can be compared: sacrebleu with its
signature, rouge-score, nltk (extra [scores]). Each is a function
(texts, references) -> {name: Estimate}; one text may have several references.
"""

import dataclasses
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from aigc_jax.errors import BadConfig
from aigc_jax.evaluators.choices import Estimate, bootstrap, mean

Texts = Sequence[str]
References = Sequence[Sequence[str]]  # of each text
RESAMPLES = 300
# Ranges of characters of scripts that have no spaces between words.
UNSPACED = {
  "han": "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af",
  "kana": "\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9d",
  "other": "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff",
}
KINDS = {
  kind: re.compile(f"[{ranges}]") for kind, ranges in UNSPACED.items()
} | {"latin": re.compile("[A-Za-z\u00c0-\u024f]")}
SPACELESS = re.compile("[" + "".join(UNSPACED.values()) + "]")
SHARE = 0.3  # of the letters, from which on a script decides


def script_of(references: References) -> str:
  """How the references are written: latin, spaced, han, kana or other.

  spaced: another script with spaces between words; other: one without, which
  is neither Chinese nor Japanese.
  """
  text = "".join(r for refs in references for r in refs)
  counts = Counter(
    {kind: len(pattern.findall(text)) for kind, pattern in KINDS.items()}
  )
  letters = max(sum(map(str.isalpha, text)), 1)
  if counts["other"] >= SHARE * letters:
    return "other"
  if counts["han"] + counts["kana"] >= SHARE * letters:
    # Japanese has both; Chinese may quote a word of it.
    return "kana" if counts["kana"] >= counts["han"] / 8 else "han"
  return "latin" if counts["latin"] >= 0.5 * letters else "spaced"


def words_of(text: str) -> list[str]:
  """Words in lower case; of scripts without spaces, characters."""
  found: list[str] = []
  before = ""  # what the character before belongs to: word, character, nothing
  for c in unicodedata.normalize("NFKC", text).lower():
    alone = SPACELESS.match(c) is not None
    if unicodedata.category(c)[0] == "M":  # part of what stands before it
      if before:
        found[-1] += c
    elif not c.isalnum():
      before = ""
    elif before == "word" and not alone:
      found[-1] += c
    else:
      found.append(c)
      before = "character" if alone else "word"
  return found


class _Words:
  """`words_of`, as rouge-score asks for it."""

  @staticmethod
  def tokenize(text: str) -> list[str]:
    return words_of(text)


def _bleu(sacrebleu, script: str):
  """BLEU with the words of this script."""
  names = {"han": ("zh",), "kana": ("ja-mecab", "char"), "other": ("char",)}
  for name in names.get(script, ("13a",)):
    try:
      return sacrebleu.BLEU(effective_order=False, tokenize=name)
    except (ImportError, RuntimeError):  # MeCab is a package of its own
      continue
  raise _lacks("sacrebleu")


def exact_match(texts: Texts, references: References) -> dict[str, Estimate]:
  """Whether a text is one of its references, but for spaces around it."""
  return {
    "exact_match": mean(
      [
        float(text.strip() in {r.strip() for r in refs})
        for text, refs in zip(texts, references, strict=True)
      ]
    )
  }


def corpus_scores(texts: Texts, references: References) -> dict[str, Estimate]:
  """BLEU and chrF of sacrebleu, with their signatures.

  Their error is their deviation over resampled texts. Only the counts of each
  text are resampled, as sacrebleu itself does it, so n-grams are counted once.
  """
  try:
    import sacrebleu
  except ImportError:
    raise _lacks("sacrebleu") from None
  # sacrebleu takes the first references of all texts, then the second, ...
  most = max(len(refs) for refs in references)
  columns = [
    [refs[i] if i < len(refs) else None for refs in references]
    for i in range(most)
  ]
  found = {}
  for name, metric in (
    ("bleu", _bleu(sacrebleu, script_of(references))),
    ("chrf", sacrebleu.CHRF()),
  ):
    score = metric.corpus_score(list(texts), columns)
    counts = metric._extract_corpus_statistics(list(texts), columns)

    def resampled(which, metric=metric, counts=counts) -> float:
      return metric._aggregate_and_compute([counts[i] for i in which]).score

    error = bootstrap(resampled, len(texts), times=RESAMPLES).error
    found[name] = Estimate(
      float(score.score), error, len(texts), metric.get_signature().format()
    )
  return found


def rouge(texts: Texts, references: References) -> dict[str, Estimate]:
  """F1 of ROUGE-1, ROUGE-2 and ROUGE-L with stemming, the best reference.

  The package's own words are made of a to z and digits only, so other scripts
  than Latin have those of `words_of`.
  """
  try:
    from rouge_score import rouge_scorer
  except ImportError:
    raise _lacks("rouge-score") from None
  kinds = ("rouge1", "rouge2", "rougeL")
  ours = script_of(references) != "latin"
  scorer = rouge_scorer.RougeScorer(
    list(kinds), use_stemmer=True, tokenizer=_Words() if ours else None
  )
  each: dict[str, list[float]] = {kind: [] for kind in kinds}
  for text, refs in zip(texts, references, strict=True):
    scores = [scorer.score(r, text) for r in refs]
    for kind in kinds:
      each[kind].append(max(s[kind].fmeasure for s in scores))
  return {kind: _signed(mean(each[kind]), ours) for kind in kinds}


def _signed(found: Estimate, ours: bool) -> Estimate:
  """The estimate, saying where its words are not those of the package."""
  if not ours:
    return found
  return dataclasses.replace(found, signature="words: unicode, or characters")


def meteor(texts: Texts, references: References) -> dict[str, Estimate]:
  """METEOR of nltk, on words split at spaces; needs its WordNet data.

  Where there are no spaces, on those of `words_of`.
  """
  try:
    from nltk.translate.meteor_score import meteor_score
  except ImportError:
    raise _lacks("nltk") from None
  ours = script_of(references) in UNSPACED
  split = words_of if ours else str.split
  try:
    values = [
      meteor_score([split(r) for r in refs], split(text))
      for text, refs in zip(texts, references, strict=True)
    ]
  except LookupError:
    raise BadConfig(
      "METEOR needs WordNet, which nltk keeps apart: "
      "python -m nltk.downloader wordnet"
    ) from None
  except Exception as error:  # of damaged or linked files its reader has many
    raise BadConfig(
      f"METEOR: nltk cannot read its WordNet ({str(error)[:300]}): "
      "get it anew, python -m nltk.downloader --force wordnet"
    ) from None
  return {"meteor": _signed(mean(values), ours)}


SCORES: Mapping[str, Callable[[Texts, References], dict[str, Estimate]]] = {
  "exact_match": exact_match,
  "bleu": corpus_scores,
  "rouge": rouge,
  "meteor": meteor,
}


def all_scores(
  texts: Texts, references: References
) -> tuple[dict[str, Estimate], list[str]]:
  """(the scores that can be had here, why the others cannot)."""
  found: dict[str, Estimate] = {}
  lacking = []
  for score in SCORES.values():
    try:
      found |= score(texts, references)
    except BadConfig as error:
      lacking.append(str(error))
  return found, lacking


def _lacks(package: str) -> BadConfig:
  return BadConfig(
    f"{package} is not installed: pip install 'aigc_jax[scores]'"
  )
