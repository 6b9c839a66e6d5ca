"""Images by codes: drawn from what the prior says, whoever is drawn beside."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.errors import BadConfig
from aigc_jax.sampling import codes, images
from tests import kinds
from tests.sweep import slow

CAUSAL, MASKED = "image tokens", "image tokens masked"
LABELS = jnp.asarray([0, 3, 5, 1])  # 5 is none
KEYS = images.keys_of(3, jnp.arange(4, dtype=jnp.uint32))


def prior_of(name: str):
  """(model, the prior's variables)."""
  params = kinds.params_of(name)["prior"]
  # Far from even, so that what was said first matters.
  params = jax.tree.map(lambda x: 2 * x, params)
  return kinds.build(name), {"params": params}


@functools.cache
def one_by_one(guidance: float):
  model, variables = prior_of(CAUSAL)
  run = functools.partial(codes.one_by_one, model, guidance=guidance)
  return np.asarray(jax.jit(run)(variables, KEYS, LABELS))


def said(name: str, codes_BT, labels_B, hidden_BT=None):
  """Logits (B, T, V) of the prior, without a cache."""
  model, variables = prior_of(name)
  asked = dict(labels=labels_B, codes=codes_BT, hidden=hidden_BT)
  return model.told(model.prior.apply(variables, model.asked(asked))).logits()


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_each_code_is_drawn_from_what_is_said_after_those_before(guidance):
  found = one_by_one(guidance)
  assert found.shape == (4, 9) and found.min() >= 0 and found.max() < 12
  logits = said(CAUSAL, found, LABELS)
  if guidance != 1.0:
    free = said(CAUSAL, found, jnp.full(4, 5))
    logits = free + guidance * (logits - free)
  for t in range(9):
    keys = jax.vmap(jax.random.fold_in, (0, None))(KEYS, t)
    again = jax.vmap(jax.random.categorical)(keys, logits[:, t])
    np.testing.assert_array_equal(found[:, t], again)


@pytest.mark.slow
def test_guidance_changes_what_has_a_label_and_nothing_else():
  plain, more = one_by_one(1.0), one_by_one(2.5)
  np.testing.assert_array_equal(plain[2], more[2])
  assert np.any(plain != more)


@functools.cache
def unmasked(steps: int, guidance: float = 1.0):
  model, variables = prior_of(MASKED)
  run = functools.partial(codes.unmasked, model, guidance=guidance, steps=steps)
  return np.asarray(jax.jit(run)(variables, KEYS, LABELS))


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_in_one_step_all_codes_are_drawn_from_what_is_said_of_none(guidance):
  found = unmasked(1, guidance)
  hidden, nothing = jnp.ones((4, 9), bool), jnp.zeros((4, 9), jnp.int32)
  logits = said(MASKED, nothing, LABELS, hidden)
  if guidance != 1.0:
    free = said(MASKED, nothing, jnp.full(4, 5), hidden)
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
    label_ids = staticmethod(model.label_ids)

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


@pytest.mark.parametrize("name", [CAUSAL, slow(MASKED)])
def test_a_sample_follows_from_its_seed_number_and_label_alone(name):
  assert isinstance(kinds.build(name), images.DrawsByCodes)
  numbers, labels = np.arange(6), np.array([0, 0, 1, 1, 3, 5])
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
