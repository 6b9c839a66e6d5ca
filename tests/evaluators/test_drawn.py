"""Features of images, grids while training, and drawn beside held-out ones."""

import functools
import io
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import sharding
from aigc_jax.data.spec import Array
from aigc_jax.data.stream import EvalSet
from aigc_jax.errors import BadConfig
from aigc_jax.evaluators.drawn import Comparison, Grid, Scores
from aigc_jax.evaluators.features import Features
from aigc_jax.run import record
from aigc_jax.sampling.images import NotDrawn, Sampler
from aigc_jax.trainer import changes
from aigc_jax.trainer.journal import Journal, Picture
from tests import adversary, fresh, tiny
from tests import images as nets

HALF = dict(mean=[0.5] * 3, std=[0.5] * 3)


NET = nets.build("resnet basic", blocks=(1,), widths=(16,))


@functools.cache
def variables():
  made = jax.device_get(fresh.variables(NET, NET.example()))
  return jax.tree.map(tiny.perturbed, made)


@pytest.fixture(scope="module")
def mesh():
  return sharding.mesh_of(jax.devices()[0])


@pytest.fixture(scope="module")
def features():
  return Features(NET, variables(), name="net", batch=4, **HALF)


def bytes_of(rows, size=17, channels=3, seed=0):
  draw = np.random.default_rng(seed)
  return draw.integers(0, 256, (rows, size, size, channels)).astype(np.uint8)


