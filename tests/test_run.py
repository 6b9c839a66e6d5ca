"""Config to run: keys, sizes, the same curve on every mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import errors, run, tree
from aigc_jax.presets import skeleton
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


@pytest.mark.parametrize(
  "name", sweep(["fsdp", "mixed", "sequence", "all"], "all")
)
def test_every_mesh_gives_the_same_start_and_the_same_curve(name, one):
  curve, first = losses(config(mesh=MESHES[name]))
  np.testing.assert_array_equal(first, one[1])
  np.testing.assert_allclose(curve, one[0], rtol=2e-5)


def test_the_curve_depends_on_the_seed(one):
  other, _ = losses(config(seed=1, mesh=MESHES["data"]), 1)
  assert other[0] != one[0][0]


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    (dict(data__batch=7), "nearest batches that do: 8"),
    (dict(microbatches=3), "6 and 9"),
    (dict(data__batch=0), "data.batch=0"),
    (dict(steps_per_call=3), "not a multiple of steps_per_call=3"),
    (dict(stepz=3), "did you mean 'steps'"),
    (dict(model__layrs=3), "did you mean 'layers'"),
    (dict(data__bach=3), "did you mean 'batch'"),
    (dict(optim__learning_rat=3), "did you mean 'learning_rate'"),
    (dict(objective__chnk=3), "did you mean 'chunk'"),
    (dict(mesh__fdsp=3), "did you mean 'fsdp'"),
    (dict(model__kind="decodr"), "did you mean 'decoder'"),
    (dict(objective__kind="token"), "did you mean 'tokens'"),
    (dict(objective__logits="bf16"), "objective.logits 'bf16'"),
    (dict(model__embed_gradient="atuo"), "did you mean 'auto'"),
    (dict(model__heads=3), "kv_heads"),
    (
      dict(model__head_dim=None, model__heads=3, model__kv_heads=3),
      "15 and 18",
    ),
    (dict(model__dtype="bf16"), "bfloat16"),
    (dict(mesh__tensor=3), "8 device"),
    (dict(data__length=9, mesh__sequence=2), "data.length=9"),
    (dict(checkpoint__kep=3), "did you mean 'keep'"),
    (dict(steps=-1), "steps=-1"),
  ],
)
def test_what_cannot_work_is_refused_by_name(changes, words):
  with pytest.raises(errors.BadConfig, match=words):
    run.build(run.read(config(**changes)))


@pytest.mark.parametrize("section", ["model", "optim", "objective", "data"])
def test_a_missing_key_is_refused_by_name(section):
  c = config()
  key = sorted(k for k in c[section] if k != "kind")[0]
  with c.unlocked():
    del c[section][key]
  with pytest.raises(errors.BadConfig, match=f"{section}.{key} is missing"):
    run.build(run.read(c))


def test_total_tokens_stand_in_for_steps():
  assert run.read(config(total_tokens=641))["steps"] == 11


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
