"""Several runs in one program: each is as it is alone."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import run, sharding
from aigc_jax.errors import BadConfig
from aigc_jax.presets import skeleton
from aigc_jax.run import overrides
from aigc_jax.run.settings import plain_of
from aigc_jax.trainer import joint

TINY = (
  ("data.batch", "4"), ("data.length", "8"), ("data.tokenizer", "bytes"),
  ("model.vocab", "257"), ("model.layers", "1"), ("model.dim", "16"),
  ("model.heads", "2"), ("steps", "20"), ("optim.warmup_steps", "2"),
)  # fmt: skip
VARIANTS = (
  (),
  (("seed", "1"), ("optim.learning_rate", "0.01"), ("optim.b1", "0.8")),
  (("optim.weight_decay", "0.3"), ("optim.b2", "0.99"),
   ("model.init_std", "0.02"), ("optim.clip", "0.3")),
)  # fmt: skip


def built(*settings):
  config = run.read(overrides.apply(plain_of(skeleton()), [*TINY, *settings]))
  return run.build(config, sharding.mesh_of(jax.devices()[0]))


def program_of(runs):
  return joint.batched(
    [r.step for r in runs], [r.state for r in runs], [r.batch for r in runs]
  )


def some_batch(r, seed: int):
  draw = np.random.default_rng(seed)
  return {
    name: jnp.asarray(
      draw.integers(0, 257, x.shape) if x.dtype == jnp.int32
      else np.ones(x.shape), x.dtype,
    )
    for name, x in r.batch.items()
  }  # fmt: skip


@pytest.fixture(scope="module")
def first():
  return built(*VARIANTS[0])


@pytest.fixture(scope="module")
def three():
  """Runs that differ in numbers, and the program of all of them."""
  runs = [built(*settings) for settings in VARIANTS]
  with jax.set_mesh(runs[0].mesh):
    f = program_of(runs)
  return runs, jax.jit(f)


@pytest.mark.slow
def test_runs_that_differ_in_numbers_are_each_as_they_are_alone(three):
  runs, program = three
  with jax.set_mesh(runs[0].mesh):
    alone = [r.init() for r in runs]
    joined = [r.init() for r in runs]
    steps = [jax.jit(r.step) for r in runs]
    stack = joint.stacked(joined)
    for n in range(4):
      batches = [some_batch(r, 10 * n + k) for k, r in enumerate(runs)]
      stack, found = program(stack, batches)
      for k, step in enumerate(steps):
        alone[k], metrics = step(alone[k], batches[k])
        for name in ("train/loss", "optim/learning_rate"):
          a, b = metrics[name], found[k][name]
          np.testing.assert_allclose(a, b, rtol=2e-5, err_msg=f"{k}: {name}")
        same = metrics["data/batch_hash"] == found[k]["data/batch_hash"]
        assert bool(same)
    joined = [
      joint.Share(stack, k, jax.tree.map(lambda x: x.sharding, state)).own
      for k, state in enumerate(joined)
    ]
    for one, other in zip(alone, joined, strict=True):
      assert jax.tree.map(lambda x: x.dtype, one) == jax.tree.map(
        lambda x: x.dtype, other
      )
      jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
        one.params, other.params,
      )  # fmt: skip
  # And they are three, not one.
  rates = {float(m["optim/learning_rate"]) for m in found}
  assert len(rates) == 2
  leaves = [jax.tree.leaves(s.params)[0] for s in joined]
  assert not np.allclose(leaves[0], leaves[1])
  assert not np.allclose(leaves[0], leaves[2])


@pytest.mark.parametrize(
  "other",
  [
    ("optim.kind", "lion"), ("model.dim", "24"), ("data.batch", "8"),
    ("optim.schedule", "constant"),
  ],
)  # fmt: skip
def test_runs_that_differ_in_more_than_numbers_are_refused(first, other):
  with jax.set_mesh(first.mesh):
    with pytest.raises(BadConfig, match="may differ in numbers only"):
      program_of([first, built(other)])


def meet(count: int, takes):
  """The results of `count` threads; takes(k): how many steps each takes."""
  widths, out = [], {}

  def program(stack, batches):
    widths.append(len(stack))
    return stack + jnp.array(batches), [{}] * len(batches)

  meeting = joint.Meeting(lambda *_: program, count)

  def work(k):
    state, step = jnp.array(10 * k), meeting.advance(k, None)
    for _ in range(takes(k)):
      state, _ = step(state, 1)
    out[k] = int(joint.own(state))
    meeting.leave(k)

  threads = [threading.Thread(target=work, args=(k,)) for k in range(count)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(20)
    assert not thread.is_alive()
  return out, widths


def test_runs_of_different_lengths_leave_the_others_to_themselves():
  out, widths = meet(3, lambda k: 2 + k)
  assert out == {0: 2, 1: 13, 2: 24}
  assert widths == [3] * 4  # one program, as wide as ever


def test_what_the_program_raises_all_runs_raise():
  def program(states, batches):
    raise ValueError("no")

  meeting, found = joint.Meeting(lambda *_: program, 2), []

  def work(k):
    try:
      meeting.advance(k, None)(jnp.array(0), 0)
    except ValueError as error:
      found.append(str(error))

  threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(20)
  assert found == ["no", "no"]
