"""Config to run: keys, sizes, the same curve on every mesh."""

import copy
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import errors, run, tree
from aigc_jax.planning import summary
from aigc_jax.presets import skeleton
from aigc_jax.run import alike, session
from aigc_jax.trainer.consumed import Consumed
from configs import latent
from tests.sweep import sweep

ONE = dict(data=1, fsdp=1, expert=1, tensor=1, sequence=1, pipeline=1)
MESHES = {
  "data": ONE | dict(data=8),
  "fsdp": ONE | dict(fsdp=8),
  "mixed": ONE | dict(data=2, fsdp=2, tensor=2),
  "sequence": ONE | dict(fsdp=4, sequence=2),
  "all": ONE | dict(fsdp=2, tensor=2, sequence=2),
}


def config(**changes):
  """A tiny config; changes are "section.key" with "__" for the dot."""
  c = skeleton()
  c.steps = 20
  c.data.update(batch=8, length=8, tokenizer="bytes")
  c.model.update(
    vocab=64, layers=2, dim=16, heads=4, kv_heads=2, head_dim=8, mlp_dim=24
  )
  c.optim.update(learning_rate=1e-2, warmup_steps=4)
  c.objective.chunk = 16
  with c.unlocked():
    for key, value in changes.items():
      section, _, name = key.partition("__")
      if name:
        c[section][name] = value
      else:
        c[section] = value
  return c


def losses(c, steps: int = 20):
  """The loss curve on fixed batches, and the digests of first and last."""
  r = run.build(run.read(c))
  rng = np.random.default_rng(0)
  with jax.set_mesh(r.mesh):
    state, advance, found = r.init(), r.advance(), []
    first = np.asarray(jax.jit(tree.digest)(state))
    for _ in range(steps):
      draw = rng.integers(0, 64, (2, 8, 8)).astype(np.int32)
      weights = (rng.random((8, 8)) < 0.8).astype(np.float32)
      batch = dict(tokens=draw[0], targets=draw[1], weights=weights)
      placed = jax.device_put(
        batch, {k: x.sharding for k, x in r.batch.items()}
      )
      state, metrics = advance(state, placed)
      found.append(float(metrics["train/loss"]))
  return found, first


@pytest.fixture(scope="module")
def one():
  return losses(config(mesh=MESHES["data"]))


@pytest.mark.slow
@pytest.mark.parametrize(
  "name", sweep(["fsdp", "mixed", "sequence", "all"], "all")
)
def test_every_mesh_gives_the_same_start_and_the_same_curve(name, one):
  curve, first = losses(config(mesh=MESHES[name]))
  np.testing.assert_array_equal(first, one[1])
  np.testing.assert_allclose(curve, one[0], rtol=2e-5)


@pytest.mark.slow
def test_the_curve_depends_on_the_seed(one):
  other, _ = losses(config(seed=1, mesh=MESHES["data"]), 1)
  assert other[0] != one[0][0]


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    (dict(data__batch=7), "nearest batches that do: 8"),
    (dict(compute__microbatches=3), "6 and 9.*--config.compute.microbatches=1"),
    (dict(compute__microbatches=6), "--config.compute.microbatches=2"),
    (dict(data__batch=0), "data.batch=0"),
    (
      dict(compute__steps_per_call=3),
      "not a multiple of compute.steps_per_call=3",
    ),
    (
      dict(compute__steps_per_call=8),
      "--config.compute.steps_per_call=4, which fits",
    ),
    (dict(stepz=3), "did you mean 'steps'"),
    (dict(model__layrs=3), "did you mean 'layers'"),
    (dict(data__bach=3), "did you mean 'batch'"),
    (dict(optim__learning_rat=3), "did you mean 'learning_rate'"),
    (dict(objective__chnk=3), "did you mean 'chunk'"),
    (dict(mesh__fdsp=3), "did you mean 'fsdp'"),
    (dict(model__kind="decodr"), "did you mean 'decoder'"),
    (dict(objective__kind="token"), "did you mean 'tokens'"),
    (dict(objective__logits="bf16"), "objective.logits 'bf16'"),
    (dict(compute__embed_gradient="atuo"), "did you mean 'auto'"),
    (dict(model__heads=3), "kv_heads"),
    (
      dict(model__head_dim=None, model__heads=3, model__kv_heads=3),
      "15 and 18",
    ),
    (dict(compute__dtype="bf16"), "bfloat16"),
    (dict(mesh__tensor=3), "8 device"),
    (dict(data__length=9, mesh__sequence=2), "data.length=9"),
    (dict(checkpoint__kep=3), "did you mean 'keep'"),
    (dict(steps=-1), "steps=-1"),
    (dict(steps=10**20), "steps=10+: expected at most 2147483647"),
    (dict(model__vocab=2**31), "model.vocab=2147483648: expected at most"),
    (dict(optim__learning_rate=1e-300), "learning_rate=1e-300.*float32"),
    (dict(optim__learning_rate=1e39), "learning_rate=1e.39.*float32"),
    (dict(optim__spike_sigma=-1.0), "spike_sigma=-1.0"),
    (dict(data__path="a\udcff"), "data.path: 'a.udcff' is not UTF-8"),
  ],
)
def test_what_cannot_work_is_refused_by_name(changes, words):
  with pytest.raises(errors.BadConfig, match=words):
    run.build(run.read(config(**changes)))


