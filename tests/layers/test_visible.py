"""Who sees whom: the mask, the count of pairs, both sides of a window."""

import numpy as np
import pytest

from aigc_jax.layers.visible import Visible


@pytest.mark.parametrize("window", [None, 1, 3, 20])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("T, S", [(7, 7), (5, 9), (9, 5)])
def test_pairs_are_those_of_the_mask(causal, window, T, S):
  visible = Visible(causal, window)
  seen_TS = visible.mask(T, S)
  assert visible.pairs(T, S) == (T * S if seen_TS is None else seen_TS.sum())


def test_without_causality_a_window_has_two_sides():
  seen_TS = np.asarray(Visible(causal=False, window=2).mask(5, 5)[0])
  np.testing.assert_array_equal(seen_TS, seen_TS.T)
  assert seen_TS.sum(0).tolist() == [2, 3, 3, 3, 2]
