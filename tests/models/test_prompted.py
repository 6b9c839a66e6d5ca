"""Captions: what of them is read, what stands for none, prompts of a grid."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import run
from aigc_jax.data.tokenizers import load_tokenizer
from aigc_jax.errors import BadConfig
from aigc_jax.objectives.labels import NO_TOKEN, without_labels
from aigc_jax.objectives.paths import Path
from aigc_jax.presets import prompted, unet
from aigc_jax.run.drawing import check_told, told_rows
from aigc_jax.sampling.images import Sampler, reads_captions, without_caption
from tests import diffusion, kinds
from tests.sweep import slow

DIT, UNET = "dit of captions", "unet of captions"
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
@pytest.mark.parametrize("name", [DIT, slow(UNET)])
def test_what_stands_behind_the_end_of_a_caption_is_never_seen(name):
  whole = said(name, [3, 4, END, END, END, END])
  np.testing.assert_array_equal(said(name, [3, 4, END, 9, 1, END]), whole)
  for other in ([3, 5, END], [4, 3, END], [3, 4, 5], [3, END, END]):
    assert np.abs(said(name, other + [END] * 3) - whole).max() > 1e-4


@pytest.mark.slow
def test_no_caption_is_one_token_more_however_long_a_row_is():
  none = said(DIT, [NO_TOKEN] * 6)
  np.testing.assert_allclose(said(DIT, [NO_TOKEN] * 4), none, atol=1e-6)
  for other in ([0] * 6, [END] * 6):
    assert np.abs(said(DIT, other) - none).max() > 1e-4


def test_captions_are_left_out_by_the_keys_of_their_rows():
  batch = kinds.described_batch(400, 6)
  batch["draw"] = diffusion.keys_of(400)
  found = without_labels(batch, 0.25)["tokens"]
  none = np.all(np.asarray(found) == NO_TOKEN, axis=1)
  assert 0.18 < none.mean() < 0.32
  np.testing.assert_array_equal(found[~none], batch["tokens"][~none])
  part = {k: x[::2] for k, x in batch.items()}
  np.testing.assert_array_equal(
    without_labels(part, 0.25)["tokens"], found[::2]
  )


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
