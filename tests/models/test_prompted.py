"""Captions: what of them is read, what stands for none, prompts of a grid."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import run
from aigc_jax.data.tokenizers import load_tokenizer
from aigc_jax.errors import BadConfig
from aigc_jax.models import MODELS
from aigc_jax.objectives.flow import flow
from aigc_jax.objectives.labels import NO_TOKEN, without_labels
from aigc_jax.objectives.paths import Path
from aigc_jax.presets import prompted, unet
from aigc_jax.run.build import scorer
from aigc_jax.run.drawing import check_told, told_rows
from aigc_jax.sampling.images import Sampler, reads_captions, without_caption
from aigc_jax.trainer.state import Fixed
from tests import diffusion, kinds
from tests.sweep import slow

DIT, UNET, TOWER = "dit of captions", "unet of captions", "prompted"
END = 36


@functools.cache
def sayer(name: str):
  model, variables = kinds.build(name), kinds.variables_of(name)
  return jax.jit(lambda batch: model.apply(variables, batch))


def said(name: str, tokens) -> np.ndarray:
  tokens = jnp.asarray(tokens, jnp.int32)
  batch = kinds.described_batch(1, 6) | dict(tokens=tokens[None])
  return np.asarray(sayer(name)(batch))[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", [DIT, TOWER, slow(UNET)])
def test_what_stands_behind_the_end_of_a_caption_is_never_seen(name):
  whole = said(name, [3, 4, END, END, END, END])
  np.testing.assert_array_equal(said(name, [3, 4, END, 9, 1, END]), whole)
  for other in ([3, 5, END], [4, 3, END], [3, 4, 5], [3, END, END]):
    assert np.abs(said(name, other + [END] * 3) - whole).max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", [DIT, TOWER])
def test_no_caption_is_one_token_more_however_long_a_row_is(name):
  none = said(name, [NO_TOKEN] * 6)
  np.testing.assert_allclose(said(name, [NO_TOKEN] * 4), none, atol=1e-6)
  for other in ([0] * 6, [END] * 6):
    assert np.abs(said(name, other) - none).max() > 1e-4


@pytest.mark.slow
def test_a_tower_reads_captions_as_its_own_model_does_and_is_told_apart():
  model, variables = kinds.build(TOWER), kinds.variables_of(TOWER)
  batch = kinds.described_batch(3, 8)
  whole = model.apply(variables, batch)
  text = model.apply(variables, batch, role="text")
  asked = dict(batch, text=text)
  again = model.apply(variables, asked, role="denoiser")
  np.testing.assert_allclose(again, whole, rtol=1e-5, atol=1e-6)
  # At its end a caption is what the tower is trained to make of it.
  tower = model.parts["text"].model
  own = {"params": variables["params"]["text"]}
  end_B = jnp.argmax(batch["tokens"] == END, axis=1)
  at_end_BD = text[jnp.arange(3), end_B]
  by_hand_BZ = at_end_BD @ own["params"]["text_projection"]["w"]
  by_hand_BZ /= jnp.linalg.norm(by_hand_BZ, axis=-1, keepdims=True)
  np.testing.assert_allclose(
    by_hand_BZ, tower.apply(own, batch["tokens"], method="embed_texts"),
    rtol=1e-4, atol=1e-5,
  )  # fmt: skip
  drawn = model.apply(
    variables, batch["images"], batch["time"], batch["tokens"], method="draw"
  )
  np.testing.assert_allclose(drawn, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_frozen_tower_is_read_as_in_evaluation_whatever_its_dropout():
  keys = kinds.KINDS[TOWER].model | dict(
    parts=dict(
      text=kinds.CLIP | dict(dropout=0.9), denoiser=kinds.DIT | kinds.FEATURES
    )
  )
  model = MODELS["prompted"](**{k: v for k, v in keys.items() if k != "kind"})
  params = kinds.variables_of(TOWER)["params"]
  still = {"text": params["text"]}
  score = scorer(model, functools.partial(flow, label_dropout=0.0), ["text"])
  batch = kinds.described_batch(3, 8)

  def loss(params, key):
    return score(params, batch, key, fixed=Fixed(still, None))["loss"].sum

  told = {"denoiser": params["denoiser"]}
  one, other = (loss(told, jax.random.key(i)) for i in range(2))
  assert float(one) == float(other)


@pytest.mark.parametrize(
  ("change", "word"),
  [
    (dict(parts=dict(text=kinds.CLIP)), "expected text and denoiser"),
    (dict(text=kinds.VAE), "take a clip"),
    (dict(denoiser=kinds.DIT | kinds.READ), "text_layers=0"),
    (dict(text=kinds.CLIP | dict(text_dim=40)), "denoiser.text_dim=40"),
    (dict(text=kinds.CLIP | dict(text_length=9)), "data.length to 9"),
    (dict(text=kinds.CLIP | dict(vocab=30, text_end=3)), "has 30 ids"),
    (dict(text_end=35), "--config.model.text_end=36"),
  ],
)
def test_a_tower_that_does_not_fit_is_refused_with_the_way_out(change, word):
  keys = dict(kinds.KINDS[TOWER].model)
  of_parts = {k: v for k, v in change.items() if k in keys["parts"]}
  keys["parts"] = keys["parts"] | of_parts
  del keys["kind"]
  own = {k: v for k, v in change.items() if k not in of_parts}
  with pytest.raises(BadConfig, match=word):
    MODELS["prompted"](**keys | own)


def test_features_take_no_keys_of_a_tower_and_none_without_one():
  keys = {k: v for k, v in (kinds.DIT | kinds.FEATURES).items() if k != "kind"}
  for name in ("text_heads", "text_mlp_dim"):
    with pytest.raises(BadConfig, match=f"model.{name}=4"):
      MODELS["dit"](**keys | {name: 4})
  config = prompted.get_config("digits")
  config.model.update(text_layers=0)
  with config.ignore_type():
    config.model.update(text_heads=None)
  with pytest.raises(BadConfig, match="takes text"):
    run.build(run.read(config))


def test_captions_are_left_out_by_the_keys_of_their_rows():
  batch = kinds.described_batch(400, 6)
  batch["draw"] = diffusion.keys_of(400)
  batch = {k: np.asarray(x) for k, x in batch.items()}
  drop = jax.jit(functools.partial(without_labels, share=0.25))
  found = np.asarray(drop(batch)["tokens"])
  none = np.all(np.asarray(found) == NO_TOKEN, axis=1)
  assert 0.18 < none.mean() < 0.32
  np.testing.assert_array_equal(found[~none], batch["tokens"][~none])
  part = {k: x[::2] for k, x in batch.items()}
  np.testing.assert_array_equal(drop(part)["tokens"], found[::2])


@pytest.mark.slow
def test_a_sample_follows_from_its_number_and_caption_alone():
  model = kinds.build(DIT)
  assert reads_captions(model) and not reads_captions(kinds.build("unet"))
  how = dict(mean=[0.5], std=[0.5], sampler="euler", guidance=2.0, seed=0)
  draw = Sampler(
    model, kinds.variables_of(DIT), Path("velocity"), steps=2, **how
  )
  told = without_caption(model, 3)
  told[0, :3] = told[1, :3] = 3, 4, END
  told[:2, 3:] = END
  whole = draw(np.arange(3), told, 2)
  np.testing.assert_array_equal(draw(np.arange(1, 3), told[1:], 2), whole[1:])
  assert np.any(draw(np.arange(1), told[2:], 2) != whole[:1])


def test_prompts_go_to_rows_in_turn_as_the_data_writes_them():
  config = run.read(prompted.get_config("digits"))
  model, tokenizer = run.model_of(config), load_tokenizer("bytes")
  told = functools.partial(told_rows, config, model, tokenizer)
  rows = told(rows=3, prompts=["a two", "a six"])
  assert rows.shape == (3, 24)
  assert rows[0].tolist() == [*b"a two"] + [256] * 19
  np.testing.assert_array_equal(rows[0], rows[2])
  np.testing.assert_array_equal(told(rows=2), without_caption(model, 2))
  with pytest.raises(BadConfig, match="has 24 tokens.*at most"):
    told(rows=1, prompts=["x" * 24])
  with pytest.raises(BadConfig, match="knows no labels.*prompts"):
    told(rows=1, labels=["3"])
  with pytest.raises(BadConfig, match="or give labels"):
    check_told(kinds.build("unet"), (), ["a two"])


def test_guidance_of_a_model_that_is_told_nothing_is_refused():
  config = run.read(unet.get_config("ddpm,cifar10"))
  with pytest.raises(BadConfig, match="guidance=2.0 leads to a label"):
    run.drawing.sampler_of(
      config, run.model_of(config), None, sampler="heun", steps=1, guidance=2.0,
      seed=0,
    )  # fmt: skip