@pytest.mark.parametrize(
  "section, key",
  [("model", "dim"), ("optim", "b1"), ("objective", "z_loss"),
   ("data", "batch")],
)  # fmt: skip
def test_a_missing_key_is_refused_by_name(section, key):
  c = config()
  with c.unlocked():
    del c[section][key]
  with pytest.raises(errors.BadConfig, match=f"{section}.{key} is missing"):
    run.build(run.read(c))


def settled(**changes) -> int:
  return run.build(run.read(config(**changes))).steps


@pytest.mark.parametrize(
  ("changes", "steps"),
  [
    (dict(total_tokens=641), 11),
    (dict(total_tokens=640), 10),
    (dict(total_tokens=1e3), 16),
    (dict(total_examples=81.0), 11),
    (dict(total_tokens=641, compute__steps_per_call=5, evaluate={}), 15),
  ],
)
def test_a_total_stands_in_for_steps(changes, steps):
  assert settled(steps=0, **changes) == steps


def test_a_total_of_flops_or_by_parameters_is_of_the_model():
  r = run.build(run.read(config()))
  each, count = r.each, tree.count(r.state.params)
  assert each.units == {"examples": 8, "tokens": 64}
  assert settled(steps=0, total_flops=7 * each.flops) == 7
  assert settled(steps=0, total_flops=7 * each.flops + 1) == 8
  ratio = 10 * 64 / count
  assert settled(steps=None, tokens_per_parameter=ratio) == 10


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    (dict(total_tokens=1000), "steps=20 and total_tokens=1000 both"),
    (dict(steps=0, total_tokens=9, total_flops=9), "total_flops=None"),
    (dict(steps=0, total_tokens=1.5), "total_tokens=1.5"),
    (dict(steps=0, total_tokens=-1), "total_tokens=-1"),
    (dict(steps=0, tokens_per_parameter=-1.0), "tokens_per_parameter=-1"),
    (dict(optim__warmup_fraction=0.1), "--config.optim.warmup_steps=None"),
    (dict(optim__warmup_fraction=2.0), "from 0 to 1"),
  ],
)
def test_an_end_or_a_warm_up_that_is_said_twice_is_refused(changes, words):
  with pytest.raises(errors.BadConfig, match=words):
    run.build(run.read(config(**changes)))


def test_what_is_left_is_settled_from_what_was_consumed():
  """Ten steps of 64 tokens; after six, the batch is twice as large."""
  twice = config(steps=0, total_tokens=640, data__batch=16)
  r = run.build(run.read(twice))
  assert r.steps == 5
  done = Consumed({"examples": 48, "tokens": 384}, 1)
  goes_on = r.going_on(6, done)
  assert goes_on.steps == 8  # two of 128
  assert r.going_on(9, Consumed({"examples": 99, "tokens": 999}, 1)).steps == 9
  # What is told before that is known names what ends the run, and no steps.
  assert summary.headline(r).endswith("up to 640 tokens by steps of 128 tokens")
  assert summary.headline(r, "steps").endswith(", steps of 128 tokens")
  # The schedule ends where the run does.
  assert float(goes_on.schedule(8)) == pytest.approx(1e-3)
  assert float(goes_on.schedule(6)) > 1.5e-3


