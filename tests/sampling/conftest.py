"""Engines over tiny models, compiled once for all tests."""

import functools

import pytest

from aigc_jax.sampling.decode import Engine
from aigc_jax.sampling.logits import Sampling
from tests import tiny

GREEDY = Sampling()


@functools.cache
def make_engine(style, sampling=GREEDY, stop_ids=(), seed=0, unroll=1):
  model = tiny.build(style, unroll=unroll)
  return Engine(
    model, tiny.params_of(style),
    sampling=sampling, stop_ids=stop_ids,
    positions=tiny.STYLES[style]["position_length"],
    unrolled=unroll == 0, group=8, seed=seed,
  )  # fmt: skip


@pytest.fixture(scope="session")
def engine():
  return make_engine
