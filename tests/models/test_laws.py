"""Laws that every decoder obeys, whatever its parts."""

import functools
import importlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import errors, sharding
from aigc_jax.layers.position import frequencies, rotate, rotation
from aigc_jax.objectives import tokens
from tests import tiny
from tests.sweep import slow, sweep

STYLES = sorted(tiny.STYLES)
# What the others are made of: windows, caps and two norms; a parallel block,
# biases and a part that turns; one norm for both and layers that do not turn.
SOME = ("gemma", "neox", "phi")
CLOSE = dict(rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("style", sweep(STYLES, "mistral"))
def test_a_token_never_changes_the_logits_before_it(style):
  a_BT = np.asarray(tiny.some_tokens(2, 7))
  for t in (0, 3, 6):
    b_BT = np.array(a_BT)
    b_BT[:, t] = (a_BT[:, t] + 1) % 37
    a, b = tiny.logits(style, a_BT), tiny.logits(style, b_BT)
    np.testing.assert_array_equal(a[:, :t], b[:, :t])
    assert not np.array_equal(a[:, t:], b[:, t:])


EACH = [dict(unroll=0), dict(remat="full"), dict(kernel="chunked")]
ALL = dict(unroll=0, remat="dots", kernel="chunked")


@pytest.mark.slow
@pytest.mark.parametrize(
  ("style", "change"),
  sweep(
    [(style, ALL) for style in STYLES]
    + [(style, change) for style in ("llama", "gemma") for change in EACH],
    ("gemma", ALL),
    ("phi", ALL),
  ),
)
def test_how_it_is_computed_changes_neither_value_nor_gradient(style, change):
  (a, da), (b, db) = (
    tiny.loss_and_grad(style),
    tiny.loss_and_grad(style, **change),
  )
  np.testing.assert_allclose(a, b, rtol=1e-5)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **CLOSE), da, db)


@pytest.mark.parametrize("style", sweep(STYLES, "mistral"))
def test_cached_decoding_is_uncached_decoding(style):
  model, params = tiny.build(style), tiny.params_of(style)
  x_BT = tiny.some_tokens(2, 7)
  whole = tiny.logits(style, x_BT)
  cache, parts = model.cache(2, 9), []
  step = jax.jit(lambda b, c: model.apply({"params": params}, b, c))
  for start, stop in ((0, 4), (4, 5), (5, 7)):
    positions = jnp.broadcast_to(jnp.arange(start, stop), (2, stop - start))
    batch = {"tokens": x_BT[:, start:stop], "positions": positions}
    readout, cache = step(batch, cache)
    parts.append(readout.logits())
  np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("style", sweep(["llama", "gpt2", "gemma"], "gemma"))
def test_rows_of_a_cache_may_stand_at_different_positions(style):
  model, params = tiny.build(style), tiny.params_of(style)
  x_BT = tiny.some_tokens(2, 6)
  positions = jnp.broadcast_to(jnp.arange(4), (2, 4))
  # Row 1 holds only two tokens; the two behind them are junk.
  step = jax.jit(lambda b, c: model.apply({"params": params}, b, c))
  batch = {"tokens": x_BT[:, :4], "positions": positions}
  _, cache = step(batch, model.cache(2, 8))
  batch = {"tokens": x_BT[:, 4:5], "positions": jnp.array([[4], [2]])}
  readout, _ = step(batch, cache)
  row = jnp.concatenate([x_BT[1:, :2], x_BT[1:, 4:5]], 1)
  np.testing.assert_allclose(
    readout.logits()[1, 0], tiny.logits(style, row)[0, -1], **CLOSE
  )


@pytest.mark.parametrize(
  "style", sweep(["llama", "mistral", "gemma"], "mistral")
)
def test_a_document_in_a_packed_row_is_the_document_alone(style):
  params, x_BT = tiny.params_of(style), tiny.some_tokens(1, 9)
  batch = {
    "tokens": x_BT,
    "segments": jnp.array([[1, 1, 1, 1, 2, 2, 2, 2, 2]]),
    "positions": jnp.array([[0, 1, 2, 3, 0, 1, 2, 3, 4]]),
  }
  packed = tiny.predictor(style)(params, batch)
  alone = tiny.logits(style, x_BT[:, 4:])
  np.testing.assert_allclose(packed[:, 4:], alone, **CLOSE)


@pytest.mark.parametrize("style", sweep(STYLES, "llama"))
def test_every_parameter_has_a_finite_gradient_that_is_not_zero(style):
  for x in jax.tree.leaves(tiny.loss_and_grad(style)[1]):
    assert np.isfinite(x).all() and np.any(x != 0)


