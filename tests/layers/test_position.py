"""Rotary frequencies that depend on how many positions there may be."""

import numpy as np
import pytest

from aigc_jax.errors import BadConfig
from aigc_jax.layers.position import frequencies
from aigc_jax.run import settings
from tests import tiny

DYNAMIC = dict(kind="dynamic", factor=3.0, original_length=16)
LONGROPE = tiny.STYLES["longrope"]["rotary_scaling"]


def test_up_to_the_original_length_dynamic_frequencies_are_the_plain_ones():
  plain = frequencies(8, 100.0, None)
  for length in (0, 1, 16):
    np.testing.assert_array_equal(frequencies(8, 100.0, DYNAMIC, length), plain)


def test_beyond_it_they_are_those_of_a_larger_base():
  """The base that arXiv:2309.00071 gives, by its power of d / (d - 2)."""
  for length in (17, 40):
    base = 100.0 * (3.0 * length / 16 - 2.0) ** (8 / 6)
    np.testing.assert_allclose(
      frequencies(8, 100.0, DYNAMIC, length), frequencies(8, base, None)
    )


def test_longrope_slows_each_plane_by_the_factor_for_the_length():
  plain = frequencies(8, 100.0, None)
  for length, name in ((0, "short"), (4, "short"), (5, "long")):
    np.testing.assert_allclose(
      frequencies(8, 100.0, LONGROPE, length) * np.asarray(LONGROPE[name]),
      plain,
    )


@pytest.mark.parametrize(
  "change, words",
  [
    (dict(short=(1.0, 2.0)), "short has 2 factors: expected .* the 4 planes"),
    (dict(long=(1.0,) * 5), "long has 5 factors"),
    (dict(long=(1.0, 0.0, 1.0, 1.0)), "no finite angle"),
    (dict(long="no"), "rotary_scaling.long='no'"),
    (dict(original_length=None), "original_length=None"),
  ],
)
def test_factors_that_do_not_fit_are_refused_by_name(change, words):
  with pytest.raises(BadConfig, match=words):
    frequencies(8, 100.0, LONGROPE | change, 9)


def test_what_is_written_ends_where_frequencies_would_change():
  """Keys in a cache are turned by the frequencies of when they were made."""
  llama = tiny.STYLES["llama"]
  most = settings.most_positions
  assert most(llama) == 0
  assert most(llama | dict(rotary_scaling=DYNAMIC)) == 16
  assert most(tiny.STYLES["longrope"]) == 0
  assert most(tiny.STYLES["gpt2"]) == tiny.STYLES["gpt2"]["position_length"]
