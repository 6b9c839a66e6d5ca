"""VQ-GAN: whose gradient is whose, from when on, by what weight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from aigc_jax import tree
from aigc_jax.errors import BadConfig
from aigc_jax.layers.report import REPORTS, moved
from aigc_jax.models import MODELS
from aigc_jax.models.gan import Judged
from aigc_jax.models.vq import Coded, Codes
from aigc_jax.models.vqgan import Drawn
from aigc_jax.objectives.vq import vq
from aigc_jax.objectives.vqgan import LARGEST, LEAST, vqgan
from aigc_jax.presets import vq as presets
from aigc_jax.run.build import scorer
from aigc_jax.sampling.images import Reconstructs
from aigc_jax.trainer.state import Fixed
from tests import diffusion, kinds
from tests.sweep import slow

NAME = "vqgan"
MEANS = ("generator", "discriminator")


@functools.cache
def graded(**options):
  """jitted (stats, batch) -> ((loss, means), gradients), as in training."""
  model, params = kinds.build(NAME), kinds.params_of(NAME)
  score = scorer(model, functools.partial(vqgan, **options))

  def loss(params, stats, batch):
    means = score(params, batch, jax.random.key(0), fixed=Fixed(None, stats))
    return means["loss"].sum, means

  f = jax.jit(jax.value_and_grad(loss, has_aux=True))
  return functools.partial(f, params)


def stats_of(steps: int):
  found = dict(kinds.variables_of(NAME)["stats"])
  return found | dict(steps=jnp.full(1, float(steps)))


def close(a, b):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-3, atol=2e-4), a, b
  )


def of_vq(batch):
  """Gradients of the first player alone, as a VQ-VAE."""
  model = MODELS["vq"](**{k: v for k, v in kinds.VQ.items() if k != "kind"})
  fixed = Fixed(None, kinds.variables_of(NAME)["stats"]["generator"])
  score = scorer(model, functools.partial(vq, distance="absolute"))
  loss = lambda p: score(p, batch, None, fixed=fixed)["loss"].sum  # noqa: E731
  return jax.jit(jax.grad(loss))(kinds.params_of(NAME)["generator"])


@pytest.mark.slow
def test_the_judge_is_heard_from_the_start_step_on_and_learns_before():
  batch = diffusion.batch_of(4)
  run = graded(start_step=5)
  (_, means), before = run(stats_of(4), batch)
  _, after = run(stats_of(5), batch)
  close(before["generator"], of_vq(batch))
  assert any(np.any(x) for x in jax.tree.leaves(before["discriminator"]))
  close(before["discriminator"], after["discriminator"])
  apart = jax.tree.map(
    lambda a, b: np.abs(a - b).max(), before["generator"], after["generator"]
  )
  assert max(jax.tree.leaves(apart)) > 1e-3
  # Updates are counted as such.
  new = moved(stats_of(4), means[REPORTS])
  assert float(new["steps"][0]) == 5


@pytest.mark.parametrize("far", [0.5, 50.0])
def test_no_image_is_weighed_by_more_than_the_limit(far):
  """Of a judge who says the same of all images, whose slope is none."""
  images = np.zeros((3, 6, 6, 1), np.float32)
  made = Coded(images + far, None, jnp.zeros(3), jnp.zeros(3))

  def predict(batch, role, **how):
    del how
    if role == "generator":
      return Drawn(made, jnp.float32(9))
    return Judged(jnp.zeros((len(batch["images"]), 1)), coupled=False)

  batch = dict(images=images, weights=np.ones(3, np.float32))
  run = jax.jit(lambda b: vqgan(predict, b, distance="square"))
  # 36 pixels, each of slope 2 far / 36: in all far / 3, over 1e-4.
  found = float(run(batch)["balance"].value())
  assert found == pytest.approx(min(far / 3 / LEAST, LARGEST), rel=1e-3)
  assert found <= LARGEST


@pytest.mark.slow
def test_an_image_is_weighed_by_its_own_slopes():
  batch = diffusion.batch_of(4)
  (_, means), grads = graded()(stats_of(9), batch)
  model, variables = kinds.build(NAME), kinds.variables_of(NAME)
  coded = model.apply(variables, batch, role="generator").coded

  def fooled(x):
    told = model.apply(variables, {"images": x}, role="discriminator")
    return -jnp.sum(jnp.mean(told.scores_BS, axis=-1))

  size = lambda x: np.sqrt(np.sum(np.asarray(x) ** 2, axis=(1, 2, 3)))  # noqa: E731
  pixels = coded.pixels_BYXC
  of_lost = size(np.sign(pixels - batch["images"]) / 36)
  balance = of_lost / (size(jax.grad(fooled)(pixels)) + LEAST)
  weights = np.asarray(batch["weights"])
  assert float(means["balance"].sum) == pytest.approx(
    np.sum(balance * weights), rel=1e-3
  )
  # What the first player gets of the judge is so much times that.
  said, back = jax.vjp(
    lambda p: (
      model.apply(
        variables | {"params": p}, batch, role="generator"
      ).coded.pixels_BYXC
    ),
    variables["params"],
  )
  told = jax.grad(fooled)(said) * (0.8 * weights * balance)[:, None, None, None]
  close(
    jax.tree.map(jnp.add, back(told)[0]["generator"], of_vq(batch)),
    grads["generator"],
  )


@pytest.mark.slow
@pytest.mark.parametrize("player", [MEANS[0], slow(MEANS[1])])
def test_a_players_part_of_the_loss_leaves_the_other_as_it_was(player):
  model, params = kinds.build(NAME), kinds.params_of(NAME)
  score = scorer(model, vqgan)

  def part(params):
    fixed = Fixed(None, stats_of(9))
    return score(params, diffusion.batch_of(4), None, fixed=fixed)[player].sum

  grads = jax.jit(jax.grad(part))(params)
  (other,) = set(MEANS) - {player}
  assert any(np.any(x) for x in jax.tree.leaves(grads[player]))
  assert not any(np.any(x) for x in jax.tree.leaves(grads[other]))


def test_it_makes_codes_as_its_vq_and_a_prior_may_tell_them():
  model = kinds.build(NAME)
  assert isinstance(model, Codes) and isinstance(model, Reconstructs)
  assert (model.codes, model.places) == (12, (3, 3))
  parts = dict(vq=dict(kinds.KINDS[NAME].model), prior=kinds.DECODER)
  prior = MODELS["image_tokens"](classes=5, parts=parts)
  shapes = jax.eval_shape(prior.init, jax.random.key(0), prior.example())
  assert set(shapes["params"]["vq"]) == set(MEANS)


def test_the_judge_has_the_published_count():
  keys = presets.get_config("gan").model.to_dict()
  model = MODELS[keys.pop("kind")](**keys)
  shapes = jax.eval_shape(model.init, jax.random.key(0), model.example())
  judge = nn.unbox(shapes["params"]["discriminator"])
  assert tree.count(judge) == 2_765_633
  assert model.couples_rows == "batch norm"


@pytest.mark.parametrize(
  ("change", "word"),
  [
    (dict(judge_widths=()), "model.judge_widths is empty"),
    (dict(judge_widths=(4, 4)), "model.judge_widths: a multiple of 4"),
    (dict(judge_norm="layer"), "batch, none"),
    (dict(codes=None), "model.codes=None"),
  ],
)
def test_parts_that_cannot_go_together_are_refused(change, word):
  keys = dict(kinds.KINDS[NAME].model) | change
  with pytest.raises(BadConfig, match=word):
    MODELS[keys.pop("kind")](**keys)


@pytest.mark.parametrize(
  ("options", "word"),
  [
    (dict(weight=-1.0), "objective.weight"),
    (dict(start_step=-1), "objective.start_step"),
    (dict(loss="wasserstein"), "hinge"),
    (dict(distance="cubic"), "square"),
  ],
)
def test_options_that_cannot_be_are_refused(options, word):
  with pytest.raises(BadConfig, match=word):
    vqgan(None, {}, **options)


@pytest.mark.slow
def test_another_objective_is_told_which_goes_with_it():
  with pytest.raises(BadConfig, match="'teacher'.*kind=vqgan"):
    kinds.build(NAME).apply(
      kinds.variables_of(NAME), diffusion.batch_of(1), "teacher"
    )
