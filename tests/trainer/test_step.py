"""The step: exact in parts, gated, many in one call."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aigc_jax import optim, sharding
from aigc_jax.metrics import Mean
from aigc_jax.trainer.state import fresh
from aigc_jax.trainer.step import make_step, repeat_step
from tests import tiny
from tests.sweep import slow


def rate(step):
  return 0.1


PAIRS = {
  "table": np.random.default_rng(0).normal(size=(37, 37)).astype(np.float32)
}


def of_pairs(params, batch, key, dropout: float = 0.0):
  """How likely a token is after another: what compiles at once."""
  logits_BTV = params["table"][batch["tokens"]]
  if dropout and key is not None:
    kept = jax.random.bernoulli(key, 1 - dropout, logits_BTV.shape)
    logits_BTV = logits_BTV * kept
  nll_BT = optax.softmax_cross_entropy_with_integer_labels(
    logits_BTV, batch["targets"]
  )
  return {"loss": Mean.of(nll_BT, batch["weights"])}


def stepper(optimizer=None, microbatches: int = 1, score=of_pairs):
  optimizer = optimizer or optax.sgd(0.1)
  return jax.jit(make_step(score, optimizer, rate, microbatches))


plain = functools.cache(stepper)


@functools.cache
def a_model():
  return tiny.score_of(tiny.build("llama"))


@pytest.fixture(scope="module")
def state():
  return fresh(PAIRS, optax.sgd(0.1), seed=3)


@pytest.mark.parametrize("parts", [2, 4, slow(8)])
@pytest.mark.parametrize("of", ["pairs", slow("a model")])
def test_ragged_micro_batches_give_the_gradient_of_the_whole(state, of, parts):
  batch, score = tiny.ragged_batch(8, 7), of_pairs
  if of == "a model":
    score = a_model()
    state = fresh(tiny.params_of("llama"), optax.sgd(0.1), seed=3)
  one, a = plain(score=score)(state, batch)
  many, b = plain(microbatches=parts, score=score)(state, batch)
  assert tiny.distance(one.params, many.params) < 1e-6
  np.testing.assert_allclose(a["train/loss"], b["train/loss"], rtol=1e-6)


def test_a_mean_of_means_would_be_something_else(state):
  # What the law above guards against, so that it can fail.
  batch = tiny.ragged_batch(8, 7)
  whole = plain()(state, batch)[1]["train/loss"]
  halves = [
    plain()(state, jax.tree.map(lambda x, i=i: x[i::2], batch))[1]["train/loss"]
    for i in (0, 1)
  ]
  assert abs(float(whole) - float(sum(halves)) / 2) > 1e-4


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_non_finite_loss_never_reaches_the_state(poison):
  def score(params, batch, key):
    means = of_pairs(params, batch, key)
    bad = jnp.where(jnp.max(batch["tokens"]) == 36, poison, 1.0)
    loss = means["loss"]
    return means | {"loss": loss.replace(sum=loss.sum * bad)}

  optimizer = optax.adam(1e-2)
  state = fresh(PAIRS, optimizer, seed=3)
  step = stepper(optimizer, score=score)
  batch = tiny.ragged_batch(2, 7)
  good = batch | {"tokens": batch["tokens"] % 36}
  bad = batch | {"tokens": batch["tokens"].at[0, 0].set(36)}
  after, metrics = step(state, bad)
  assert int(metrics["optim/skipped"]) == 1 and int(after.skipped) == 1
  assert int(after.step) == 1
  jax.tree.map(
    np.testing.assert_array_equal,
    (after.params, after.opt_state),
    (state.params, state.opt_state),
  )
  moved, metrics = step(state, good)
  assert int(metrics["optim/skipped"]) == 0
  assert tiny.distance(moved.params, state.params) > 0


def test_steps_in_one_call_are_the_steps_one_by_one(state):
  batches = [tiny.ragged_batch(2, 7, seed) for seed in (1, 5, 9)]
  one, losses = state, []
  step = plain()
  for batch in batches:
    one, metrics = step(one, batch)
    losses.append(metrics["train/loss"])
  many = jax.jit(repeat_step(make_step(of_pairs, optax.sgd(0.1), rate), 3))
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *batches)
  all_at_once, metrics = many(state, stacked)
  np.testing.assert_allclose(metrics["train/loss"], losses, rtol=1e-5)
  assert tiny.distance(one.params, all_at_once.params) < 1e-6
  assert int(all_at_once.step) == 3


def test_dropout_differs_from_step_to_step_and_not_from_run_to_run():
  score = functools.partial(of_pairs, dropout=0.3)
  step = stepper(optax.sgd(0.0), score=score)
  state = fresh(PAIRS, optax.sgd(0.0), seed=3)
  batch = tiny.ragged_batch(2, 7)
  first, a = step(state, batch)
  _, b = step(first, batch)
  _, again = step(state, batch)
  assert float(a["train/loss"]) != float(b["train/loss"])
  assert float(a["train/loss"]) == float(again["train/loss"])


def test_the_batch_hash_tells_batches_apart(state):
  batch = tiny.ragged_batch(4, 7)
  swapped = jax.tree.map(lambda x: x[jnp.array([1, 0, 2, 3])], batch)
  hashes = {
    int(plain()(state, b)[1]["data/batch_hash"]) for b in (batch, swapped)
  }
  assert len(hashes) == 2


def test_a_spike_is_skipped_and_a_new_level_is_not_for_long():
  def score(params, batch, key):
    loss = of_pairs(params, batch, key)["loss"]
    return {"loss": loss.replace(sum=loss.sum * batch["scale"][0])}

  optimizer = optax.sgd(1e-4)
  step = jax.jit(make_step(score, optimizer, rate, spike_sigma=6.0))
  state = fresh(PAIRS, optimizer, 3, spike_window=4)
  spiked = []
  for n, scale in enumerate([1, 9, 1, 1, 1, 1, 9, 9, 9, 9, 9, 9]):
    noise = 1 + 0.01 * (n % 3)
    batch = tiny.ragged_batch(2, 7) | {"scale": jnp.full((1,), scale * noise)}
    before = state
    state, metrics = step(state, batch)
    spiked.append(int(metrics["optim/spiked"]))
    moved = tiny.distance(state.params, before.params) > 0
    assert moved != bool(spiked[-1]) and int(metrics["optim/skipped"]) == 0
  # The 9 at step 1 stands in a record that is not full yet.
  assert spiked[:6] == [0] * 6 and spiked[6] == 1 and spiked[-1] == 0
  assert int(state.skipped) == sum(spiked)


@pytest.mark.parametrize("kind", ["adamw", "lion", "sgd"])
@pytest.mark.parametrize("poison", [1.0, np.nan, 1e12])
def test_an_update_applied_in_the_pass_that_makes_it_is_the_update(
  monkeypatch, kind, poison
):
  monkeypatch.setattr(sharding, "platform", lambda: "gpu")
  draw = np.random.default_rng(0)
  params = {"a": {"w": jnp.asarray(draw.normal(size=(5, 7)), jnp.float32)}}
  settings = dict(b1=0.9, b2=0.95, eps=1e-8, mu_dtype=jnp.float32)
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optim.OPTIMIZERS[kind](**settings),
    optax.scale_by_learning_rate(0.1),
  )

  def score(params, batch, key):
    y = batch["x"] @ params["a"]["w"]
    return {"loss": Mean(jnp.sum(y**4), jnp.float32(len(batch["x"])))}

  def batch(n):
    x = np.random.default_rng(n).normal(size=(2, 5)) * (poison if n == 1 else 1)
    return {"x": jnp.asarray(x, jnp.float32), "tokens": jnp.zeros((2, 3))}

  def run(at_once):
    step = jax.jit(make_step(score, optimizer, rate, at_once=at_once))
    state = fresh(params, optimizer, seed=3)
    for n in range(3):
      state, metrics = step(state, batch(n))
    return state, metrics

  usual = dict(b1=0.9, b2=0.95, eps=1e-8, mu_dtype="float32")
  assert optim.at_once(kind=kind, **usual)
  (kept, told), (again, told_again) = run(False), run(True)
  assert int(kept.skipped) == (poison != 1)  # 1e12 ** 3 has no finite square
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
    (kept, told),
    (again, told_again),
  )
  assert np.all(np.isfinite(again.params["a"]["w"]))


@pytest.mark.parametrize(
  "b1, b2, dtype",
  [
    (0.0, 0.5, "float32"), (0.9, 0.811, "float32"), (0.9, 0.818, "bfloat16"),
    (0.99, 0.9999998, "float32"), (0.99, 0.9999998, "bfloat16"),
  ],
)  # fmt: skip
def test_an_adamw_applied_at_once_is_finite_after_any_finite_gradients(
  b1, b2, dtype
):
  settings = dict(b1=b1, b2=b2, eps=1e-30)
  assert optim.at_once(kind="adamw", mu_dtype=dtype, **settings)
  adamw = optim.OPTIMIZERS["adamw"](**settings, mu_dtype=jnp.dtype(dtype))
  sizes = [1e19, 1e-19, 1e-38, 1e19, *[1e-22] * 500, *[0.0] * 20_000]

  def one(state, g):
    update, state = adamw.update({"w": g}, state)
    return state, update["w"]

  start = adamw.init({"w": jnp.zeros(())})
  updates = jax.lax.scan(one, start, jnp.asarray(sizes, jnp.float32))[1]
  assert np.abs(updates).max() < 1e12


def test_updates_that_may_be_infinite_by_themselves_are_looked_at_first():
  usual = dict(kind="adamw", b1=0.9, b2=0.95, eps=1e-8, mu_dtype="float32")
  assert optim.at_once(**usual)
  for change in (
    {"b2": 0.81}, {"b2": 1 - 1e-9}, {"eps": 1e-40}, {"kind": "muon"},
    {"kind": "adafactor"}, {"b1": 0.999, "b2": 0.9985, "mu_dtype": "bfloat16"},
  ):  # fmt: skip
    assert not optim.at_once(**usual | change)
