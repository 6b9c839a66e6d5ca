"""What is read of a frozen run is of one step of it."""

import json
import pathlib
import re

import jax
import numpy as np
import pytest

from aigc_jax import run
from aigc_jax.errors import BadConfig
from aigc_jax.run import origin, overrides
from aigc_jax.run.load import frozen_digest, frozen_of, read_frozen_parts
from aigc_jax.trainer import history, identity, manifest

PLACE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
PARAMS = {"vq": {"w": (2,)}}
STATS = {"vq": {"codes": (3,)}, "own": {"scale": (1,)}}


def filled(shapes, value: float):
  made = jax.tree.map(
    lambda shape: np.full(shape, value, np.float32), shapes,
    is_leaf=lambda x: isinstance(x, tuple),
  )  # fmt: skip
  return jax.device_put(made, PLACE)


def abstract(shapes):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=PLACE),
    filled(shapes, 0.0),
  )


def save(folder, ours, *steps: int) -> None:
  """A VQ of its own, whose every number is its step."""
  saved = history.checkpoints_in(folder, ours, keep=5)
  for step in steps:
    values = {"params": PARAMS["vq"], "stats": STATS["vq"]}
    saved.commit(step, {k: filled(x, step) for k, x in values.items()}, {})
  saved.close()


@pytest.fixture
def frozen(tmp_path):
  """(the work directory of a run of two steps, its identity)."""
  ours = identity.new()
  (tmp_path / "config.json").write_text(json.dumps({"model": {"kind": "vq"}}))
  (tmp_path / "run.json").write_text(json.dumps({"run": ours.as_json()}))
  save(tmp_path, ours, 1, 2)
  return tmp_path, ours


def parts(folder, said: list):
  config = {"frozen": {"vq": str(folder)}, "init_from": None}
  params, stats, _ = read_frozen_parts(
    config, None, None, abstract(PARAMS), abstract(STATS), say=said.append
  )
  assert set(stats) == {"vq"}  # those of others stay
  return int(params["vq"]["w"][0]), int(stats["vq"]["codes"][0])


def test_parameters_and_stats_are_of_one_step_of_a_run_that_goes_on(
  frozen, monkeypatch
):
  folder, ours = frozen
  look, later = history.checkpoints_in, iter(range(3, 99))

  def looking(workdir, run, **changed):
    monkeypatch.setattr(history, "checkpoints_in", look)
    found = look(workdir, run, **changed)
    read = found.restore_parts

    def and_saving(*args):
      result = read(*args)
      save(folder, ours, next(later))
      return result

    found.restore_parts = and_saving
    monkeypatch.setattr(history, "checkpoints_in", looking)
    return found

  monkeypatch.setattr(history, "checkpoints_in", looking)
  said = []
  assert parts(folder, said) == (2, 2)
  assert said == [f"frozen vq from {folder}, step 2"]


def test_parameters_and_stats_are_of_one_step_where_one_is_damaged(frozen):
  folder, ours = frozen
  path = folder / "checkpoints/2/manifest.json"
  content = json.loads(path.read_text())
  (leaf,) = (x for x in content["leaves"] if x["name"] == "params/w")
  leaf["digest"] = [1, 2]
  manifest.write(
    path.parent, step=2, leaves=content["leaves"], meta=content["meta"],
    run=ours,
  )  # fmt: skip
  assert parts(folder, []) == (1, 1)


def test_a_frozen_part_from_where_no_run_is_is_refused(tmp_path):
  with pytest.raises(BadConfig, match="there is no run in this folder"):
    parts(tmp_path / "nowhere", [])


def test_a_run_of_before_finds_the_step_that_it_was_trained_beside(frozen):
  folder, _ = frozen
  config = {"frozen": {"vq": str(folder)}, "init_from": None}
  for step, steps in ((2, {}), (1, {str(folder): 1})):
    meta = {"frozen_digest": frozen_digest(filled(PARAMS, step))}
    found = frozen_of(
      {"step": 9, "meta": meta}, config, None, None, abstract(PARAMS)
    )
    assert int(found[0]["vq"]["w"][0]) == step and found[1] == steps
    read = read_frozen_parts(
      config, None, None, abstract(PARAMS), abstract(STATS), found[1]
    )
    assert int(read[1]["vq"]["codes"][0]) == step
  for other in ([1, 2], 7, "x"):
    content = {"step": 9, "meta": {"frozen_digest": other}}
    with pytest.raises(BadConfig, match="not those that step 9 was trained"):
      frozen_of(content, config, None, None, abstract(PARAMS))


def test_a_run_says_the_steps_of_all_runs_that_it_was_begun_beside(tmp_path):
  """Each has gone on since then: none could be looked for by itself."""
  shapes = {name: PARAMS["vq"] for name in ("vq", "text")}
  for name in shapes:
    folder, ours = tmp_path / name, identity.new()
    folder.mkdir()
    (folder / "config.json").write_text('{"model": {"kind": "vq"}}')
    (folder / "run.json").write_text(json.dumps({"run": ours.as_json()}))
    save(folder, ours, 1, 2)
  where = {name: str(tmp_path / name) for name in shapes}
  config = {"frozen": where, "init_from": None}
  meta = {"frozen_digest": frozen_digest(filled(shapes, 1))}

  def found(**more):
    content = {"step": 9, "meta": meta | more}
    return frozen_of(content, config, None, None, abstract(shapes))

  with pytest.raises(BadConfig, match="not those that step 9 was trained"):
    found()
  origins = dict.fromkeys(where.values(), 1)
  params, steps = found(origins=origins)
  assert steps == origins
  assert all(int(params[name]["w"][0]) == 1 for name in shapes)
  *_, read = read_frozen_parts(
    config, None, None, abstract(shapes), None, steps
  )
  assert read == origins
  with pytest.raises(BadConfig, match="not those"):  # a step that is gone
    found(origins=dict.fromkeys(where.values(), 7))


@pytest.mark.parametrize(
  ("given", "part"),
  [("latent.py", "vae"), ("dalle.py", "vq"), ("prompted.py:b2_clip", "text")],
)
def test_a_part_that_a_preset_leaves_to_be_named_is_told_so(given, part):
  config = run.read(overrides.configured(f"configs/{given}", []))
  with pytest.raises(BadConfig) as refusal:
    origin.check_frozen_origins(config)
  told = str(refusal.value)
  (found,) = re.findall(r"a run of yours, such as one of (\S+\.py)\. ", told)
  assert (pathlib.Path(__file__).parents[1] / found).is_file()
  assert f"--config.frozen.{part}=DIR" in told
