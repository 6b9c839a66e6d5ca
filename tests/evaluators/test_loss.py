"""Held-out loss: each target once, whatever the batch and the mesh."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aigc_jax import data, sharding
from aigc_jax.errors import BadData, Stopped
from aigc_jax.evaluators.loss import Loss, results
from aigc_jax.metrics import Mean
from tests import tiny

V = 257


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Some text, so long that no batch below comes out even."""
  folder = tmp_path_factory.mktemp("text")
  for i in range(40):
    (folder / f"{i}.txt").write_text(f"{i}: the cat sat on mat {i * 7}é\n" * 5)
  return folder


@pytest.fixture(scope="module")
def eval_set(folder, tmp_path_factory):
  root = tmp_path_factory.mktemp("root")

  def make(batch, length):
    source = dict(kind="text", path=str(folder), split="train", field="text")
    return data.build_eval(
      sources=[source | dict(weight=1.0)], tokenizer="bytes",
      tokenizer_vocab=0, task=dict(kind="next_token"), split="validation",
      batch=batch, length=length, segments=False, validation=0.2,
      root=str(root), say=lambda *_: None,
    )  # fmt: skip

  return make


PAIRS = np.random.default_rng(0).normal(size=(V, V)).astype(np.float32)


def of_pairs(params, batch, key=None, **_):
  """How likely a byte is after another: a model that compiles at once.

  Its loss is more than its likelihood, as that of a decoder is.
  """
  nll_BT = optax.softmax_cross_entropy_with_integer_labels(
    params["table"][batch["tokens"]], batch["targets"]
  )
  nll, loss = (Mean.of(x, batch["weights"]) for x in (nll_BT, nll_BT + 0.1))
  return {"nll": nll, "loss": loss}


def mesh_of(**sizes):
  axes = {axis: 1 for axis in sharding.AXES} | sizes
  n = math.prod(axes.values())
  return sharding.make_mesh(**axes, devices=jax.devices()[:n])


def measure(found, mesh, poll=None, score=of_pairs):
  loss = Loss(score, found, mesh, name="held", poll=poll)
  return loss(3, tiny.state_of({"table": PAIRS}))


def reference(found):
  """Sum of -log p over the set, in float64."""
  total, count = 0.0, 0
  for index in range(found.batches):
    batch = found.rows(index, slice(None))
    z = PAIRS[batch["tokens"]].astype(np.float64)
    z = z - np.log(np.exp(z).sum(-1, keepdims=True))
    own = np.take_along_axis(z, batch["targets"][..., None], -1)[..., 0]
    real = batch["weights"] > 0
    total, count = total - own[real].sum(), count + int(real.sum())
  return total, count


def test_the_loss_is_the_mean_over_every_target_once(eval_set):
  found = eval_set(batch=7, length=24)
  last = found.rows(found.batches - 1, slice(None))["weights"]
  assert 0 < last.sum() < last.size  # a ragged end, or this shows nothing
  total, count = reference(found)
  assert count == found.targets
  values = measure(found, mesh_of())
  assert values["eval/held/loss"] == pytest.approx(total / count, rel=1e-6)
  assert values["eval/held/perplexity"] == pytest.approx(
    math.exp(total / count), rel=1e-5
  )
  assert values["eval/held/bits_per_byte"] == pytest.approx(
    total / math.log(2) / found.counts["bytes"], rel=1e-6
  )
  assert values["eval/held/gzip_bits_per_byte"] == found.yardsticks["gzip"]
  # Of examples, such as labels of images, no perplexity is told.
  found.counts = {"examples": 3}
  again = measure(found, mesh_of())
  assert again["eval/held/loss"] == values["eval/held/loss"]
  assert "eval/held/perplexity" not in again


def test_a_mesh_changes_nothing(eval_set):
  found = eval_set(batch=8, length=24)
  one = measure(found, mesh_of())
  many = measure(found, mesh_of(data=2, fsdp=2))
  assert many == pytest.approx(one, rel=1e-5)


def test_an_evaluation_can_be_stopped_between_batches(eval_set):
  calls = []

  def poll():
    calls.append(1)
    if len(calls) == 3:
      raise Stopped("now")

  with pytest.raises(Stopped):
    measure(eval_set(batch=2, length=24), mesh_of(), poll)
  assert len(calls) == 3


def test_a_missed_target_is_an_error_and_not_a_better_loss(eval_set):
  found = eval_set(batch=7, length=24)
  found.targets += 1
  with pytest.raises(BadData, match="counted"):
    measure(found, mesh_of())


def test_bits_per_byte_from_nats():
  # 1000 tokens of ln 4 nats, two bits each, over 500 bytes: 4 bits a byte.
  found = results(1000 * math.log(4), 1000, 500)
  assert found["bits_per_byte"] == pytest.approx(4.0)
  assert found["perplexity"] == pytest.approx(4.0)
  assert "bits_per_byte" not in results(1.0, 1, 0)
  assert math.isfinite(results(1e9, 1, 1)["perplexity"])


def test_every_mean_of_the_objective_is_given(eval_set):
  """An accuracy, say: of all rows together, whatever batch they are in."""

  def with_more(params, batch, key):
    right = batch["weights"] * (batch["targets"] % 2)
    more = Mean(jnp.sum(right), jnp.sum(batch["weights"]))
    return of_pairs(params, batch) | {"accuracy": more}

  found = eval_set(4, 16)
  values = measure(found, mesh_of(), score=with_more)
  right = total = 0.0
  for index in range(found.batches):
    batch = found.rows(index, slice(None))
    right += float((batch["weights"] * (batch["targets"] % 2)).sum())
    total += float(batch["weights"].sum())
  assert values["eval/held/accuracy"] == pytest.approx(right / total)


def test_the_loss_of_nothing_is_no_number(eval_set):
  """Not 0, which would be the best there is."""
  found = eval_set(batch=7, length=24).first(1)
  found.targets = None

  def nothing(params, batch, key, **_):
    none = Mean(jnp.zeros(()), jnp.zeros(()))
    return {"loss": none, "loss_quarter1": none}

  values = Loss(nothing, found, mesh_of(), name="held").measure({})
  assert math.isnan(values["loss"]) and "perplexity" not in values
  assert "loss_quarter1" not in values
