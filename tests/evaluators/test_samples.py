"""Samples are written at each step with the same seed."""

import types

import jax

from aigc_jax import sharding
from aigc_jax.data import load_tokenizer
from aigc_jax.evaluators.samples import Samples
from tests import tiny


def test_samples_are_written_and_differ_by_the_model_alone(tmp_path):
  model = tiny.build("llama", vocab=257, layers=1, unroll=0)
  tokens = {"tokens": jax.numpy.zeros((1, 2), "int32")}
  axes = {axis: 1 for axis in sharding.AXES}
  mesh = sharding.make_mesh(**axes, devices=jax.devices()[:1])
  polls = []
  samples = Samples(
    model, load_tokenizer("bytes"), mesh, tmp_path / "samples",
    prompts=["a", ""], max_tokens=9, temperature=1.0, top_p=1.0, num_samples=1,
    seed=3, positions=0, unrolled=True, poll=lambda: polls.append(1),
  )  # fmt: skip
  states = [
    types.SimpleNamespace(params=sharding.nn.unbox(
      model.init(jax.random.key(k), tokens)["params"]
    ))
    for k in (0, 1)
  ]  # fmt: skip
  assert samples(10, states[0]) == {}
  compiles = samples._engine.compiles
  for step, state in ((20, states[1]), (30, states[0])):
    samples(step, state)
  assert samples._engine.compiles == compiles and polls
  texts = [
    (tmp_path / "samples" / f"{n}.txt").read_text("utf-8").split("\n", 1)
    for n in (10, 20, 30)
  ]
  assert texts[0][0] == "step 10"
  assert texts[0][1] == texts[2][1] != texts[1][1]
