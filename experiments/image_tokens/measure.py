r"""Codes of held-out digits: what they lose, what they cost, what is drawn.

  python -m experiments.image_tokens.measure VQ_RUN [--prior=RUN ...] \
      [--judge=RUN] [--each=50]

Work directories of configs/vq.py:tiny,digits, configs/dalle.py:tiny,digits or
tiny_masked,digits, and configs/digits.py:resnet. A JSON line for each result;
errors are of pixels from 0 to 1.
"""

import argparse
import json

import jax
import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from aigc_jax import data, run
from aigc_jax.layers.quantize import perplexity


def tell(**found) -> None:
  print(json.dumps(found), flush=True)


def images_of(loaded: run.Loaded, split: str) -> np.ndarray:
  """All images of a split, in the units of the data."""
  held = run.open_eval(loaded.config, split=split, say=lambda text: None)
  found = []
  for _, batch in data.batches(held, loaded.mesh, 0, held.batches):
    found.append(np.asarray(batch["images"])[np.asarray(batch["weights"]) > 0])
  return np.concatenate(found)


def clusters(train: np.ndarray, test: np.ndarray, count: int) -> float:
  """Squared error by the nearest of `count` patches of 2 x 2."""

  def cut(x):
    x = x[..., 0].reshape(-1, 4, 2, 4, 2)
    return x.transpose(0, 1, 3, 2, 4).reshape(-1, 4)

  found = KMeans(count, n_init=4, random_state=0).fit(cut(train))
  near = found.cluster_centers_[found.predict(cut(test))]
  return float(np.mean((near - cut(test)) ** 2))


def components(train: np.ndarray, test: np.ndarray, count: int) -> float:
  """Squared error by so many principal components."""
  flat = test.reshape(len(test), -1)
  found = PCA(count).fit(train.reshape(len(train), -1))
  back = found.inverse_transform(found.transform(flat))
  return float(np.mean((back - flat) ** 2))


def counted_bits(train: np.ndarray, test: np.ndarray, V: int) -> dict:
  """Bits per code by counts of codes, and of pairs; a half is added to each."""
  single = np.bincount(train.reshape(-1), minlength=V) + 0.5
  unigram = -np.log2(single / single.sum())[test].mean()
  before = lambda x: np.pad(x, ((0, 0), (1, 0)), constant_values=V)[:, :-1]  # noqa: E731
  pairs = np.full((V + 1, V), 0.5)
  np.add.at(pairs, (before(train), train), 1)
  pairs /= pairs.sum(1, keepdims=True)
  bigram = -np.log2(pairs[before(test), test]).mean()
  return dict(unigram=float(unigram), bigram=float(bigram))


def measure_vq(loaded: run.Loaded) -> None:
  train, test = (images_of(loaded, s) for s in ("train", "validation"))
  run_ = lambda x, how: np.asarray(  # noqa: E731
    jax.jit(lambda x: loaded.model.apply(loaded.variables, x, method=how))(x)
  )
  grey = lambda x: x * 0.5 + 0.5  # noqa: E731
  lost = float(np.mean((grey(run_(test, "reconstruct")) - grey(test)) ** 2))
  V = loaded.model.codes
  codes = [run_(x, "encode") for x in (train, test)]
  counts = np.bincount(codes[1].reshape(-1), minlength=V)
  tell(
    vq=dict(
      mse=lost, codes=V, perplexity=float(perplexity(counts)),
      used=int((counts > 0).sum()), images=len(test),
    ),
    clusters_of_2x2={
      k: clusters(grey(train), grey(test), k) for k in sorted({8, V})
    },
    components={k: components(grey(train), grey(test), k) for k in (16, 32)},
    bits_by_counts=counted_bits(*codes, V),
  )  # fmt: skip


def judged(drawing: run.Loaded, judge: run.Loaded, each: int) -> None:
  """How often the judge reads the label that was asked for."""
  labels = np.repeat(np.arange(drawing.model.classes), each)
  mean, std = (
    np.asarray(judge.config["data"][k], np.float32) for k in ("mean", "std")
  )

  @jax.jit
  def read(images):
    batch = {"images": images}
    return judge.model.apply(judge.variables, batch).logits().argmax(-1)

  ways = [(g, 8) for g in (1.0, 2.0, 4.0)]
  if drawing.model.masked:
    ways += [(2.0, 4), (2.0, 16)]
  for guidance, steps in ways:
    sampler = drawing.sampler(
      sampler="heun", steps=steps, guidance=guidance, seed=0
    )
    drawn = sampler(np.arange(len(labels)), labels, 100)
    told = np.asarray(read((drawn / np.float32(255) - mean) / std))
    tell(
      run=drawing.name, guidance=guidance,
      steps=steps if drawing.model.masked else None,
      right=float((told == labels).mean()),
      different=len({image.tobytes() for image in drawn}) / len(drawn),
    )  # fmt: skip


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("vq")
  parser.add_argument("--prior", action="append", default=[])
  parser.add_argument("--judge")
  parser.add_argument("--each", type=int, default=50)
  given = parser.parse_args()
  measure_vq(run.load(given.vq))
  if given.judge:
    judge = run.load(given.judge)
    for name in given.prior:
      judged(run.load(name), judge, given.each)


if __name__ == "__main__":
  main()
