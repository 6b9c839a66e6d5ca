"""Sizes of activations, and of what steps move, by the size of a decoder."""

import dataclasses
import functools
import json

import numpy as np
import pytest

from aigc_jax import run
from aigc_jax.errors import BadConfig
from aigc_jax.layers import parametrization
from aigc_jax.layers.parametrization import Parametrization
from aigc_jax.presets import skeleton
from aigc_jax.scaling import coordinate_pictures, coordinates
from aigc_jax.scaling.coordinates import Series
from aigc_jax.timing.stepping import zipf_batch
from tests import commands

WIDTHS, DEPTHS = (32, 128), (4, 16)  # each is compiled anew


def config_of(**changes):
  config = skeleton()
  config.data.update(batch=2, length=16)
  config.model.update(vocab=32, layers=2, dim=32, heads=4, kv_heads=2)
  config.optim.update(kind="adamw", learning_rate=0.01, weight_decay=0.0)
  for key, value in changes.items():
    section, _, name = key.partition("_")
    config[section][name] = value
  return run.read(config)


def series(kind, axis="width", places=WIDTHS, seeds=3, grow="heads", **changes):
  return coordinates.series(
    config_of(**changes), axis, places, parametrization=kind,
    batches=zipf_batch, steps=2, seeds=seeds, grow=grow,
  )  # fmt: skip


def steep(found: Series, role: str) -> list[str]:
  return [n for n in found.steep if coordinates.class_of(n) == role]


def test_a_line_is_that_of_least_squares_in_logarithms():
  x, draw = np.array([2.0, 4, 8, 16, 64]), np.random.default_rng(0)
  y = 3.0 * x**-0.7 * np.exp(0.1 * draw.standard_normal(5))
  found = coordinates.line(x, y)
  (slope, offset), covariance = np.polyfit(
    np.log(x), np.log(y), 1, cov="unscaled"
  )
  left = np.log(y) - slope * np.log(x) - offset
  error = np.sqrt(covariance[0, 0] * (left @ left) / 3)
  np.testing.assert_allclose(found, (slope, offset, error), rtol=1e-9)
  assert coordinates.line([1, 2], [1.0, 4.0]).stderr is None
  assert coordinates.line([1, 2], [0.0, 4.0]) is None
  assert coordinates.line([1, 2, 4], [1.0, np.inf, 4.0]) is None


@functools.cache
def one():
  config = coordinates.sized(config_of(), "width", (32, 64), "mup")[32]
  size, moved = coordinates.measure(config, range(2), 1, zipf_batch)
  return size, moved


@pytest.mark.slow
def test_every_module_is_heard_and_has_a_class():
  size, moved = one()
  assert size.keys() == moved.keys() >= {
    "embed", "stack", "norm", "logits", "logits/learnt", "stack/scores",
    "stack/attention/query", "stack/attention/out", "stack/attention/read",
    "stack/mlp/gate", "stack/mlp/down", "stack/norm_mlp",
  }  # fmt: skip
  roles = {name: coordinates.class_of(name) for name in size}
  assert roles["embed"] == "input" and roles["logits/learnt"] == "output"
  assert roles["stack/mlp/down"] == "hidden"
  assert roles["stack/norm_mlp"] == roles["norm"] == "vector"
  assert roles["stack"] == roles["stack/attention/read"] == ""


@pytest.mark.slow
def test_nothing_has_moved_before_the_first_step_and_all_after_it():
  size, moved = one()
  for name in size:
    values = np.asarray(moved[name])  # by seed and step
    assert values.shape == (2, 2)
    assert (values[:, 0] == 0).all() and (values[:, 1] > 0).all(), name
    learnt = name == "logits/learnt"
    assert (np.asarray(size[name])[:, 0] == 0).all() == learnt, name
  assert size["stack"][0] != size["stack"][1]  # seeds are other models


def test_other_widths_follow_in_proportion_and_the_least_is_the_base():
  found = coordinates.sized(config_of(), "width", (128, 64), "mup")
  assert list(found) == [64, 128]
  model = found[128]["model"]
  keys = ("dim", "heads", "kv_heads", "head_dim", "mlp_dim")
  assert [model[key] for key in keys] == [128, 16, 8, 8, 352]
  assert [model[f"base_{key}"] for key in keys] == [64, 8, 4, 8, 176]
  wider = coordinates.sized(config_of(), "width", (64, 128), "mup", "head_dim")[
    128
  ]["model"]
  assert (wider["heads"], wider["head_dim"]) == (4, 32)
  deep = coordinates.sized(config_of(), "depth", (4, 2), "completep")[4]
  assert (deep["model"]["layers"], deep["model"]["base_layers"]) == (4, 2)
  own = coordinates.sized(
    config_of(model_base_dim=16), "width", (32, 64), "mup"
  )
  assert own[64]["model"]["base_dim"] == 16


