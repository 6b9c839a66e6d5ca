"""Span corruption hides what it should, and prefixes are cut anywhere."""

import numpy as np
import pytest

from aigc_jax.data import denoising
from aigc_jax.data.draw import Draw
from aigc_jax.errors import BadConfig

EOT, SENTINEL = 1, 99


def records(n: int = 200, length: int = 40, counts=None):
  window = np.tile(np.arange(2, length + 3, dtype=np.int32), (n, 1))
  count = np.full(n, length) if counts is None else np.array(counts)
  return {"window": window, "count": count}


def draw(n: int = 200, step: int = 0):
  places = np.arange(n) + n * step
  return Draw(3, places, places)


def corrupted(*args, **options):
  return denoising.span_corruption(
    *args, eot=EOT, first_sentinel=SENTINEL, **options
  )


def spelled(source, target):
  """The window again: each sentinel replaced by what follows it."""
  spans, name = {}, None
  for token in target[:-1]:
    if token > 60:
      name, spans[token] = token, []
      continue
    spans[name].append(token)
  return [
    t
    for token in source[:-1]
    for t in (spans[token] if token > 60 else [token])
  ]


def test_lengths_are_those_of_t5():
  assert denoising.span_lengths(568, 0.15, 3.0) == (512, 114)
  whole = denoising.span_lengths(100, 0.15, 3.0)
  for length in range(2, 100):
    found = denoising.span_lengths(length, 0.15, 3.0)
    assert found[0] <= whole[0] and found[1] <= whole[1]


def test_source_and_target_together_are_the_window():
  batch = corrupted(records(), draw(), start_token=0)
  for row in range(200):
    source = batch["encoder_tokens"][row][batch["encoder_segments"][row] > 0]
    real = batch["weights"][row] > 0
    target = batch["targets"][row][real]
    assert source[-1] == target[-1] == EOT
    assert spelled(source, target) == list(range(2, 42))
    np.testing.assert_array_equal(
      batch["tokens"][row][1:], batch["targets"][row][:-1]
    )
    assert batch["tokens"][row][0] == 0
    assert real.all()  # of a whole window all of it is used


@pytest.mark.parametrize("length", [8, 25, 30, 100])
def test_masks_are_random_however_short_the_text(length):
  tokens, spans = denoising.span_counts(length, 0.15, 3.0)
  uniform = np.random.default_rng(0).random((4000, 2 * length), np.float32)
  masks = np.array(
    [denoising.noise_of(length, 0.15, 3.0, row) for row in uniform]
  )
  assert (masks.sum(1) == tokens).all()
  assert (np.diff(masks, axis=1, prepend=False) & masks).sum(1).max() == spans
  share = masks.mean(0)
  assert abs(share[0] - share[-1]) < 0.03 and share.min() > 0
  assert share[0] < 0.6 > share[-1]


def test_rows_with_fewer_tokens_and_none_at_all_are_as_they_should():
  batch = corrupted(records(4, counts=[40, 10, 1, 0]), draw(4))
  sizes = batch["weights"].sum(1).tolist()
  assert sizes[0] > sizes[1] > 0 and sizes[2:] == [0, 0]
  source = batch["encoder_tokens"][1][batch["encoder_segments"][1] > 0]
  target = batch["targets"][1][batch["weights"][1] > 0]
  assert spelled(source, target) == list(range(2, 12))


def test_a_row_is_the_same_whichever_rows_are_asked_for():
  whole = corrupted(records(8), draw(8))
  some = {k: v[[5, 2]] for k, v in records(8).items()}
  part = corrupted(some, Draw(3, np.array([5, 2]), np.array([5, 2])))
  for key, value in part.items():
    np.testing.assert_array_equal(value, whole[key][[5, 2]])
  again = corrupted(records(8), draw(8, step=1))
  assert not np.array_equal(again["targets"], whole["targets"])


def test_the_spec_is_what_is_made():
  batch = corrupted(records(5), draw(5))
  spec = denoising.span_spec(batch=5, length=40, first_sentinel=SENTINEL)
  assert {k: (s.shape, s.dtype) for k, s in spec.items()} == {
    k: (v.shape, v.dtype) for k, v in batch.items()
  }
  batch = denoising.prefix(records(5), draw(5), eot=EOT)
  spec = denoising.prefix_spec(batch=5, length=40)
  assert {k: (s.shape, s.dtype) for k, s in spec.items()} == {
    k: (v.shape, v.dtype) for k, v in batch.items()
  }


def test_a_prefix_and_what_follows_are_the_window():
  batch = denoising.prefix(records(), draw(), eot=EOT)
  cuts = batch["encoder_segments"].sum(1)
  assert cuts.min() == 1 and cuts.max() == 39
  assert abs(cuts.mean() - 20) < 3
  for row, cut in enumerate(cuts):
    source = batch["encoder_tokens"][row][:cut]
    target = batch["targets"][row][batch["weights"][row] > 0]
    assert [*source, *target] == list(range(2, 42))


@pytest.mark.parametrize(
  ("change", "word"),
  [
    (dict(noise=0.0), "noise"),
    (dict(mean_span=0.5), "mean_span"),
    (dict(first_sentinel=0), "sentinel"),
    (dict(length=1), "length"),
  ],
)
def test_noise_that_cannot_be_is_refused(change, word):
  with pytest.raises(BadConfig, match=word):
    denoising.span_spec(
      **dict(batch=2, length=40, first_sentinel=SENTINEL) | change
    )
