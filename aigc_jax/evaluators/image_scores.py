"""How near drawn images are to real ones, by features of both, in float64.

Each score is of two arrays of features, (n, D) and (m, D): rows are images, as
a network sees them (evaluators/features.py). All depend on that network, and
FID on how many images there are: the number that real images get beside other
real ones is the least that a model could reach, and stands beside each.
"""

from collections.abc import Iterator

import numpy as np

from aigc_jax.errors import BadData
from aigc_jax.evaluators.choices import Estimate

SUBSETS, MOST = 100, 1000  # of KID: how many, of how many images at most
NEIGHBOURS = 3  # of precision and recall, as in their paper
LEAST = NEIGHBOURS + 1  # images that all scores take
BLOCK = 1024  # rows whose distances exist at once
EQUAL = 1e-12  # of the largest square: the distances of float64 round so


def all_scores(
  real: np.ndarray, drawn: np.ndarray, prefix: str = ""
) -> dict[str, Estimate]:
  """{name: Estimate} of all four scores."""
  items = len(drawn)
  nothing = float("nan")
  kid_value, spread = kid(real, drawn)
  precision, recall = precision_recall(real, drawn)
  found = {
    "fid": Estimate(fid(real, drawn), nothing, items),
    "kid": Estimate(kid_value, spread, items, _told(real, drawn, spread)),
    "precision": Estimate(precision, _of_share(precision, items), items),
    "recall": Estimate(recall, _of_share(recall, len(real)), len(real)),
  }
  return {f"{prefix}{name}": score for name, score in found.items()}


def _told(real: np.ndarray, drawn: np.ndarray, spread: float) -> str:
  """What the deviation of `kid` is, which is no standard error of its mean."""
  if np.isnan(spread):
    return ""
  size = min(MOST, len(real), len(drawn))
  return f"± is the deviation over {SUBSETS} subsets of {size:,} images"


def _of_share(share: float, items: int) -> float:
  """The standard error of a share of some items."""
  return float(np.sqrt(share * (1 - share) / items))


def _checked(real: np.ndarray, drawn: np.ndarray, least: int):
  """Both in float64. Raises BadData for too few rows, or what is no number."""
  both = []
  for name, x in (("real", real), ("drawn", drawn)):
    if len(x) < least:
      raise BadData(
        f"{len(x)} {name} images: their scores take at least {least}"
      )
    x = np.asarray(x, np.float64)
    if not np.isfinite(x).all():
      raise BadData(f"features of {name} images are not finite")
    both.append(x)
  return both


def fid(real: np.ndarray, drawn: np.ndarray) -> float:
  """Frechet distance of two normal distributions with the features' moments.

  |m - n|^2 + tr(S + T - 2 (S T)^(1/2)), arXiv:1706.08500; of covariances with
  n - 1, as everybody's are.
  """
  real, drawn = _checked(real, drawn, 2)
  apart = real.mean(0) - drawn.mean(0)
  A, B = _factor(real), _factor(drawn)
  # With S = A' A and T = B' B the eigenvalues of S T are the squares of these,
  # of which a root of S T itself would lose half the digits.
  middle = np.linalg.svd(A @ B.T, compute_uv=False).sum()
  whole = apart @ apart + np.sum(A**2) + np.sum(B**2) - 2 * middle
  return max(float(whole), 0.0)


def _factor(x: np.ndarray) -> np.ndarray:
  """(at most D, D) for (n, D): a matrix A whose A' A is the covariance."""
  A = (x - x.mean(0)) / np.sqrt(len(x) - 1)
  return np.linalg.qr(A, mode="r") if len(A) > A.shape[1] else A


def kid(
  real: np.ndarray, drawn: np.ndarray, seed: int = 0
) -> tuple[float, float]:
  """(squared maximum mean discrepancy, its deviation over subsets).

  arXiv:1801.01401: of the kernel (x y / D + 1)^3, without bias, the mean over
  subsets of images. Where a subset would be all images, of those at once, and
  the deviation is nan.
  """
  real, drawn = _checked(real, drawn, 2)
  size = min(MOST, len(real), len(drawn))
  if size == len(real) == len(drawn):
    return _discrepancy(real, drawn), float("nan")
  draw = np.random.default_rng(seed)
  found = [
    _discrepancy(
      *(x[draw.choice(len(x), size, replace=False)] for x in (real, drawn))
    )
    for _ in range(SUBSETS)
  ]
  return float(np.mean(found)), float(np.std(found))


def _discrepancy(x: np.ndarray, y: np.ndarray) -> float:
  def kernel(a, b):
    return (a @ b.T / a.shape[1] + 1) ** 3

  def within(a):
    k, n = kernel(a, a), len(a)
    return (k.sum() - np.trace(k)) / (n * (n - 1))

  return float(within(x) + within(y) - 2 * kernel(x, y).mean())


def precision_recall(
  real: np.ndarray, drawn: np.ndarray, neighbours: int = NEIGHBOURS
) -> tuple[float, float]:
  """(share of drawn ones near real ones, share of real ones near drawn ones).

  arXiv:1904.06991: near is within the ball around another that reaches to its
  own `neighbours`-th nearest.
  """
  real, drawn = _checked(real, drawn, neighbours + 1)
  return (
    _near(real, drawn, neighbours),
    _near(drawn, real, neighbours),
  )


def _near(around: np.ndarray, others: np.ndarray, neighbours: int) -> float:
  """The share of `others` in a ball of one of `around`.

  On its edge is within, as the neighbour is that reaches to it, whatever the
  rounding of either.
  """
  middle = around.mean(0)
  around, others = around - middle, others - middle
  edge = EQUAL * max(np.sum(x**2, axis=1).max() for x in (around, others))
  radii = np.concatenate(
    [
      np.partition(square, neighbours, axis=1)[:, neighbours]
      for square in _squares(around, around)  # the nearest is it itself
    ]
  )
  within = radii + edge
  inside = [(row <= within).any(1) for row in _squares(others, around)]
  return float(np.concatenate(inside).mean())


def _squares(a: np.ndarray, b: np.ndarray) -> Iterator[np.ndarray]:
  """Squared distances of all pairs, some rows of a at a time."""
  length_b = np.sum(b**2, axis=1)
  for start in range(0, len(a), BLOCK):
    rows = a[start : start + BLOCK]
    square = np.sum(rows**2, axis=1)[:, None] + length_b - 2 * rows @ b.T
    yield np.maximum(square, 0)