def test_a_window_hides_what_lies_behind_it():
  a_BT = tiny.some_tokens(1, 7)
  b_BT = a_BT.at[:, 0].set((a_BT[:, 0] + 1) % 37)
  one = dict(layers=1, windows=(3,), unroll=1)
  params = dict(tiny.params_of("llama"))
  params["stack"] = jax.tree.map(lambda x: x[:1], params["stack"])
  f = tiny.predictor("llama", **one)
  a, b = (f(params, {"tokens": x}) for x in (a_BT, b_BT))
  assert not np.array_equal(a[:, 2], b[:, 2])
  np.testing.assert_array_equal(a[:, 3:], b[:, 3:])


@pytest.mark.slow
def test_a_layer_that_is_not_turned_does_not_know_where_tokens_stand():
  params, x_BT = tiny.params_of("llama"), tiny.some_tokens(1, 7)
  batch = {"tokens": x_BT, "positions": 5 * jnp.arange(7)[None]}
  for layers in ((False,), (True, False)):
    f = tiny.predictor("llama", rotary_layers=layers)
    here, there = f(params, {"tokens": x_BT}), f(params, batch)
    assert np.allclose(here, there) == (True not in layers)


def test_components_beyond_the_rotary_ones_stay_as_they_are():
  x = jax.random.normal(jax.random.key(0), (1, 5, 2, 8))
  turn = rotation(jnp.arange(5)[None], frequencies(4, 1e4, None))
  y = rotate(x, turn)
  np.testing.assert_array_equal(y[..., 4:], x[..., 4:])
  np.testing.assert_array_equal(y[..., :4], rotate(x[..., :4], turn))


@pytest.mark.slow
def test_dropout_acts_only_with_a_key():
  params, batch = tiny.params_of("llama"), {"tokens": tiny.some_tokens(2, 7)}
  still = tiny.predictor("llama", dropout=0.5)(params, batch)
  np.testing.assert_allclose(
    still, tiny.logits("llama", batch["tokens"]), **CLOSE
  )
  for unroll in (0, 1):
    model = tiny.build("llama", dropout=0.5, unroll=unroll)
    f = jax.jit(
      lambda key, model=model: model.apply(
        {"params": params}, batch, rngs={"dropout": key}
      ).logits()
    )
    a, b = (f(jax.random.key(k)) for k in (1, 2))
    assert not np.array_equal(a, b) and not np.array_equal(a, still)


@pytest.mark.parametrize("dtype", ["bfloat16"])
@pytest.mark.parametrize("style", ["llama", slow("gpt2")])
def test_bfloat16_stays_near_float32(style, dtype):
  x_BT = tiny.some_tokens(2, 7)
  a = tiny.logits(style, x_BT)
  b = tiny.logits(style, x_BT, dtype=dtype)
  assert b.dtype == jnp.float32
  scale = np.std(a)
  assert np.max(np.abs(a - b)) < 0.1 * scale


@pytest.mark.slow
@pytest.mark.parametrize(
  ("style", "shape"),
  [
    slow(("llama", (8, 1, 1))), slow(("llama", (1, 4, 2))),
    ("llama", (2, 2, 2)), slow(("olmo", (1, 4, 2))), slow(("phi", (2, 2, 2))),
  ],
)  # fmt: skip
def test_eight_devices_give_the_loss_and_gradient_of_one(style, shape):
  data, fsdp, tensor = shape
  mesh = sharding.make_mesh(
    data=data, fsdp=fsdp, expert=1, tensor=tensor, sequence=1, pipeline=1
  )
  model, params = tiny.build(style), tiny.params_of(style)
  batch = tiny.ragged_batch(8, 6)
  score = tiny.score_of(model)

  def f(p, batch):
    return score(p, batch, None)["loss"].sum

  one, d_one = jax.jit(jax.value_and_grad(f))(params, batch)
  abstract = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]
  laid = sharding.of_tree(abstract, mesh)
  cut = {
    k: jax.device_put(x, sharding.shardings("BT", x.shape, mesh))
    for k, x in batch.items()
  }
  with jax.set_mesh(mesh):
    many, d_many = jax.jit(jax.value_and_grad(f))(
      jax.device_put(params, laid), cut
    )
  np.testing.assert_allclose(one, many, rtol=1e-5)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4),
    d_one,
    jax.device_get(d_many),
  )


