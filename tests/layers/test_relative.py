"""Relative positions fall into buckets, and bias the scores by them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.layers import kernels
from aigc_jax.layers.relative import RelativeBias, bucket_of
from aigc_jax.layers.visible import Visible
from tests.sweep import slow


def test_near_distances_have_a_bucket_each_and_far_ones_share_the_last():
  found = bucket_of(200, 32, 128)
  np.testing.assert_array_equal(found[:16], np.arange(16))
  assert (np.diff(found) >= 0).all() and found[127:].tolist() == [31] * 73


@pytest.mark.parametrize("causal", [True, slow(False)])
def test_a_bias_depends_on_the_distance_alone(causal):
  module = RelativeBias(3, 8, 20, causal)
  at = jnp.arange(30, dtype=jnp.int32)[None]
  params = module.init(jax.random.key(0), at, 30)
  bias_NTS = module.apply(params, at, 30)[0]
  for ahead in (-25, -3, 0, 4):
    along = np.diagonal(bias_NTS, ahead, 1, 2)
    np.testing.assert_array_equal(
      along, along[:, :1].repeat(30 - abs(ahead), 1)
    )
  sides = np.array_equal(bias_NTS[:, 5, 9], bias_NTS[:, 9, 5])
  assert not sides
  # A row of a cache stands anywhere.
  later = module.apply(params, jnp.array([[7], [2]]), 30)
  np.testing.assert_array_equal(
    later[:, :, 0], bias_NTS[:, [7, 2]].swapaxes(0, 1)
  )


@pytest.mark.parametrize("rows", [slow(1), 2])
def test_a_bias_is_added_to_the_scores_in_each_kernel_that_takes_one(rows):
  B, T, S, N, K, H = 2, 6, 9, 4, 2, 8
  q, k, v, bias = (
    jax.random.normal(jax.random.key(i), shape)
    for i, shape in enumerate(
      [(B, T, N, H), (B, S, K, H), (B, S, K, H), (rows, N, T, S)]
    )
  )
  k_BSNH, v_BSNH = (jnp.repeat(x, N // K, 2) for x in (k, v))
  scores = 0.3 * jnp.einsum("BTNH,BSNH->BNTS", q, k_BSNH) + bias
  weights = jax.nn.softmax(scores, axis=-1)
  expected = jnp.einsum("BNTS,BSNH->BTNH", weights, v_BSNH)
  for run in (
    kernels.dense,
    lambda *a, **kw: kernels.chunked(*a, **kw, chunk=3),
  ):
    y = run(
      q, k, v, Visible(causal=False), scale=0.3, softcap=0.0, bias_BNTS=bias
    )
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
