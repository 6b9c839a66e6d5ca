"""Scores of drawn images against plain arithmetic, and against others' code."""

import numpy as np
import pytest

from aigc_jax.errors import BadData
from aigc_jax.evaluators import image_scores as scores


def some(n=80, m=80, dims=12, seed=0):
  draw = np.random.default_rng(seed)
  a = draw.normal(size=(n, dims)).astype("f4")
  return a, (0.8 * draw.normal(size=(m, dims)) + 0.3).astype("f4")


def test_they_are_those_of_torch_fidelity():
  """Its version 0.4.0 gives these numbers of the same features."""
  found = scores.all_scores(*some())
  assert found["fid"].value == pytest.approx(2.6550338897249794, rel=1e-7)
  assert found["kid"].value == pytest.approx(0.3677244186401367, rel=1e-6)
  assert found["precision"].value == pytest.approx(0.925)
  assert found["recall"].value == pytest.approx(0.525)


def test_fid_is_its_formula_by_a_root_of_a_matrix():
  linalg = pytest.importorskip("scipy.linalg")
  for n, m in ((80, 90), (9, 7)):  # and fewer images than features
    a, b = (x.astype(np.float64) for x in some(n, m))
    S, T = np.cov(a.T), np.cov(b.T)
    both = linalg.sqrtm(S @ T + 0j).real
    exact = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(S + T - 2 * both)
    assert scores.fid(a, b) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("n, dims", [(9, 40), (80, 12), (30, 30), (2, 5)])
def test_images_are_at_no_distance_from_themselves(n, dims):
  """Nor below none, of however few and however large features."""
  draw = np.random.default_rng(n)
  for size, far in ((1, 0), (30, 1e3), (0.01, 10)):
    a = size * draw.normal(size=(n, dims)) + far
    found, whole = scores.fid(a, a[::-1]), np.sum(np.var(a, axis=0))
    assert 0 <= found < 1e-10 * whole


def test_fid_of_normal_features_is_known():
  """Of N(0, s^2) and N(m, t^2) in each of D dimensions: D (m^2 + (s - t)^2)."""
  draw = np.random.default_rng(0)
  a, b = draw.normal(size=(200_000, 3)), 2 * draw.normal(size=(200_000, 3)) + 1
  assert scores.fid(a, b) == pytest.approx(3 * 2, rel=0.02)


@pytest.mark.parametrize("swapped", [False, True])
def test_kid_is_its_formula_by_loops(swapped):
  a, b = some(6, 6, dims=4)
  a, b = (b, a) if swapped else (a, b)
  k = lambda x, y: (float(x @ y) / 4 + 1) ** 3  # noqa: E731
  exact = 0.0
  for x in (a, b):
    pairs = [k(x[i], x[j]) for i in range(6) for j in range(6) if i != j]
    exact += np.mean(pairs)
  exact -= 2 * np.mean([k(x, y) for x in a for y in b])
  value, spread = scores.kid(a, b)
  assert value == pytest.approx(exact, rel=1e-5) and np.isnan(spread)


def test_kid_of_many_images_is_a_mean_over_subsets(monkeypatch):
  monkeypatch.setattr(scores, "MOST", 40)
  value, spread = scores.kid(*some())
  assert value == pytest.approx(0.3677, abs=3 * spread / 10) and spread > 0
  assert scores.kid(*some()) == (value, spread)


def test_what_stands_beside_a_mean_over_subsets_is_said():
  real, drawn = some(30, 20, dims=2)
  told = scores.all_scores(real, drawn)["kid"].signature
  assert told == "± is the deviation over 100 subsets of 20 images"
  assert not scores.all_scores(drawn, drawn)["kid"].signature


def test_precision_and_recall_are_theirs_by_loops(monkeypatch):
  a, b = some(30, 20, dims=2)

  def near(around, others):
    radii = [np.sort(np.linalg.norm(around - x, axis=1))[3] for x in around]
    inside = [
      any(np.linalg.norm(x - y) <= r for y, r in zip(around, radii))  # noqa: B905
      for x in others
    ]
    return np.mean(inside)

  for block in (1024, 7):
    monkeypatch.setattr(scores, "BLOCK", block)
    assert scores.precision_recall(a, b) == (near(a, b), near(b, a))


def test_what_is_at_the_edge_of_a_ball_is_within_it_however_far_from_zero():
  """Of features on a grid, where many are as near, and some are copies."""
  for seed in range(20):
    draw = np.random.default_rng(seed)
    real, drawn = (draw.integers(-4, 5, (n, 3)) / 8 for n in (19, 23))
    real[3:8] = drawn[10:15] = real[0]
    exact = []
    for a, b in ((real, drawn), (drawn, real)):
      apart = np.sum((b[:, None] - a) ** 2, axis=-1)
      own = np.sum((a[:, None] - a) ** 2, axis=-1)
      exact.append(np.mean((apart <= np.sort(own)[:, 3]).any(1)))
    for far in (0, 2.0**26):
      found = scores.precision_recall(real + far, drawn + far)
      assert found == tuple(exact)


def test_what_has_collapsed_is_precise_and_recalls_nothing():
  real, _ = some()
  drawn = real[:1] + 1e-3 * np.random.default_rng(1).normal(size=real.shape)
  precision, recall = scores.precision_recall(real, drawn)
  assert precision == 1 and recall < 0.05
  assert scores.fid(real, drawn) > 5 * scores.fid(real[::2], real[1::2])


@pytest.mark.parametrize(
  ("real", "drawn", "word"),
  [
    (np.zeros((3, 2)), np.zeros((9, 2)), "3 real images.*at least 4"),
    (np.zeros((9, 2)), np.full((9, 2), np.nan), "drawn images are not finite"),
  ],
)
def test_what_has_no_scores_is_refused(real, drawn, word):
  with pytest.raises(BadData, match=word):
    scores.precision_recall(real, drawn)