@pytest.mark.parametrize(
  ("change", "word"),
  [
    (dict(heads=5), "kv_heads"),
    (dict(position="rotory"), "rotary"),
    (dict(position="learned"), "position_length"),
    (dict(head_dim=7), "even"),
    (dict(activation="swish"), "silu"),
    (dict(norm="rmsnorm"), "rms"),
    (dict(remat="everything"), "full"),
    (dict(rotary_dim=3), "even"),
    (dict(rotary_scaling={"factor": 2.0}), "rotary_scaling.kind is missing"),
    (dict(rotary_scaling={"kind": "linear"}), "scaling.factor is missing"),
    (
      dict(rotary_scaling={"kind": "linear", "factor": "x"}),
      "rotary_scaling.factor='x': expected a number",
    ),
    (
      dict(rotary_scaling={"kind": "linear", "factor": 0.0}),
      "no finite angle above 0",
    ),
    (dict(rotary_dim=10), "head_dim=8"),
    (dict(shared_norm=True), "parallel=True"),
    (dict(qk_norm_joint=True), "qk_norm=True"),
    (dict(tied=True, head_bias=True), "tied=False"),
    (dict(residual_multiplier=0.0), "above 0"),
    (dict(unroll=9), "unroll"),
    (dict(kernel="flash"), "chunked"),
    (dict(kernel="cudnn", dtype="bfloat16"), "NVIDIA"),
  ],
)
def test_parts_that_cannot_go_together_are_refused(change, word):
  with pytest.raises(errors.BadConfig, match=word):
    model = tiny.build("llama", **change)
    batch = {"tokens": jnp.zeros((1, 2), jnp.int32)}
    jax.eval_shape(model.init, jax.random.key(0), batch)


@functools.cache
def dense_loss(softcap: float):
  """(loss, gradients) of all the logits at once, on `ragged_batch(3, 7)`."""
  model, batch = (
    tiny.build("llama", logit_softcap=softcap),
    tiny.ragged_batch(3, 7),
  )

  def dense(p):
    z_BTV = model.apply({"params": p}, batch).logits()
    logz_BT = jax.nn.logsumexp(z_BTV, -1)
    at = batch["targets"][..., None]
    nll = logz_BT - jnp.take_along_axis(z_BTV, at, -1)[..., 0]
    return jnp.sum((nll + 0.01 * logz_BT**2) * batch["weights"])

  return jax.jit(jax.value_and_grad(dense))(tiny.params_of("llama"))


@pytest.mark.slow
@pytest.mark.parametrize(
  ("one_pass", "by_index"),
  sweep(itertools.product([True, False], repeat=2), (True, False)),
)
@pytest.mark.parametrize("softcap", sweep([0.0, 3.0], 3.0))
@pytest.mark.parametrize("chunk", sweep([0, 5, 16], 5))
def test_the_chunked_loss_is_the_dense_loss(
  monkeypatch, chunk, softcap, one_pass, by_index
):
  module = importlib.import_module("aigc_jax.objectives.tokens")
  monkeypatch.setattr(module, "_by_index", lambda: by_index)
  if one_pass:
    monkeypatch.setattr(module, "_log_sum_exp", module._in_one_pass)
  model = tiny.build("llama", logit_softcap=softcap)
  params, batch = tiny.params_of("llama"), tiny.ragged_batch(3, 7)

  def chunked(p):
    means = tokens(
      lambda b: model.apply({"params": p}, b), batch, z_loss=0.01, chunk=chunk
    )
    return means["loss"].sum, means

  f = jax.jit(jax.value_and_grad(chunked, has_aux=True))
  (a, means), da = f(params)
  b, db = dense_loss(softcap)
  np.testing.assert_allclose(a, b, rtol=1e-6)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **CLOSE), da, db)
  assert float(means["nll"].weight) == float(batch["weights"].sum())
  # The value without its gradient comes from another code path.
  np.testing.assert_allclose(
    jax.jit(lambda p: chunked(p)[0])(params), a, rtol=1e-6
  )


def test_training_never_holds_all_the_logits():
  model = tiny.build("llama")
  B, T, V = 4, 16, 37
  score = tiny.score_of(model, chunk=8)
  batch = tiny.ragged_batch(B, T)
  f = jax.jit(jax.grad(lambda p: score(p, batch, None)["loss"].sum))
  text = f.lower(tiny.params_of("llama")).as_text()
  assert f"tensor<{B}x{T}x{V}x" not in text
  assert f"tensor<{B * T}x{V}x" not in text
  assert f"tensor<8x{V}x" in text
