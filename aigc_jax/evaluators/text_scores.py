"""Scores of written text against references: BLEU, chrF, ROUGE, METEOR.

By the packages others use, so that numbers can be compared: sacrebleu with its
signature, rouge-score, nltk (extra [scores]). Each is a function
(texts, references) -> {name: Estimate}; one text may have several references.
"""

from collections.abc import Callable, Mapping, Sequence

from aigc_jax.errors import BadConfig
from aigc_jax.evaluators.choices import Estimate, bootstrap, mean

Texts = Sequence[str]
References = Sequence[Sequence[str]]  # of each text
RESAMPLES = 300


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
    ("bleu", sacrebleu.BLEU(effective_order=False)),
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
  """F1 of ROUGE-1, ROUGE-2 and ROUGE-L with stemming, the best reference."""
  try:
    from rouge_score import rouge_scorer
  except ImportError:
    raise _lacks("rouge-score") from None
  kinds = ("rouge1", "rouge2", "rougeL")
  scorer = rouge_scorer.RougeScorer(list(kinds), use_stemmer=True)
  each: dict[str, list[float]] = {kind: [] for kind in kinds}
  for text, refs in zip(texts, references, strict=True):
    scores = [scorer.score(r, text) for r in refs]
    for kind in kinds:
      each[kind].append(max(s[kind].fmeasure for s in scores))
  return {kind: mean(values) for kind, values in each.items()}


def meteor(texts: Texts, references: References) -> dict[str, Estimate]:
  """METEOR of nltk, on words split at spaces; needs its WordNet data."""
  try:
    from nltk.translate.meteor_score import meteor_score
  except ImportError:
    raise _lacks("nltk") from None
  try:
    values = [
      meteor_score([r.split() for r in refs], text.split())
      for text, refs in zip(texts, references, strict=True)
    ]
  except LookupError:
    raise BadConfig(
      "METEOR needs WordNet, which nltk keeps apart: "
      "python -m nltk.downloader wordnet"
    ) from None
  return {"meteor": mean(values)}


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
