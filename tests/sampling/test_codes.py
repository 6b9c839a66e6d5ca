"""Images by codes: drawn from what the prior says, whoever is drawn beside."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.errors import BadConfig
from aigc_jax.objectives.labels import NO_TOKEN
from aigc_jax.sampling import codes, images
from tests import kinds
from tests.sweep import slow, sweep

CAUSAL, MASKED = "image tokens", "image tokens masked"
LABELS = jnp.asarray([0, 3, 5, 1])  # 5 is none
TOLD = {name: LABELS for name in (CAUSAL, MASKED)} | {
  # The third is none, and each ends somewhere else.
  f"image tokens of captions{order}": jnp.asarray(
    [[3, 5, 36, 36], [4, 36, 36, 36], [NO_TOKEN] * 4, [9, 8, 7, 36]]
  )
  for order in ("", " masked")
}
CAUSALS = sweep([name for name in TOLD if "masked" not in name], CAUSAL)
MASKEDS = sweep([name for name in TOLD if "masked" in name], MASKED)
KEYS = jax.jit(images.keys_of)(3, np.arange(4, dtype=np.uint32))


def prior_of(name: str):
  """(model, the prior's variables)."""
  params = kinds.params_of(name)["prior"]
  # Far from even, so that what was said first matters.
  params = jax.tree.map(lambda x: 2 * x, params)
  return kinds.build(name), {"params": params}


def nothing_of(name: str):
  """What says that there is neither label nor caption."""
  return jnp.full_like(TOLD[name], NO_TOKEN if TOLD[name].ndim > 1 else 5)


@functools.cache
def one_by_one(name: str, guidance: float):
  model, variables = prior_of(name)
  run = functools.partial(codes.one_by_one, model, guidance=guidance)
  return np.asarray(jax.jit(run)(variables, KEYS, TOLD[name]))


def said(name: str, codes_BT, told, hidden_BT=None):
  """Logits (B, T, V) of the prior, without a cache."""
  model, variables = prior_of(name)
  asked = model.asked(told, codes_BT, hidden_BT)
  return model.told(model.prior.apply(variables, asked)).logits()


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("name", CAUSALS)
def test_each_code_is_drawn_from_what_is_said_after_those_before(
  name, guidance
):
  found = one_by_one(name, guidance)
  assert found.shape == (4, 9) and found.min() >= 0 and found.max() < 12
  logits = said(name, found, TOLD[name])
  if guidance != 1.0:
    free = said(name, found, nothing_of(name))
    logits = free + guidance * (logits - free)
  for t in range(9):
    keys = jax.vmap(jax.random.fold_in, (0, None))(KEYS, t)
    again = jax.vmap(jax.random.categorical)(keys, logits[:, t])
    np.testing.assert_array_equal(found[:, t], again)


@pytest.mark.slow
@pytest.mark.parametrize("name", CAUSALS)
def test_guidance_changes_what_is_told_something_and_nothing_else(name):
  plain, more = one_by_one(name, 1.0), one_by_one(name, 2.5)
  np.testing.assert_array_equal(plain[2], more[2])
  assert np.any(plain != more)


@functools.cache
def unmasked(steps: int, guidance: float = 1.0, name: str = MASKED):
  model, variables = prior_of(name)
  run = functools.partial(codes.unmasked, model, guidance=guidance, steps=steps)
  return np.asarray(jax.jit(run)(variables, KEYS, TOLD[name]))


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("name", MASKEDS)
def test_in_one_step_all_codes_are_drawn_from_what_is_said_of_none(
  name, guidance
):
  found = unmasked(1, guidance, name)
  hidden, nothing = jnp.ones((4, 9), bool), jnp.zeros((4, 9), jnp.int32)
  logits = said(name, nothing, TOLD[name], hidden)
  if guidance != 1.0:
    free = said(name, nothing, nothing_of(name), hidden)
    logits = free + guidance * (logits - free)
  for row, key in enumerate(jax.vmap(jax.random.fold_in, (0, None))(KEYS, 0)):
    again = jax.random.categorical(jax.random.split(key)[0], logits[row])
    np.testing.assert_array_equal(found[row], again)


@pytest.mark.slow
def test_more_steps_than_codes_are_as_many_as_codes():
  np.testing.assert_array_equal(unmasked(9), unmasked(50))
  assert np.any(unmasked(9) != unmasked(1))


@pytest.mark.parametrize("steps", [1, 2, 8, 15, 16, 99])
def test_every_step_shows_a_code_and_the_last_shows_all(steps):
  left = codes.hidden_after(16, steps)
  assert len(left) == min(steps, 16) and left[-1] == 0
  assert (np.diff([16, *left]) < 0).all()


def test_few_codes_are_shown_at_first_and_many_at_last():
  left = codes.hidden_after(256, 8)
  exact = np.floor(256 * np.cos(np.pi / 2 * np.arange(1, 9) / 8))
  np.testing.assert_array_equal(left[:-1], exact[:-1])


@pytest.mark.slow
def test_what_is_shown_stays():
  """A prior that is sure of a code at each place keeps all of them."""
  model, _ = prior_of(MASKED)
  wanted = jnp.asarray([3, 1, 4, 1, 5, 9, 2, 6, 5])

  class Sure:
    def apply(self, variables, batch):
      return None

  class Told:
    masked, length, classes, prior = True, 9, 5, Sure()
    asked = staticmethod(model.asked)
    lead = staticmethod(model.lead)

    def told(self, output):
      logits = 50.0 * jax.nn.one_hot(wanted, 12)[None].repeat(4, 0)
      return types.SimpleNamespace(logits=lambda: logits)

  found = codes.unmasked(Told(), {}, KEYS, LABELS, guidance=1.0, steps=4)
  np.testing.assert_array_equal(found, jnp.broadcast_to(wanted, (4, 9)))


@functools.cache
def sampler(name: str, seed: int = 0):
  return codes.CodeSampler(
    kinds.build(name), kinds.variables_of(name), mean=[0.5], std=[0.5], steps=4,
    guidance=2.0, seed=seed,
  )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", [CAUSAL, MASKED])
def test_codes_of_what_is_no_number_are_no_images(name):
  variables = kinds.variables_of(name)
  params = variables["params"]
  nothing = jax.tree.map(lambda x: jnp.nan * x, params["prior"])
  draw = codes.CodeSampler(
    kinds.build(name), variables | dict(params=params | dict(prior=nothing)),
    mean=[0.5], std=[0.5], steps=4, guidance=1.0, seed=0,
  )  # fmt: skip
  with pytest.raises(images.NotDrawn, match="not finite"):
    draw(np.arange(2), np.array([0, 1]), 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", TOLD)
def test_a_sample_follows_from_its_seed_number_and_what_is_told_alone(name):
  model = kinds.build(name)
  assert isinstance(model, images.DrawsByCodes)
  numbers, labels = np.arange(6), np.array([0, 0, 1, 1, 3, 5])
  assert images.reads_captions(model) == (TOLD[name].ndim > 1)
  if images.reads_captions(model):
    labels = np.asarray(TOLD[name])[[0, 0, 1, 1, 3, 2]]
  whole = sampler(name)(numbers, labels, 3)
  assert whole.shape == (6, 6, 6, 1) and whole.dtype == np.uint8
  np.testing.assert_array_equal(whole, sampler(name)(numbers, labels, 3))
  part = sampler(name)(numbers[[5, 1]], labels[[5, 1]], 2)
  np.testing.assert_array_equal(part, whole[[5, 1]])
  other = sampler(name, seed=1)(numbers, labels, 3)
  assert (other != whole).any()


def test_a_vq_by_itself_draws_nothing_and_says_what_it_does():
  with pytest.raises(BadConfig, match="Vq does not.*--reconstruct"):
    images.check_draws(kinds.build("vq"), "--grid")
  images.check_reconstructs(kinds.build("vq"), "--reconstruct")
  with pytest.raises(BadConfig, match="--part=vq.*not of ImageTokens"):
    images.check_reconstructs(kinds.build(CAUSAL), "--reconstruct")