@pytest.mark.slow
def test_features_are_what_labels_are_read_from(features):
  images = bytes_of(6)
  found = features(images)
  x = jnp.asarray(images / 127.5 - 1, jnp.float32)
  told = NET.apply(variables(), {"images": x})
  np.testing.assert_allclose(found, told.features_BD, rtol=1e-3, atol=1e-4)
  head = variables()["params"]["head"]
  logits = found @ np.asarray(head["w"]) + np.asarray(head["bias"])
  np.testing.assert_allclose(logits, told.logits(), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_the_features_of_an_image_are_no_matter_of_the_others(features):
  images = bytes_of(6)
  np.testing.assert_allclose(
    features(images)[5], features(images[5:])[0], rtol=1e-4, atol=1e-5
  )


@pytest.mark.slow
def test_images_of_another_size_or_colour_are_made_to_fit(features):
  grey = bytes_of(3, channels=1)
  np.testing.assert_array_equal(
    features(grey), features(grey.repeat(3, axis=-1))
  )
  flat = np.full((2, 34, 34, 3), 77, np.uint8)
  np.testing.assert_allclose(features(flat), features(flat[:, :17, :17]))


@pytest.mark.parametrize("model", [adversary.build("plain"), "decoder"])
def test_a_network_without_features_is_refused_by_name(model):
  model = nets_of_text() if model == "decoder" else model
  with pytest.raises(BadConfig, match="features=DIR: .* no features of images"):
    Features(model, None, name="DIR", **HALF)


def nets_of_text():
  return tiny.build("llama")


def eval_set(images, batch=4):
  """Held-out images, as data gives them."""

  class View:
    name, fingerprint = "made", "made"

    def __len__(self):
      return len(images)

    def gather(self, numbers):
      return {"at": numbers}

  def make(records, draw):
    some = images[np.asarray(records["at"])]
    return {"images": (some / np.float32(255) - 0.5) / 0.5,
            "labels": np.asarray(records["at"], np.int32)}  # fmt: skip

  return EvalSet(
    [View()], make, spec={"labels": Array("B", (batch,), np.dtype("i4"))},
    batch=batch, fingerprint="held", targets=len(images), counts={},
    recount=None,
  )  # fmt: skip


def test_what_is_compared_are_the_very_images_that_are_held_out(features):
  held = bytes_of(10)
  whole = Comparison(features, eval_set(held), **HALF)
  images, labels = whole.images(eval_set(held))
  np.testing.assert_array_equal(images, held)
  assert labels.tolist() == list(range(10))
  found = whole.scores(held)
  assert found["fid"].value == pytest.approx(0, abs=1e-3)
  assert found["precision"].value == found["recall"].value == 1
  some = Comparison(features, eval_set(held), most=6, **HALF)
  part, labels = some.images(eval_set(held))
  assert len(set(labels.tolist())) == 6
  np.testing.assert_array_equal(part, held[labels])
  np.testing.assert_array_equal(part, some.images(eval_set(held))[0])


def sampler():
  return Sampler(
    adversary.build("batch norm"), None, None, sampler="heun", steps=1,
    guidance=1.0, seed=3, **HALF,
  )  # fmt: skip


def state_of(scale=1.0):
  variables = adversary.variables_of("batch norm")
  average = jax.tree.map(
    lambda x: np.float32(scale) * np.asarray(x), variables["params"]
  )
  stats = variables["stats"]
  return tiny.state_of(
    variables["params"], average=average, stats=stats, average_stats=stats
  )


def grid(mesh, folder, **how):
  told = np.zeros(2, np.int32)
  how = dict(rows=2, columns=3, told=told, average=False) | how
  return Grid(sampler(), mesh, folder, name="grid", poll=lambda: None, **how)


@pytest.mark.slow
def test_a_grid_differs_by_the_model_alone(mesh, tmp_path):
  pil = pytest.importorskip("PIL.Image")
  raw, average = (
    grid(mesh, tmp_path / name, average=name == "average")
    for name in ("raw", "average")
  )
  for step, state in ((10, state_of()), (20, state_of(2.0))):
    found = raw(step, state)["eval/grid/images"]
    average(step, state)
    file = (tmp_path / "raw" / f"{step}.grid.png").read_bytes()
    assert file == found.png
    size = pil.open(io.BytesIO(file)).size
    assert size == (found.width, found.height)
  read = lambda name, n: (tmp_path / name / f"{n}.grid.png").read_bytes()  # noqa: E731
  assert read("raw", 10) == read("raw", 20) == read("average", 10)
  assert read("average", 20) != read("raw", 20)


def test_another_network_on_resume_is_refused_by_name(mesh, features):
  model, made = NET, variables()
  trained_on = jax.tree.map(lambda x: x + np.float32(1e-3), made)
  others = (
    Features(model, trained_on, name="net", **HALF),
    Features(model, made, name="net", mean=[0.4] * 3, std=[0.5] * 3),
  )
  again = Features(model, made, name="elsewhere", **HALF)
  assert again.fingerprint == features.fingerprint

  def prints_of(features):
    against = Comparison(features, eval_set(bytes_of(4, size=12)), **HALF)
    scores = Scores(
      sampler(), mesh, against, name="drawn", average=False, poll=lambda: None
    )
    stream = types.SimpleNamespace(fingerprint="data")
    return record.fingerprints(stream, {"drawn": (5, scores)})

  entries = record.entries({"evaluate": {"drawn": {"features": "DIR"}}})
  before = prints_of(features)
  meta = {"heldout_fingerprints": before, "heldout_entries": entries}
  meta["data_fingerprint"] = before.pop("data")
  check = functools.partial(
    changes.data_changes, meta, entries=entries, allowed=False, since="step 3"
  )
  assert not check(prints_of(again))
  before["evaluate.drawn.features.config"] = "one"
  said = Features(model, made, name="net", said="two", **HALF)
  with pytest.raises(BadConfig, match="evaluate.drawn.features.config: one"):
    check(prints_of(said))
  del before["evaluate.drawn.features.config"]
  assert not check(prints_of(said))  # of before it was noted
  for other in others:
    with pytest.raises(BadConfig, match="evaluate.drawn.features: "):
      check(prints_of(other))
    moved = record.entries({"evaluate": {"drawn": {"features": "OTHER"}}})
    assert not check(prints_of(other), entries=moved)  # asked for
    old = meta | {"heldout_fingerprints": {"evaluate.drawn": "held"}}
    assert not changes.data_changes(old, prints_of(other), entries, False, "")


@pytest.mark.slow
def test_scores_while_training_are_those_of_the_same_images(mesh, features):
  held = bytes_of(8, size=12)
  against = Comparison(features, eval_set(held), **HALF)
  scores = Scores(
    sampler(), mesh, against, name="drawn", average=False, poll=lambda: None
  )
  found = scores(10, state_of())
  assert scores.fingerprint == "held"
  assert scores.judges == {"features": features.fingerprint}
  with jax.set_mesh(mesh):
    drawing = sampler()
    drawing.use(adversary.variables_of("batch norm"))
    images = drawing(np.arange(8), np.zeros(8), 8)
  exact = against.scores(images)
  assert set(found) == {f"eval/drawn/{name}" for name in exact}
  assert found["eval/drawn/fid"] == pytest.approx(exact["fid"].value)


def test_a_picture_is_in_tensorboard_and_in_no_row(tmp_path):
  png = b"\x89PNG of some kind"
  picture = Picture(png, 4, 6, 1)
  with Journal(tmp_path) as journal:
    assert journal.row(1, {"eval/grid/images": picture}) == {}
    row = journal.row(2, {"eval/grid/images": picture, "eval/x/fid": 3.0})
    assert row["eval/x/fid"] == 3.0 and "eval/grid/images" not in row
  rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(row)["step"] for row in rows] == [2]
  (file,) = (tmp_path / "tensorboard").iterdir()
  shown = file.read_bytes()
  assert shown.count(png) == 2 and shown.count(b"eval/grid/images") == 2


def test_a_drawing_that_is_no_number_ends_no_training(mesh, features, tmp_path):
  """Its weights are finite, or there would have been no step."""

  class Broken(Sampler):
    def __call__(self, *_):
      raise NotDrawn("the images are not finite")

  broken = sampler()
  broken.__class__ = Broken
  held = Comparison(features, eval_set(bytes_of(4, size=12)), **HALF)
  common = dict(name="x", average=False, poll=lambda: None)
  told = dict(rows=1, columns=2, told=np.zeros(1, np.int32))
  for one in (
    Grid(broken, mesh, tmp_path / "samples", **told, **common),
    Scores(broken, mesh, held, **common),
  ):
    assert one(10, state_of()) == {}
  assert not (tmp_path / "samples").exists()


def test_too_few_images_are_refused_before_any_is_drawn(features):
  with pytest.raises(BadConfig, match="by 4 or more, and these are 3"):
    Comparison(features, eval_set(bytes_of(10)), most=3, **HALF)
  with pytest.raises(BadConfig, match="2 are held out"):
    Comparison(features, eval_set(bytes_of(2)), **HALF)
