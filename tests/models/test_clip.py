"""CLIP and SigLIP: counts, what a text's padding may do, whole runs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import run, sharding
from aigc_jax.errors import BadConfig
from aigc_jax.models.clip import Similarity
from configs import clip, siglip
from tests import commands, kinds
from tests.golden import written

# The sums of the sizes of the tensors in the released checkpoints.
PUBLISHED = {
  "clip:b32": 151_277_313,
  "clip:b16": 149_620_737,
  "clip:l14": 427_616_513,
  "clip:l14_336": 427_944_193,
  "siglip:b16": 203_155_970,
  "siglip:l16": 652_150_786,
  "siglip:so400m": 877_360_306,
}


def preset(name: str):
  family, _, size = name.partition(":")
  return dict(clip=clip, siglip=siglip)[family].get_config(size)


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts(name):
  assert written.count_of(name) == PUBLISHED[name]


def test_every_preset_is_held_against_a_published_count():
  found = {
    f"{name}:{size}"
    for name, config in (("clip", clip), ("siglip", siglip))
    for size in config.SIZES
    if size != "digits"
  }
  assert found == set(PUBLISHED)


def test_towers_of_the_published_sizes():
  assert written.count_of("clip:b32", "image/") == 87_456_000
  assert written.count_of("clip:b32", "text/") == 63_165_952


@pytest.mark.parametrize(
  ("name", "scale", "bias"),
  [
    ("clip:b32", 1 / 0.07, None), ("siglip:b16", 10.0, -10.0),
    # Of 64 pairs one in 64 is right: its odds are 1 to 63.
    ("siglip:digits", 10.0, -np.log(63)),
  ],
)  # fmt: skip
def test_a_fresh_model_has_the_scale_and_bias_of_its_paper_or_batch(
  name, scale, bias
):
  keys = run.read(preset(name))["model"]
  similarity = Similarity(np.log(keys["scale"]), keys["bias"])
  (log_scale, found), _ = similarity.init_with_output(jax.random.key(0))
  assert np.exp(log_scale) == pytest.approx(scale, rel=1e-4)
  assert found == (bias if bias is None else pytest.approx(bias, rel=1e-3))
  if name == "siglip:digits":
    assert preset(name).data.batch == 64


def texts(name: str, tokens):
  model, params = kinds.build(name), kinds.params_of(name)
  return model.apply({"params": params}, tokens, method="embed_texts")


@pytest.mark.slow
def test_what_stands_behind_the_end_of_a_text_changes_nothing():
  batch = kinds.KINDS["clip"].batch(4, 9)
  tokens = np.array(batch["tokens"])
  ends = tokens.argmax(1)
  whole = texts("clip", jnp.asarray(tokens))
  junk = tokens.copy()
  for row, end in zip(junk, ends, strict=True):
    row[end + 1 :] = np.arange(len(row) - end - 1) % 30
  np.testing.assert_array_equal(whole, texts("clip", jnp.asarray(junk)))
  alone = texts("clip", jnp.asarray(tokens[:1, : ends[0] + 1]))
  np.testing.assert_allclose(whole[:1], alone, rtol=1e-5, atol=1e-6)
  # Of a model that sees both ways padding is a part of the text.
  assert not np.allclose(
    texts("siglip", jnp.asarray(tokens)), texts("siglip", jnp.asarray(junk))
  )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_embeddings_have_length_one_and_logits_their_scale(name):
  model, params = kinds.build(name), kinds.params_of(name)
  found = model.apply({"params": params}, kinds.KINDS[name].batch(3, 8))
  for x_BZ in (found.images_BZ, found.texts_BZ):
    np.testing.assert_allclose(np.linalg.norm(x_BZ, axis=1), 1.0, rtol=1e-5)
  z = np.exp(found.log_scale) * np.asarray(found.images_BZ @ found.texts_BZ.T)
  z += 0 if found.bias is None else found.bias
  np.testing.assert_allclose(found.logits(), z, rtol=1e-4, atol=1e-4)


def tiny_run(name: str = "clip", **mesh):
  config = preset(f"{name}:digits")
  config.data.batch, config.steps = 16, 4
  config.model.update(
    image_layers=1, image_dim=24, text_layers=1, text_dim=16,
    embed_dim=24, image_heads=2, text_heads=2,
  )  # fmt: skip
  config.optim.warmup_steps = 1
  config.mesh.update(mesh)
  return run.read(config)


def batch_of(r) -> dict:
  draw = np.random.default_rng(0)
  made = dict(
    images=draw.normal(size=r.batch["images"].shape).astype(np.float32),
    tokens=draw.integers(0, 256, r.batch["tokens"].shape).astype(np.int32),
    weights=np.ones(r.batch["weights"].shape, np.float32),
  )
  made["tokens"][:, 9:] = 256
  return {k: jax.device_put(x, r.batch[k].sharding) for k, x in made.items()}


def stepped(config, mesh, steps: int = 2):
  """(parameters, metrics) after some steps."""
  r = run.build(config, mesh)
  with jax.set_mesh(r.mesh):
    state, step, batch = r.init(), jax.jit(r.step), batch_of(r)
    for _ in range(steps):
      state, metrics = step(state, batch)
  return jax.device_get(state.params), jax.device_get(metrics)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_a_step_is_the_same_on_one_and_eight_devices(name):
  config = tiny_run(name, data=2, fsdp=2, tensor=2)
  # The gradient of a key's bias is zero but for rounding, which Adam would make
  # a step of.
  config["optim"]["eps"] = 1e-3
  one, told = stepped(config, sharding.mesh_of(jax.devices()[0]))
  eight, told_8 = stepped(config, run.make_mesh(config))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
    one, eight,
  )  # fmt: skip
  for key in ("train/loss", "train/scale", "train/image_to_text"):
    assert told[key] == pytest.approx(told_8[key], rel=1e-4), key


@pytest.mark.slow
def test_the_scale_never_goes_beyond_its_limit_and_does_not_decay():
  config = tiny_run()
  config["model"] |= dict(scale=99.0, most_scale=100.0)
  config["optim"] |= dict(learning_rate=0.5, weight_decay=0.5)
  mesh = sharding.mesh_of(jax.devices()[0])
  params, metrics = stepped(config, mesh, steps=3)
  log_scale = params["similarity"]["log_scale"]
  assert log_scale <= np.log(100.0) + 1e-6
  assert metrics["train/scale"] <= 100.0 + 1e-3


def test_parts_of_a_batch_of_pairs_are_refused_with_a_way_out():
  config = tiny_run(data=8, fsdp=1) | {"compute": {"microbatches": 2}}
  with pytest.raises(
    BadConfig,
    match="'contrastive' is of pairs.*--config.compute.microbatches=1",
  ):
    run.build(config, run.make_mesh(config))


@pytest.mark.parametrize(
  ("name", "change", "words"),
  [
    ("clip", dict(text_heads=7), "text_dim=32 is not divisible"),
    ("clip", dict(text_end=37), "text_end=37.*below model.vocab=37"),
    ("clip", dict(scale=0.0), "scale=0.0"),
    ("clip", dict(scale=101.0), "most_scale=100.0"),
    ("clip", dict(unroll=3), "1 to 2"),
    ("clip", dict(image_pool="max"), "attention, mean, token"),
    ("siglip", dict(embed_dim=20), "embed_dim=24"),
  ],
)
def test_parts_that_cannot_go_together_are_refused(name, change, words):
  with pytest.raises(BadConfig, match=words):
    kinds.build(name, **change)


@pytest.mark.slow
def test_a_run_is_measured_again_as_it_was_in_training(tmp_path):
  """And its folder is one of transformers, with words and pixels beside."""
  pytest.importorskip("sklearn", reason="needs scikit-learn")
  where = f"--workdir={tmp_path / 'run'}"
  config = f"--config={commands.ROOT}/configs/clip.py:digits"
  small = [
    f"--config.model.{key}={value}"
    for key, value in dict(
      image_layers=1, text_layers=1, image_dim=24, text_dim=16, embed_dim=12
    ).items()
  ]
  found = commands.run(
    "aigc_jax.train", where, config, f"--config.data.root={tmp_path / 'root'}",
    "--config.steps=4", "--config.optim.warmup_steps=1", *small,
  )  # fmt: skip
  assert found.returncode == 0, found.stderr
  rows = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
  told = {key: x for row in rows for key, x in json.loads(row).items()}
  found = commands.run("aigc_jax.evaluate", where)
  assert found.returncode == 0, found.stderr
  again = json.loads((tmp_path / "run/evaluate/4.json").read_text())["scores"]
  assert set(again) == {"heldout", "recall", "zero_shot"}
  for name, scores in again.items():
    for score, value in scores.items():
      wanted = told[f"eval/{name}/{score}"]
      assert value["value"] == pytest.approx(wanted, rel=1e-5), (name, score)
  out = tmp_path / "out"
  found = commands.run("aigc_jax.export", where, f"--out={out}")
  assert found.returncode == 0, found.stderr
  kind = json.loads((out / "preprocessor_config.json").read_text())
  assert kind["image_processor_type"] == "CLIPImageProcessor"
  assert (out / "tokenizer.json").is_file()


def test_an_unknown_preset_is_told_what_there_is():
  with pytest.raises(ValueError, match="did you mean 'l14'"):
    clip.get_config("l1")
