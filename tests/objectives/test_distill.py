"""Roles, and what a student learns from a teacher."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from aigc_jax import models
from aigc_jax.errors import BadConfig
from aigc_jax.layers.readout import Readout
from aigc_jax.models.encoder import Encoded
from aigc_jax.objectives import OBJECTIVES
from aigc_jax.run import scorer
from aigc_jax.run.parts import check_parts, with_parts
from aigc_jax.trainer.state import Fixed, State
from tests import fresh, tiny

distill = OBJECTIVES["distill"]
PART = {"kind": "decoder"} | tiny.LLAMA | dict(layers=1)
PARTS = dict(student=PART, teacher=PART | dict(layers=2, dim=32))


def batch(rows=4, length=6):
  ids = tiny.some_tokens(rows, length + 1)
  weights = np.ones((rows, length), np.float32)
  weights[0, 2:] = 0
  return dict(
    tokens=ids[:, :-1], targets=ids[:, 1:], weights=jnp.asarray(weights)
  )


def both_and_params(parts):
  both = models.MODELS["roles"](parts=parts)
  return both, fresh.variables(both, both.example())["params"]


def said(model, params, *role):
  """Logits (B, T, V) of the batch."""
  f = jax.jit(lambda p, b: model.apply({"params": p}, b, *role).logits())
  return f(params, batch())


@pytest.mark.slow
def test_each_role_is_the_model_by_itself():
  both, params = both_and_params(PARTS)
  assert set(params) == {"student", "teacher"}
  for name, section in PARTS.items():
    rest = {k: v for k, v in section.items() if k != "kind"}
    alone = models.MODELS["decoder"](**rest)
    np.testing.assert_array_equal(
      said(both, params, name), said(alone, params[name])
    )
  with pytest.raises(BadConfig, match="'judge', and model.parts has student"):
    both.apply({"params": params}, batch(), "judge")


@pytest.mark.slow
def test_the_loss_is_what_its_definition_says_however_it_is_cut():
  both, params = both_and_params(PARTS)
  z, t = (
    np.asarray(said(both, params, name), float)
    for name in ("student", "teacher")
  )

  def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))

  p, q = log_softmax(z / 3), log_softmax(t / 3)
  w = np.asarray(batch()["weights"])
  soft = 9 * ((np.exp(q) * (q - p)).sum(-1) * w).sum() / w.sum()
  hard = log_softmax(z)
  y = np.asarray(batch()["targets"])
  nll = -(np.take_along_axis(hard, y[..., None], -1)[..., 0] * w).sum()
  for chunk in (None, 5, 24):
    score = scorer(
      both,
      lambda predict, batch, chunk=chunk: distill(
        predict, batch, temperature=3.0, soft=2.0, hard=0.5, chunk=chunk
      ),
    )
    found = jax.jit(lambda p, b, score=score: score(p, b, None))(
      params, batch()
    )
    assert found["soft"].value() == pytest.approx(soft, rel=1e-4)
    assert found["loss"].value() == pytest.approx(
      2 * soft + 0.5 * nll / w.sum(), rel=1e-4
    )


WEIGHTS = [dict(soft=0.0, hard=1.0), dict(soft=2.0, hard=3.0)]


def by_definition(z_BTV, t_BTV, soft, hard):
  """What a student of logits z loses beside a teacher of logits t, at 2."""
  log_p = jax.nn.log_softmax(z_BTV)
  w, y = batch()["weights"], batch()["targets"]
  nll = -jnp.take_along_axis(log_p, y[..., None], -1)[..., 0]
  p, q = jax.nn.log_softmax(z_BTV / 2), jax.nn.log_softmax(t_BTV / 2)
  kl = 4 * (jnp.exp(q) * (q - p)).sum(-1)
  return jnp.sum((soft * kl + hard * nll) * w)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_each_term_of_the_loss_moves_what_the_student_says(weights):
  draw = np.random.default_rng(0)
  said = {
    name: Readout(
      *(draw.normal(size=s).astype(np.float32) for s in ((4, 6, 5), (37, 5)))
    )
    for name in ("student", "teacher")
  }

  def defined(student):
    z, t = (x.logits() for x in (student, said["teacher"]))
    return by_definition(z, t, **weights)

  def ours(student):
    both = said | {"student": student}
    predict = lambda _, role: both[role]  # noqa: E731
    return distill(predict, batch(), **weights)["loss"].sum

  found, right = (
    jax.jit(jax.value_and_grad(f))(said["student"]) for f in (ours, defined)
  )
  assert all(np.abs(x).max() > 0.1 for x in jax.tree.leaves(right))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    found, right,
  )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("weights", WEIGHTS)
def test_each_term_of_the_loss_moves_the_student(weights):
  both, params = both_and_params(PARTS)

  def defined(student):
    z = both.apply(
      {"params": params | {"student": student}}, batch(), "student"
    ).logits()
    t = both.apply({"params": params}, batch(), "teacher").logits()
    return by_definition(z, t, **weights)

  def ours(student):
    score = scorer(both, lambda predict, b: distill(predict, b, **weights))
    return score(params | {"student": student}, batch(), None)["loss"].sum

  found = jax.jit(jax.grad(ours))(params["student"])
  right = jax.jit(jax.grad(defined))(params["student"])
  assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(right)) > 0.1
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    found, right,
  )  # fmt: skip


@pytest.mark.slow
def test_a_frozen_teacher_drops_nothing_while_its_student_does():
  both, params = both_and_params(
    {name: part | dict(dropout=0.3) for name, part in PARTS.items()}
  )
  seen = {}

  def objective(predict, batch):
    for name in ("student", "teacher"):
      seen[name] = predict(batch, name).logits()
    return {}

  still, moving = (
    (scorer(both, objective, ("teacher",))(params, batch(), key), dict(seen))[1]
    for key in (None, jax.random.key(0))
  )
  np.testing.assert_array_equal(still["teacher"], moving["teacher"])
  assert np.any(still["student"] != moving["student"])


@pytest.mark.slow
def test_a_frozen_teacher_is_read_and_gets_no_gradient():
  both, params = both_and_params(PARTS)
  score = scorer(both, distill)
  fixed = Fixed(frozen={"teacher": params["teacher"]})

  def loss(student):
    means = score(student, batch(), jax.random.key(0), fixed=fixed)
    return means["loss"].sum

  apart = jax.jit(jax.grad(loss))({"student": params["student"]})
  whole = jax.jit(jax.grad(lambda p: score(p, batch(), None)["loss"].sum))(
    params
  )
  jax.tree.map(
    np.testing.assert_array_equal, apart["student"], whole["student"]
  )
  assert all(not np.any(x) for x in jax.tree.leaves(whole["teacher"]))


@pytest.mark.slow
def test_a_student_that_is_its_teacher_has_no_soft_loss():
  x = jax.random.normal(jax.random.key(0), (2, 3, 5))
  table = jax.random.normal(jax.random.key(1), (7, 5))
  same = Encoded(x, Readout(x, table))
  one = dict(
    at=jnp.zeros((2, 3), jnp.int32), targets=jnp.zeros((2, 3), jnp.int32),
    weights=jnp.ones((2, 3)),
  )  # fmt: skip
  found = distill(lambda batch, role: same, one, cosine=1.0)
  assert found["soft"].value() == pytest.approx(0.0, abs=1e-5)
  assert found["cosine"].value() == pytest.approx(0.0, abs=1e-5)
  turned = Encoded(-x, Readout(x, table))
  found = distill(
    lambda batch, role: same if role == "student" else turned, one, cosine=1.0
  )
  assert found["cosine"].value() == pytest.approx(2.0)


@pytest.mark.slow
def test_parts_that_cannot_be_compared_are_refused_by_name():
  make = models.MODELS["roles"]
  with pytest.raises(BadConfig, match="model.parts is empty"):
    make(parts={})
  with pytest.raises(BadConfig, match="model.parts.a.kind"):
    make(parts=dict(a=PART | dict(kind="decodr")))
  with pytest.raises(BadConfig, match="in one dtype"):
    make(parts=dict(a=PART, b=PART | dict(dtype="bfloat16")))
  wide, params = both_and_params(PARTS | dict(teacher=PART | dict(vocab=41)))
  with pytest.raises(BadConfig, match="student predicts 37 ids and the"):
    jax.eval_shape(lambda p: scorer(wide, distill)(p, batch(), None), params)


def state_of(layers):
  small = PART | dict(layers=len(layers))
  _, params = both_and_params(
    PARTS | dict(student=small, teacher=PART | dict(layers=4))
  )
  config = {"init_parts": {"student": {"part": "teacher", "layers": layers}}}
  state = State(
    step=0, seed=0, skipped=0, params={"student": params["student"]},
    opt_state=None, frozen={"teacher": params["teacher"]},
  )  # fmt: skip
  check_parts(config, jax.eval_shape(lambda: params))
  return params, with_parts(config, state)


@pytest.mark.slow
def test_a_student_starts_as_layers_of_its_teacher():
  params, state = state_of([0, 2])
  own, theirs = state.params["student"], params["teacher"]
  w = ("stack", "mlp", "up", "w")
  for key in w:
    own, theirs = own[key], theirs[key]
  np.testing.assert_array_equal(own, theirs[jnp.array([0, 2])])
  np.testing.assert_array_equal(
    state.params["student"]["embed"]["table"],
    params["teacher"]["embed"]["table"],
  )
  with pytest.raises(BadConfig, match=r"layers=\[0, 4\]: there are 4"):
    state_of([0, 4])