def test_epochs_of_several_sources_go_by_their_weights():
  manifests = [dict(name=n, tokens=t) for n, t in (("a", 600), ("b", 40))]
  sources = [dict(weight=3.0), dict(weight=1.0)]
  rows = dict(summary.epochs(800, "tokens", manifests, sources))
  assert rows == {
    "tokens of the data": "640", "epochs of a": "1.000", "epochs of b": "5.000",
  }  # fmt: skip
  sources[1]["weight"] = 0.0  # it is not read
  rows = dict(summary.epochs(900, "tokens", manifests, sources))
  assert rows == {"tokens of the data": "600", "epochs": "1.500"}
  alone = dict(summary.epochs(80, "tokens", manifests[1:], None))
  assert alone == {"tokens of the data": "40", "epochs": "2.000"}


def test_a_total_is_reached_by_what_was_consumed_and_not_by_steps():
  plain = run.read(config(steps=0, total_tokens=768))
  mesh = run.make_mesh(plain)
  assert not run.reached(plain, mesh, {"step": 99, "tokens": 384})
  assert run.reached(plain, mesh, {"step": 1, "tokens": 768})
  plain = run.read(config())
  assert run.reached(plain, mesh, {"step": 20})
  assert not run.reached(plain, mesh, {"step": 19})


def test_a_warm_up_may_be_a_fraction_of_the_steps():
  some = dict(optim__warmup_steps=0, optim__warmup_fraction=0.25)
  r = run.build(run.read(config(**some)))
  same = run.build(run.read(config(optim__warmup_steps=5)))
  assert [float(r.schedule(n)) for n in range(20)] == [
    float(same.schedule(n)) for n in range(20)
  ]


def test_the_config_of_before_with_steps_and_their_total_is_read():
  """Older config.json had the steps that the total came to beside it."""
  plain = run.read(config(steps=11, total_tokens=641))
  assert plain["steps"] is None and plain["total_tokens"] == 641
  assert run.read(plain) == plain


def test_a_key_that_is_newer_than_a_run_is_no_change_at_its_default(tmp_path):
  """The same line goes on, of parts of a model too."""
  config = run.read(latent.get_config("tiny_sd,digits"))
  older = copy.deepcopy(config)
  del older["model"]["shift"], older["model"]["parts"]["vae"]["projects"]
  (tmp_path / "config.json").write_text(json.dumps(older))
  assert run.changed_since(tmp_path, config, run.Options()) == []
  models = config["model"], older["model"]
  assert alike.differing(*models) == alike.differing(*models[::-1]) == {}
  older["model"]["parts"]["vae"]["projects"] = False
  assert alike.differing(*models).keys() == {"parts"}
  config["model"]["shift"] = 0.1
  with pytest.raises(errors.BadConfig, match=r"model.shift: 0.0 -> 0.1"):
    run.changed_since(tmp_path, config, run.Options())


def test_building_computes_nothing():
  r = run.build(run.read(config()))
  for x in jax.tree.leaves((r.state, r.batch)):
    assert isinstance(x, jax.ShapeDtypeStruct)
    assert x.sharding is not None


def test_the_step_donates_its_state():
  r = run.build(run.read(config(mesh=MESHES["data"])))
  with jax.set_mesh(r.mesh):
    lowered = r.advance().lower(r.state, r.batch)
  assert lowered.as_text().count(
    "tf.aliasing_output"
  ) + lowered.as_text().count("jax.buffer_donor") == len(
    jax.tree.leaves(r.state)
  )


def test_logits_of_all_positions_are_never_made_in_training():
  r = run.build(run.read(config(mesh=MESHES["data"])))
  with jax.set_mesh(r.mesh):
    text = r.advance().lower(r.state, r.batch).as_text()
  assert "tensor<8x8x64xf32>" not in text
  assert jnp.dtype(r.state.params["embed"]["table"].dtype) == jnp.float32


def test_what_two_evaluators_would_say_is_said_once():
  said = []
  say = session._once(said.append)
  for line in ("a", "b", "a"):
    say(line)
  assert said == ["a", "b"]
