"""Recall and zero-shot labels, against their definitions in plain numpy."""

import re

import jax
import numpy as np
import pytest
from flax import linen as nn

from aigc_jax import run, sharding
from aigc_jax.errors import BadConfig
from aigc_jax.evaluators import embedded
from aigc_jax.models import MODELS
from aigc_jax.run import compute, overrides
from configs import clip
from tests import kinds

N, Z = 23, 6


def on_sphere(*shape: int, seed: int = 0) -> np.ndarray:
  x = np.random.default_rng(seed).normal(size=shape)
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def made():
  """Images near their texts, some of which are the same text."""
  which = np.random.default_rng(1).integers(0, 15, N)
  texts = on_sphere(15, Z)[which]
  images = texts + 0.6 * on_sphere(N, Z, seed=2)
  images /= np.linalg.norm(images, axis=1, keepdims=True)
  return images, texts, np.stack([which, which + 1], axis=1)


def plain_recalls(images, texts, tokens, at):
  """One query at a time, its keys sorted by how near they are."""
  distinct = sorted({tuple(t) for t in tokens.tolist()})
  of = [distinct.index(tuple(t)) for t in tokens.tolist()]
  keys = [texts[of.index(u)] for u in range(len(distinct))]
  found = {}
  for k in at:
    hits = []
    for i, image in enumerate(images):
      near = np.argsort([-float(image @ key) for key in keys])[:k]
      hits.append(of[i] in near)
    found[f"image_to_text_recall_at_{k}"] = np.mean(hits)
    hits = []
    for u, key in enumerate(keys):
      near = np.argsort([-float(image @ key) for image in images])[:k]
      hits.append(any(of[i] == u for i in near))
    found[f"text_to_image_recall_at_{k}"] = np.mean(hits)
  return found


def test_recall_is_that_of_its_definition(made, monkeypatch):
  wanted = plain_recalls(*made, (1, 3, 10))
  assert 0.2 < wanted["image_to_text_recall_at_1"] < 1
  for rows in (1024, 4):
    monkeypatch.setattr(embedded, "ROWS", rows)
    assert embedded.recalls(*made, (1, 3, 10)) == pytest.approx(wanted)


def test_a_model_that_says_nothing_is_never_right():
  same = np.ones((N, Z)) / Z**0.5
  tokens = np.arange(N)[:, None]
  for images in (same, same * np.nan):
    found = embedded.recalls(images, same, tokens, (1, 5))
    assert set(found.values()) == {0.0}


def test_equal_keys_are_equally_near_wherever_they_stand():
  """Products of many rows round the last ones otherwise than the first."""
  draw = np.random.default_rng(0)
  for seed in range(60):
    count, size = draw.integers(2, 60), draw.integers(1, 70)
    queries = on_sphere(9, size, seed=seed)
    keys = on_sphere(count, size, seed=100 + seed)
    keys[draw.integers(0, count, count // 2)] = keys[-1] = keys[0]
    equal = np.flatnonzero((keys == keys[0]).all(1))
    found = [
      embedded.rivals(queries, keys, np.full((9, 1), own)) for own in equal
    ]
    assert all((x == found[0]).all() for x in found)
    assert min(map(np.min, found)) >= len(equal) - 1


def test_a_label_is_the_mean_of_its_texts_on_the_sphere():
  texts = on_sphere(4, 3, Z)
  found = embedded.class_embeddings(texts)
  for row, some in zip(found, texts, strict=True):
    mean = sum(some) / 3
    np.testing.assert_allclose(row, mean / np.sqrt((mean**2).sum()))


def test_a_model_that_embeds_nothing_is_refused_by_name():
  embedded.check_embeds(kinds.build("clip"), "x")
  with pytest.raises(BadConfig, match="evaluate.a compares.*kind Encoder"):
    embedded.check_embeds(kinds.build("encoder"), "evaluate.a")


def config_of(root, **changes):
  config = clip.get_config("digits")
  config.data.update(batch=40, root=str(root))
  config.model.update(
    image_layers=1, image_dim=24, text_layers=1, text_dim=16, embed_dim=12
  )
  config.mesh.update(fsdp=1)
  found = run.read(config)
  for key, value in changes.items():
    found["evaluate"][key] |= value
  return found


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  pytest.importorskip("sklearn", reason="needs scikit-learn")
  return tmp_path_factory.mktemp("root")


def silent(text) -> None:
  """Says nothing."""


def variables(model, seed: int = 0):
  example = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), model.example())
  return nn.unbox(jax.jit(model.init)(jax.random.key(seed), example))


