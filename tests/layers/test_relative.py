"""Relative positions fall into buckets, and bias the scores by them."""

import functools

import jax
import numpy as np
import pytest

from aigc_jax.layers import kernels
from aigc_jax.layers.relative import RelativeBias, bucket_of
from aigc_jax.layers.visible import Visible
from tests import fresh
from tests.sweep import slow


def test_near_distances_have_a_bucket_each_and_far_ones_share_the_last():
  found = bucket_of(200, 32, 128)
  np.testing.assert_array_equal(found[:16], np.arange(16))
  assert (np.diff(found) >= 0).all() and found[127:].tolist() == [31] * 73


@pytest.mark.parametrize("causal", [True, slow(False)])
def test_a_bias_depends_on_the_distance_alone(causal):
  module = RelativeBias(3, 8, 20, causal)
  at = np.arange(30, dtype=np.int32)[None]
  params = fresh.variables(module, at, S=30)
  apply = jax.jit(lambda at: module.apply(params, at, 30))
  bias_NTS = np.asarray(apply(at)[0])
  for ahead in (-25, -3, 0, 4):
    along = np.diagonal(bias_NTS, ahead, 1, 2)
    np.testing.assert_array_equal(
      along, along[:, :1].repeat(30 - abs(ahead), 1)
    )
  sides = np.array_equal(bias_NTS[:, 5, 9], bias_NTS[:, 9, 5])
  assert not sides
  # A row of a cache stands anywhere.
  later = np.asarray(apply(np.array([[7], [2]], np.int32)))
  np.testing.assert_array_equal(
    later[:, :, 0], bias_NTS[:, [7, 2]].swapaxes(0, 1)
  )


@pytest.mark.parametrize("rows", [slow(1), 2])
def test_a_bias_is_added_to_the_scores_in_each_kernel_that_takes_one(rows):
  B, T, S, N, K, H = 2, 6, 9, 4, 2, 8
  q, k, v, bias = (
    np.random.default_rng(i).normal(size=shape).astype(np.float32)
    for i, shape in enumerate(
      [(B, T, N, H), (B, S, K, H), (B, S, K, H), (rows, N, T, S)]
    )
  )
  k_BSNH, v_BSNH = (np.repeat(x, N // K, 2) for x in (k, v))
  weights = np.exp(0.3 * np.einsum("BTNH,BSNH->BNTS", q, k_BSNH) + bias)
  weights /= weights.sum(-1, keepdims=True)
  expected = np.einsum("BNTS,BSNH->BTNH", weights, v_BSNH)
  for run in (
    kernels.dense,
    lambda *a, **kw: kernels.chunked(*a, **kw, chunk=3),
  ):
    how = dict(scale=0.3, softcap=0.0, bias_BNTS=bias)
    f = functools.partial(run, visible=Visible(causal=False), **how)
    y = jax.jit(f)(q, k, v)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
