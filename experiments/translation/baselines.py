"""What needs no network: copying, a translation memory, a word dictionary.

  python -m experiments.translation.baselines OUT

on the pairs held out of OUT/sentences.jsonl, from those that the network learns
from. The memory gives the translation of the most similar source (cosine of
tf-idf over words); the dictionary each word's likeliest translation (IBM model
1, ten rounds, arXiv has it as doi 10.5555/972470.972474).
"""

import json
import math
import sys
from collections import Counter, defaultdict
from pathlib import Path

import sacrebleu

from aigc_jax.data.pair_sources import held_out

SHARE = 0.05


def words(text: str) -> list[str]:
  return text.lower().replace(".", " .").replace(",", " ,").split()


def read(folder: Path, name: str) -> list[tuple[str, str]]:
  lines = (folder / f"{name}.jsonl").read_text("utf-8").splitlines()
  return [(row["en"], row["fr"]) for row in map(json.loads, lines)]


def memory(train, sources) -> list[str]:
  documents = Counter(w for source, _ in train for w in set(words(source)))

  def vector(text):
    counts = Counter(words(text))
    found = {
      w: n * math.log(len(train) / documents[w])
      for w, n in counts.items()
      if w in documents
    }
    length = math.sqrt(sum(x * x for x in found.values())) or 1.0
    return {w: x / length for w, x in found.items()}

  index = defaultdict(list)
  for i, (source, _) in enumerate(train):
    for w, x in vector(source).items():
      index[w].append((i, x))
  out = []
  for source in sources:
    scores: Counter = Counter()
    for w, x in vector(source).items():
      for i, y in index[w]:
        scores[i] += x * y
    out.append(train[scores.most_common(1)[0][0]][1] if scores else source)
  return out


def dictionary(train, sources, rounds: int = 10) -> list[str]:
  pairs = [(words(a), words(b)) for a, b in train]
  chance: dict = defaultdict(lambda: 1e-3)
  for _ in range(rounds):
    counts: dict = defaultdict(float)
    totals: dict = defaultdict(float)
    for source, target in pairs:
      for t in target:
        whole = sum(chance[t, s] for s in source)
        for s in source:
          share = chance[t, s] / whole
          counts[t, s] += share
          totals[s] += share
    chance = defaultdict(
      float, {k: n / totals[k[1]] for k, n in counts.items()}
    )
  best: dict = {}
  for (t, s), p in chance.items():
    if p > best.get(s, ("", 0.0))[1]:
      best[s] = (t, p)
  return [
    " ".join(best.get(w, (w, 0.0))[0] for w in words(source))
    for source in sources
  ]


def main(folder: str) -> None:
  pairs = read(Path(folder), "sentences")
  train = [p for p in pairs if not held_out(p[0], SHARE)]
  test = [p for p in pairs if held_out(p[0], SHARE)]
  phrases = read(Path(folder), "phrases")
  train += [p for p in phrases if not held_out(p[0], SHARE)]
  sources, targets = zip(*test, strict=True)
  lower = [t.lower() for t in targets]
  print(f"{len(train)} pairs to learn from, {len(test)} held out")
  for name, texts, references in (
    ("copy", list(sources), list(targets)),
    ("memory", memory(train, sources), list(targets)),
    ("dictionary", dictionary(train, sources), lower),
  ):
    bleu = sacrebleu.corpus_bleu(texts, [references]).score
    chrf = sacrebleu.corpus_chrf(texts, [references]).score
    row = dict(run=name, bleu=round(bleu, 2), chrf=round(chrf, 2))
    print(json.dumps(row))


if __name__ == "__main__":
  main(*sys.argv[1:])
