"""What counting says of the same hidden tokens that a run was measured on.

  python -m experiments.bert.baselines --workdir=DIR --out=results.jsonl

Counts are of the run's training tokens; the places asked for are those of its
held-out set, which are the same each time it is measured. The baselines see the
true neighbours, which the model often sees masked.
"""

import argparse
import json
import math
import pathlib

import numpy as np

from aigc_jax import run
from aigc_jax.trainer import journal


def counts(tokens: np.ndarray, vocab: int) -> tuple[np.ndarray, np.ndarray]:
  """(how often each token is there (V,), how often each pair is (V, V))."""
  pairs = np.bincount(
    tokens[:-1].astype(np.int64) * vocab + tokens[1:], minlength=vocab**2
  )
  return np.bincount(tokens, minlength=vocab), pairs.reshape(vocab, vocab)


def smoothed(pairs: np.ndarray, unigram: np.ndarray, keep: float) -> np.ndarray:
  """P(second | first) (V, V), as much of the unigram as pairs are missing.

  Jelinek-Mercer with one weight for all, `keep`.
  """
  total = np.maximum(pairs.sum(axis=1, keepdims=True), 1)
  return keep * pairs / total + (1 - keep) * unigram


def asked(found) -> dict[str, np.ndarray]:
  """The tokens asked for in a held-out set, and the ones on both sides.

  Places at an end of a row have a neighbour less and are left out by a weight.
  """
  parts = []
  for n in range(found.batches):
    batch = found.rows(n, slice(None))
    whole = batch["tokens"].copy()
    rows, places = np.nonzero(batch["weights"])
    at = batch["at"][rows, places]
    whole[rows, at] = batch["targets"][rows, places]
    last = batch["segments"].sum(axis=1)[rows] - 1
    left = np.where(at > 0, whole[rows, np.maximum(at - 1, 0)], -1)
    after = whole[rows, np.minimum(at + 1, whole.shape[1] - 1)]
    right = np.where(at < last, after, -1)
    parts.append(np.stack([batch["targets"][rows, places], left, right]))
  return dict(zip(("target", "left", "right"), np.hstack(parts), strict=True))


def scores(found: dict, unigram, forward, backward) -> dict[str, dict]:
  """Bits per token and accuracy of each baseline."""
  target, left, right = found["target"], found["left"], found["right"]
  base = np.tile(unigram, (len(target), 1))
  ahead = np.where(left[:, None] >= 0, forward[left], base)
  behind = np.where(right[:, None] >= 0, backward[right], base)
  # As if the neighbours were independent once the token is known.
  both = ahead * behind / np.maximum(base, 1e-12)
  both = both / both.sum(axis=1, keepdims=True)
  rows = np.arange(len(target))
  return {
    name: {
      "bits": float(-np.log2(p[rows, target]).mean()),
      "accuracy": float((p.argmax(axis=1) == target).mean()),
    }
    for name, p in (("unigram", base), ("bigram", ahead), ("both sides", both))
  }


def best_keep(pairs: np.ndarray, unigram, held: np.ndarray) -> float:
  """The weight under which other training tokens are likeliest."""

  def bits(keep):
    p = smoothed(pairs, unigram, keep)[held[:-1], held[1:]]
    return -np.log2(p).mean()

  return min((k / 50 for k in range(1, 50)), key=bits)


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--out", required=True)
  given = parser.parse_args()
  config = run.config_in(given.workdir)
  entry = config["evaluate"]["heldout"]
  found = run.open_eval(config, batches=entry["batches"], **entry["data"])
  vocab = config["model"]["vocab"]
  (store,) = run.open_stream(config).stores
  tokens = (
    store.gather(np.arange(store.windows(1024)), 1024)[:, :-1]
    .reshape(-1)
    .astype(np.int64)
  )
  # A tenth of the training tokens chooses how much of the unigram is kept.
  cut = len(tokens) * 9 // 10
  _, some = counts(tokens[:cut], vocab)
  whole, pairs = counts(tokens, vocab)
  unigram = (whole + 0.5) / (whole + 0.5).sum()
  keep = best_keep(some, unigram, tokens[cut:])
  rows = scores(
    asked(found), unigram, smoothed(pairs, unigram, keep),
    smoothed(pairs.T, unigram, keep),
  )  # fmt: skip
  history = [
    row
    for row in journal.rows(pathlib.Path(given.workdir) / journal.METRICS)
    if "eval/heldout/loss" in row
  ]
  with open(given.out, "w") as out:
    for name, row in rows.items():
      out.write(json.dumps({"name": name, "keep": keep, **row}) + "\n")
    for row in history:
      row = {
        "name": "encoder", "step": row["step"], "tokens": row["tokens"],
        "bits": row["eval/heldout/loss"] / math.log(2),
        "accuracy": row["eval/heldout/accuracy"],
      }  # fmt: skip
      out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
  main()