def measured(config, name, mesh):
  """(evaluator, metrics) of an entry with fresh parameters."""
  make, rest = MODELS["clip"], compute.keywords(config)
  rest.pop("kind")
  model = make(**rest)
  data = run.data_of(config)
  tokenizer, entry = data.find_tokenizer(), config["evaluate"][name]
  eval_set = run.open_embedded(config, entry, tokenizer, silent)
  found = run.embedded_evaluator(
    config, model, mesh, name, entry, eval_set, tokenizer
  )
  params = variables(model)["params"]
  return model, params, eval_set, found.measure(params)


@pytest.mark.slow
def test_zero_shot_is_that_of_its_definition(root):
  pictures = dict(templates=("a {}", "the digit {}", "{}!"))
  config = config_of(root, zero_shot=pictures)
  mesh = sharding.mesh_of(jax.devices()[0])
  model, params, eval_set, found = measured(config, "zero_shot", mesh)
  data = run.data_of(config)
  tokenizer = data.find_tokenizer()
  words = config["evaluate"]["zero_shot"]["names"]

  def embed(x, method):
    return np.asarray(model.apply({"params": params}, x, method=method))

  keys = []
  for word in words:
    texts = [f"a {word}", f"the digit {word}", f"{word}!"]
    some = embed(data.tokens_of(tokenizer, texts), "embed_texts").mean(0)
    keys.append(some / np.linalg.norm(some))
  hits, five, count = 0, 0, 0
  for i in range(eval_set.batches):
    batch = eval_set.rows(i, slice(None))
    images = embed(batch["images"], "embed_images")
    for x, label, w in zip(
      images, batch["labels"], batch["weights"], strict=True
    ):
      if w:
        near = np.argsort([-float(x @ key) for key in keys])
        hits, five, count = (
          hits + (near[0] == label), five + (label in near[:5]), count + 1,
        )  # fmt: skip
  assert count == len(eval_set) == 360 and eval_set.batches * 40 == 360
  assert found["top1"] == pytest.approx(hits / count)
  assert found["top5"] == pytest.approx(five / count)
  assert found["chance"] == pytest.approx(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["recall", "zero_shot"])
def test_eight_devices_measure_what_one_does(root, name):
  config = config_of(root)
  one = measured(config, name, sharding.mesh_of(jax.devices()[0]))
  sizes = dict.fromkeys(sharding.AXES, 1) | dict(data=4, fsdp=2)
  many = measured(config, name, sharding.make_mesh(**sizes))
  assert one[3] == pytest.approx(many[3], abs=0.03)
  assert set(one[3]) == set(many[3])


@pytest.mark.parametrize(
  ("name", "change", "words"),
  [
    ("zero_shot", dict(templates=("a digit",)), "'a digit' has no {}"),
    ("zero_shot", dict(templates=()), "templates is empty"),
    ("zero_shot", dict(data=dict(split="validation")), "has no sources"),
    ("zero_shot", dict(batches=0), "batches=0"),
    ("recall", dict(at=(0,)), "at=.0,.: expected numbers from 1"),
    ("recall", dict(data=dict(split="tset")), "did you mean 'test'"),
  ],
)
def test_entries_that_could_not_be_measured_are_refused(
  tmp_path, name, change, words
):
  with pytest.raises(BadConfig, match=words):
    run.check_evaluators(config_of(tmp_path, **{name: change}))


def test_as_many_names_as_labels_are_asked_for(root):
  config = config_of(root, zero_shot=dict(names=("zero", "one")))
  with pytest.raises(BadConfig, match="2 names, and the data 10 labels"):
    measured(config, "zero_shot", sharding.mesh_of(jax.devices()[0]))


def test_labels_of_a_package_are_told_of_its_own_captions_alone(tmp_path):
  config = config_of(tmp_path)
  assert not run.left_out(config)
  own = dict(kind="folder", path=str(tmp_path), split="train")
  config["data"]["sources"] = [own]
  assert run.left_out(config).keys() == {"zero_shot"}
  assert run.evaluations(config).keys() == {"heldout", "recall"}
  line = run.left_out(config)["zero_shot"]
  words = re.findall(r"--config\.(\S+?)=([^\s)]+)", line)
  asked = overrides.apply(config, words)
  assert asked["evaluate"]["zero_shot"]["data"]["sources"][0] == dict(
    kind="folder", path="FOLDER", split="train", weight=1.0
  )
  assert asked["evaluate"]["zero_shot"]["names"] is None
  assert not run.left_out(run.read(asked))