@pytest.mark.parametrize(
  "axis, places, kind, words",
  [
    ("width", (64,), "mup", "a slope needs two or more, such as --widths=64"),
    ("width", (64, 64), "mup", "a slope needs two or more"),
    ("width", (64, 70), "mup", "does not divide: the nearest .* 64 and 72"),
    ("width", (64, 8), "mup", "no whole number of groups"),
    ("width", (0, 64), "mup", "expected sizes from 1"),
    ("depth", (-1, 2), "mup", "expected sizes from 1"),
    ("width", (32, 64), "mupp", "mup"),
  ],
)  # fmt: skip
def test_sizes_that_cannot_be_are_refused(axis, places, kind, words):
  with pytest.raises(BadConfig, match=words):
    coordinates.sized(config_of(), axis, places, kind)


def test_an_optimizer_of_which_nothing_is_known_is_refused():
  with pytest.raises(BadConfig, match="says nothing of optim.kind=adafactor"):
    series("mup", optim_kind="adafactor")


def made() -> Series:
  """Slopes 0 and 1 after two steps."""
  places, seen = (16, 32, 64), {}
  for name, slope in (("embed", 0.0), ("stack/mlp/up", 1.0), ("logits", -0.5)):
    seen[name] = np.stack([np.power(places, slope) * k for k in (1.0, 2, 3)])
  return Series(
    "mup", "width", places, seen, {k: x - x[0] for k, x in seen.items()}
  )


def test_the_table_marks_what_is_not_flat(tmp_path):
  text = coordinate_pictures.as_text(made())
  rows = {line.split()[0]: line for line in text.splitlines() if line}
  assert (
    rows["stack/mlp/up"].endswith("more") and "+1.00" in rows["stack/mlp/up"]
  )
  assert not rows["embed"].endswith(("more", "less"))
  assert not rows["logits"].endswith(("more", "less"))  # may fade
  assert "steepest of what 2 steps move: +1.00 (stack/mlp/up)" in text
  out = coordinate_pictures.draw([made()], tmp_path / "x.png")
  assert out.read_bytes().startswith(b"\x89PNG")
  table = json.loads(json.dumps(coordinate_pictures.as_json(made())))
  up = table["activations"]["stack/mlp/up"]
  assert up["class"] == "hidden" and up["moved"]["lines"][0] is None
  assert up["moved"]["lines"][2]["slope"] == pytest.approx(1.0)


def test_what_is_not_finite_is_steeper_than_any_line():
  found = made()
  moved = dict(found.moved, embed=np.full((3, 3), np.inf))
  assert dataclasses.replace(found, moved=moved).worst == ("embed", np.inf)


@pytest.mark.parametrize(
  "flags, words",
  [
    (["--widths=64"], "a slope needs two or more"),
    (["--widths=64,x"], "expected whole numbers"),
    ([], "--widths=64,128,256 or --depths=2,4,8 is missing"),
    (["--widths=100,128"], "does not divide"),
    (["--widths=64,128", "--config.model.dimm=3"], "model.dimm"),
    (["--widths=64,128", "--out=x.txt"], "a picture ends in"),
  ],
)
def test_a_line_that_cannot_be_is_refused_before_anything(
  flags, words, tmp_path
):
  done = commands.run(
    "aigc_jax.coordinates", f"--config={commands.ROOT}/configs/quickstart.py",
    *flags, cwd=tmp_path,
  )  # fmt: skip
  assert done.returncode == 78 and words in done.stderr, done.stderr
  assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
  "changes",
  [
    {},
    dict(model_tied=False, model_kv_heads=1),
    dict(optim_kind="muon", model_tied=False),
    dict(grow="head_dim", model_tied=False),
  ],
  ids=str,
)
def test_by_mup_nothing_that_steps_move_grows_with_the_width(changes):
  assert series("mup", **changes).steep == {}
  grown = steep(series("standard", **changes), "hidden")
  assert {"stack/attention/query", "stack/mlp/up"} <= set(grown)


@pytest.mark.slow
def test_by_completep_nothing_grows_with_the_depth():
  # An embedding that is most of the stream, as it is of many layers, and a rate
  # at which layers move together: a larger one replaces what they add.
  how = dict(optim_learning_rate=0.001, model_embed_multiplier=5.0)
  found = series("completep", "depth", DEPTHS, **how)
  assert {name for name in found.steep if "attention" not in name} == set()
  # The first layer reads the embedding alone: of four that is a quarter.
  assert all(abs(slope) < 0.4 for slope in found.steep.values())
  assert "stack" in series("standard", "depth", DEPTHS, **how).steep


@pytest.mark.slow
def test_planted_faults_are_told_apart_by_their_class(monkeypatch):
  def whole(p, tensor):
    found = parametrization._normalised(p, tensor)
    return dataclasses.replace(found, learning_rate=1.0)

  with monkeypatch.context() as planted:
    planted.setitem(parametrization.OPTIMIZERS, "adamw", whole)
    found = series("mup")
    assert "stack/mlp/up" in steep(found, "hidden")
  with monkeypatch.context() as planted:
    planted.setattr(Parametrization, "logits", property(lambda p: 1.0))
    found = series("mup")
    assert set(steep(found, "output")) >= {"logits"}
    assert steep(found, "hidden") == []
