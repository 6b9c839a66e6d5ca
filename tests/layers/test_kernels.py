"""Every kernel of attention is the one formula, in value and gradient."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax._src.mesh import AbstractDevice
from jax.sharding import AbstractMesh, use_abstract_mesh

from aigc_jax import errors, sharding
from aigc_jax.layers import kernels, splash
from aigc_jax.layers.cpu import blocks
from aigc_jax.layers.visible import Visible
from tests.sweep import slow, sweep

CLOSE = dict(rtol=2e-5, atol=2e-6)


def inputs(B=2, T=11, N=6, K=3, H=8, dtype=jnp.float32):
  draw = np.random.default_rng(0)
  shapes = ((B, T, N, H), (B, T, K, H), (B, T, K, H), (B, T, N, H))
  return [draw.normal(size=s).astype(dtype) for s in shapes]


def value_and_gradients(kernel, visible, q, k, v, dy, softcap=0.0):
  def f(q, k, v):
    return kernel(q, k, v, visible, scale=0.3, softcap=softcap)

  y, back = jax.vjp(f, q, k, v)
  return y, *back(dy)


def same(a, b, **close):
  for x, y in zip(a, b, strict=True):
    np.testing.assert_allclose(
      np.asarray(x, np.float32), np.asarray(y, np.float32), **close
    )


SEGMENTS_BT = np.array([[1] * 5 + [2] * 6, [1] * 8 + [0] * 3])
IN_SEGMENTS = dict(segments_BT=SEGMENTS_BT, segments_BS=SEGMENTS_BT)
SEEN = {
  "causal": Visible(),
  "window": Visible(window=4),
  "segments": Visible(**IN_SEGMENTS),
  "all": Visible(causal=False),
  "all, window": Visible(causal=False, window=4),
  "all, segments": Visible(causal=False, **IN_SEGMENTS),
}


@pytest.mark.parametrize("softcap", [slow(0.0), 2.0])
@pytest.mark.parametrize("seen", sweep(SEEN, "window", "segments", "all"))
@pytest.mark.parametrize("size", sweep([4, 11], 4))
def test_blocks_are_dense_attention(size, seen, softcap):
  def both(*args):
    kernel = functools.partial(blocks.attend, size=size)
    return [
      value_and_gradients(f, SEEN[seen], *args, softcap)
      for f in (kernel, kernels.dense)
    ]

  a, b = jax.jit(both)(*inputs())
  same(a, b, **CLOSE)


def of_bias(kernel, visible, name, q, k, v, dy, bias):
  """As value_and_gradients, and the gradient of a bias of the scores."""

  def f(q, k, v, bias):
    return kernel(q, k, v, visible, scale=0.3, softcap=0.0, **{name: bias})

  y, back = jax.vjp(f, q, k, v, bias)
  return y, *back(dy)


@functools.cache
def dense_of_bias(seen: str):
  f = functools.partial(of_bias, kernels.dense, SEEN[seen], "bias_BNTS")
  return jax.jit(f)


@pytest.mark.parametrize("rows", [6, 1], ids=["rows at once", "by row"])
@pytest.mark.parametrize("seen", sweep(["causal", "segments", "all"], "all"))
def test_a_bias_of_the_scores_in_blocks_is_that_of_dense_attention(
  monkeypatch, seen, rows
):
  args = inputs(B=2)
  bias_1NTS = np.random.default_rng(9).normal(size=(1, 6, 11, 11))
  bias_1NTS = bias_1NTS.astype(np.float32)
  dense = dense_of_bias(seen)(*args, bias_1NTS)
  monkeypatch.setattr(sharding, "alone", lambda: True)
  monkeypatch.setattr(blocks, "CACHED", rows * 6 * 4 * 16 * 4)
  kernel = functools.partial(blocks.attend, size=4)

  def f(*args):
    return of_bias(kernel, SEEN[seen], "bias_1NTS", *args)

  made = jax.jit(f).lower(*args, bias_1NTS)
  assert ("while" in made.as_text()) == (rows == 1)
  same(made.compile()(*args, bias_1NTS), dense, **CLOSE)


@pytest.mark.parametrize("inner", [slow("all"), "segments"])
def test_a_memory_of_another_length_in_blocks_is_as_dense_attention_reads_it(
  inner,
):
  q, k, v, dy = inputs()
  k, v = k[:, :7], v[:, :7]
  visible = Visible(causal=False)
  if inner == "segments":
    visible = Visible(
      causal=False, segments_BT=SEGMENTS_BT,
      segments_BS=jnp.array([[1] * 3 + [2] * 4, [1] * 6 + [0]]),
    )  # fmt: skip

  @jax.jit
  def both(*args):
    kinds = functools.partial(blocks.attend, size=4), kernels.dense
    return [value_and_gradients(f, visible, *args) for f in kinds]

  same(*both(q, k, v, dy), **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_blocks_row_by_row_are_all_the_rows_at_once(monkeypatch, dtype):
  args = inputs(B=4, dtype=dtype)

  def f(*args):
    return value_and_gradients(blocks.attend, Visible(), *args)

  at_once = jax.jit(f)(*args)
  monkeypatch.setattr(blocks, "CACHED", 2 * 6 * 11 * 11 * 4)
  by_two = jax.jit(lambda *a: f(*a))
  assert "while" in by_two.lower(*args).as_text()
  close = CLOSE if dtype == jnp.float32 else dict(rtol=0.02, atol=0.02)
  same(by_two(*args), at_once, **close)


@pytest.mark.slow
@pytest.mark.parametrize("seen", sweep([None, 40, "segments"], "segments"))
def test_splash_attention_is_dense_attention(seen):
  args = inputs(B=1, T=128, N=2, K=1, H=16)
  ids = jnp.array([[1] * 50 + [2] * 78])
  visible = Visible(window=seen)
  if seen == "segments":
    visible = Visible(segments_BT=ids, segments_BS=ids)
  assert not splash.lacks(*args[:2], visible)
  kernel = functools.partial(splash.attend, interpret=True)
  same(
    value_and_gradients(kernel, visible, *args),
    value_and_gradients(kernels.dense, visible, *args),
    rtol=1e-4, atol=1e-5,
  )  # fmt: skip


@pytest.mark.parametrize(
  ("capability", "head_dim", "name"),
  [
    ("9.0", 256, "cudnn"), ("8.0", 128, "cudnn"), ("12.0", 256, "cudnn"),
    ("8.9", 136, "xla"), ("7.5", 64, "xla"), ("gfx90a", 64, "xla"),
  ],
)  # fmt: skip
def test_auto_goes_by_what_the_gpu_can_do(
  monkeypatch, capability, head_dim, name
):
  gpu = types.SimpleNamespace(
    platform="gpu", device_kind="a GPU", compute_capability=capability
  )
  monkeypatch.setattr(jax, "local_devices", lambda: [gpu])
  q, k, v, _ = inputs(T=8, H=head_dim, dtype=jnp.bfloat16)
  with described("a GPU", "gpu"):
    assert kernels.resolve(q, k, Visible(), 0.0) == name
    if name != "cudnn":
      with pytest.raises(errors.BadConfig, match="cudnn.*a GPU"):
        kernels.cudnn(q, k, v, Visible(), scale=1.0, softcap=0.0)


def described(kind: str, platform: str):
  """A mesh of one device that is not here."""
  device = AbstractDevice(kind, None, platform)
  return use_abstract_mesh(AbstractMesh((), (), abstract_device=device))


def test_on_a_gpu_attention_is_cudnns_and_holds_no_scores(monkeypatch):
  monkeypatch.setattr(
    fused_attention_stablehlo, "check_cudnn_version", lambda: 91_000
  )
  monkeypatch.setattr(
    fused_attention_stablehlo, "check_compute_capability", lambda _: True
  )
  q, k, v, _ = inputs(T=128, N=4, K=2, H=64, dtype=jnp.bfloat16)

  def f(q, k, v):
    y = kernels.attend(
      q, k, v, Visible(), scale=0.1, softcap=0.0, kernel="auto"
    )
    return jnp.sum(y.astype(jnp.float32))

  with described("NVIDIA H200", "gpu"):
    traced = jax.jit(jax.grad(f, (0, 1, 2))).trace(q, k, v)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert "__cudnn$fmhaSoftmax(" in text
  assert "__cudnn$fmhaSoftmaxBackward(" in text
  assert "128x128x" not in text


@pytest.mark.parametrize(
  ("platform", "dtype", "name"),
  [
    ("gpu", jnp.bfloat16, "cudnn"),
    ("gpu", jnp.float32, "xla"),
    ("tpu", jnp.bfloat16, "splash"),
    ("cpu", jnp.float32, "blocks"),
  ],
)
def test_auto_goes_by_the_platform_of_the_mesh(platform, dtype, name):
  q, k, *_ = inputs(T=128, H=64, dtype=dtype)
  with described("a device", platform):
    assert kernels.resolve(q, k, Visible(), 0.0) == name


def test_a_cpu_by_itself_has_blocks_where_all_positions_see_each_other_too():
  q, k, *_ = inputs()
  seen = Visible(causal=False)
  with described("a device", "cpu"):
    assert kernels.resolve(q, k, seen, 0.0) == "blocks"
    assert kernels.resolve(q, k[:, :5], seen, 0.0) == "blocks"  # a memory
    # One that decoding asks is not worth what filling up the keys takes.
    assert kernels.resolve(q[:, :1], k, seen, 0.0) == "xla"
    one, two = (np.zeros((rows, 6, 11, 11)) for rows in (1, 2))
    assert kernels.resolve(q, k, seen, 0.0, one) == "blocks"
    assert kernels.resolve(q, k, seen, 0.0, two) == "xla"  # each row its own


@pytest.mark.parametrize("kernel", ["cudnn", "splash", "blocks"])
def test_a_kernel_asked_for_by_name_is_used_or_refused(kernel):
  q, k, v, _ = inputs()
  visible = Visible(positions_BT=jnp.arange(11)[None])
  with pytest.raises(errors.BadConfig, match="auto"):
    kernels.attend(q, k, v, visible, scale=1.0, softcap=0.0, kernel=kernel)


@pytest.mark.parametrize(
  ("kernel", "rows"), [("cudnn", 1), ("splash", 1), ("blocks", 2)]
)
def test_a_kernel_that_cannot_do_a_bias_of_the_scores_refuses_it(kernel, rows):
  q, k, v, _ = inputs()
  bias_BNTS = np.zeros((rows, 6, 11, 11), np.float32)
  with pytest.raises(errors.BadConfig, match="a bias of the scores.*auto"):
    kernels.attend(
      q, k, v, Visible(), scale=1.0, softcap=0.0, kernel=kernel,
      bias_BNTS=bias_BNTS,
    )  # fmt: skip
