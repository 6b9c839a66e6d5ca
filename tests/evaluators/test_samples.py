"""Samples are written at each step with the same seed."""

import types

import jax
import numpy as np
import pytest

from aigc_jax import run, sharding
from aigc_jax.data import load_tokenizer
from aigc_jax.errors import BadConfig
from aigc_jax.evaluators.samples import Samples
from configs import quickstart
from tests import fresh, tiny


def test_samples_are_written_and_differ_by_the_model_alone(tmp_path):
  model = tiny.build("llama", vocab=257, layers=1, unroll=0)
  tokens = {"tokens": jax.ShapeDtypeStruct((1, 2), "int32")}
  axes = {axis: 1 for axis in sharding.AXES}
  mesh = sharding.make_mesh(**axes, devices=jax.devices()[:1])
  polls = []
  samples = Samples(
    model, load_tokenizer("bytes"), mesh, tmp_path / "samples",
    prompts=["a", ""], max_tokens=9, temperature=1.0, top_p=1.0, num_samples=1,
    seed=3, positions=0, unrolled=True, poll=lambda: polls.append(1),
  )  # fmt: skip
  params = jax.device_get(fresh.variables(model, tokens)["params"])
  states = [
    types.SimpleNamespace(params=p)
    for p in (params, jax.tree.map(np.negative, params))
  ]
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

  # A model that predicts no numbers writes nothing, and is trained on.
  none = jax.tree.map(lambda x: np.full_like(x, np.nan), params)
  assert samples(40, types.SimpleNamespace(params=none)) == {}
  assert not (tmp_path / "samples" / "40.txt").exists()


@pytest.mark.parametrize(
  ("changes", "why"),
  [
    (dict(max_tokens=0), "max_tokens=0: expected 1 or more"),
    (dict(num_samples=0), "num_samples=0: expected 1 or more"),
    (dict(temperature=-1.0), "temperature=-1.0: expected"),
    (dict(top_p=0.0), "top_p=0.0: expected"),
    (dict(positions=12), "and the model has 12 .max_tokens=8 fits"),
    (dict(positions=4), "the model has 4 .shorten the prompt"),
  ],
)  # fmt: skip
def test_texts_that_cannot_be_written_are_refused_before_the_training(
  tmp_path, changes, why
):
  """The first may be due at its end."""
  settings = dict(
    prompts=["abcd"], max_tokens=9, temperature=1.0, top_p=1.0, num_samples=1,
    seed=3, positions=13, unrolled=True,
  )  # fmt: skip
  model, tokenizer = tiny.build("llama", vocab=257), load_tokenizer("bytes")
  Samples(model, tokenizer, None, tmp_path, **settings)
  with pytest.raises(BadConfig, match=why):
    Samples(model, tokenizer, None, tmp_path, **settings | changes)


def test_a_dry_run_refuses_texts_that_cannot_be_written():
  config = run.read(quickstart.get_config())
  for key, value in (("temperature", -1.0), ("max_tokens", 0)):
    entry = config["evaluate"]["samples"] | {key: value}
    with pytest.raises(BadConfig, match=f"evaluate.samples.{key}=.*expected"):
      run.check_evaluators(config | {"evaluate": {"samples": entry}})
  model = config["model"] | dict(position="learned", position_length=32)
  with pytest.raises(BadConfig, match="max_tokens: the model has 32 positions"):
    run.check_evaluators(config | {"model": model})
