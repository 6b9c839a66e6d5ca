"""The game: whose gradient is whose; losses and slopes by other arithmetic."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import run
from aigc_jax.errors import BadConfig
from aigc_jax.models.gan import Judged
from aigc_jax.objectives.adversarial import LOSSES, adversarial
from aigc_jax.trainer.state import Fixed
from tests import adversary
from tests.sweep import sweep

GAMES = [
  ("batch norm", dict()),
  ("patches", dict(loss="hinge")),
  ("plain", dict(r1=0.7)),
]
STYLED = ("styled", dict(r1=0.7))
PLAYERS = ("generator", "discriminator")


def bits(tree):
  return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def part_of_loss(style, player, **options):
  """Gradients of one player's part of the loss, of all parameters."""
  r1 = options.get("r1", 0.0)

  def part(params, batch):
    means = adversary.score_of(style, **options)(params, batch)
    slope = r1 / 2 * means["slope"].sum if r1 else 0.0
    return means[player].sum + (slope if player == "discriminator" else 0.0)

  return jax.jit(jax.grad(part))


@pytest.mark.slow
@pytest.mark.parametrize(
  ("style", "options"), sweep([*GAMES, STYLED], GAMES[2])
)
def test_a_players_part_of_the_loss_leaves_the_other_as_it_was(style, options):
  params, batch = adversary.variables_of(style)["params"], adversary.batch_of()
  for mine, other in (PLAYERS, PLAYERS[::-1]):
    grads = part_of_loss(style, mine, **options)(params, batch)
    assert all(np.any(x != 0) for x in jax.tree.leaves(grads[mine]))
    for x in jax.tree.leaves(grads[other]):
      np.testing.assert_array_equal(x, 0)
    # So a step down it changes no bit of the other.
    moved = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    assert bits(moved[other]) == bits(params[other])


@pytest.mark.slow
@pytest.mark.parametrize(
  ("style", "options"), sweep([*GAMES, STYLED], *GAMES[:2])
)
def test_the_gradient_of_the_sum_is_that_of_two_turns(style, options):
  """Each player's loss written by itself, the other's parameters constants."""
  params, batch = adversary.variables_of(style)["params"], adversary.batch_of()
  model, stats = adversary.build(style), adversary.variables_of(style)
  _, grads = adversary.gradient_of(style, **options)(params, batch)
  of_real, of_fake, of_fooled = LOSSES[options.get("loss", "non_saturating")]

  def call(params, batch, role):
    found, _ = model.apply(
      stats | {"params": params}, batch, role=role, mutable=["reports"]
    )
    return found

  def judge(params, images):
    return call(params, {"images": images}, "discriminator").scores_BS

  def discriminator(own):
    fake = call(params, batch, "generator")
    whole = params | {"discriminator": own}
    real_BS, fake_BS = judge(whole, batch["images"]), judge(whole, fake)
    slopes = jax.vmap(jax.grad(lambda x: judge(whole, x[None]).mean()))
    penalty = jnp.sum(slopes(batch["images"]) ** 2, axis=(1, 2, 3))
    half = options.get("r1", 0.0) / 2
    told = of_real(real_BS).mean(-1) + of_fake(fake_BS).mean(-1)
    return jnp.sum(told + (half * penalty if half else 0.0))

  def generator(own):
    fake = call(params | {"generator": own}, batch, "generator")
    return jnp.sum(of_fooled(judge(params, fake)).mean(-1))

  for player, loss in zip(PLAYERS, (generator, discriminator), strict=True):
    alone = jax.jit(jax.grad(loss))(params[player])
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
      grads[player],
      alone,
    )


def quadratic(rows=5, dims=6, seed=0):
  """A game whose judge is x A x / 2 + b x, in float64 besides."""
  draw = np.random.default_rng(seed)
  A = draw.normal(size=(dims, dims))
  A, b = (A + A.T) / 2, draw.normal(size=dims)
  x = draw.normal(size=(rows, dims, 1, 1))
  return A, b, x


def of_quadratic(params, x, **options):
  A, b = params

  def predict(batch, role, **how):
    if role == "generator":
      return jnp.zeros_like(batch["images"])
    x = batch["images"].reshape(len(batch["images"]), -1)
    score = 0.5 * jnp.sum(x @ A * x, -1, keepdims=True) + x @ b[:, None]
    return Judged(score)

  batch = dict(images=x, weights=jnp.ones(len(x)), draw=jnp.zeros((len(x), 2)))
  return adversarial(predict, batch, **options)


@pytest.mark.slow
def test_the_slope_of_a_quadratic_is_its_closed_form():
  """The slope is A x + b, and |A x + b|^2 / 2 moves A by (A x + b) x."""
  A, b, x = quadratic()
  params = jnp.asarray(A, jnp.float32), jnp.asarray(b, jnp.float32)
  given = jnp.asarray(x, jnp.float32)
  means = of_quadratic(params, given, r1=2.0)
  at = x[:, :, 0, 0]
  slope = at @ A + b
  exact = np.sum(slope**2)
  assert float(means["slope"].sum) == pytest.approx(exact, rel=1e-5)
  grads = jax.grad(lambda p: of_quadratic(p, given, r1=2.0)["slope"].sum / 2)(
    params
  )
  # A is symmetric, and its gradient is not: of x A x both sides are A's.
  outer = np.einsum("bi,bj->ij", slope, at)
  np.testing.assert_allclose(grads[0], (outer + outer.T) / 2, rtol=1e-4)
  np.testing.assert_allclose(grads[1], slope.sum(0), rtol=1e-4)


@pytest.mark.slow
def test_the_slopes_gradient_is_that_of_finite_differences_in_float64():
  """The network in NumPy's float64, its slope by backward passes of its own."""
  torch = pytest.importorskip("torch")
  style = "plain"
  params, batch = adversary.variables_of(style)["params"], adversary.batch_of(3)
  own = jax.tree.map(
    lambda x: np.asarray(x, np.float64), params["discriminator"]
  )

  def slope(own):
    """The sum of all images' squared slopes, by torch in float64."""
    give = lambda x: torch.tensor(x, dtype=torch.float64)  # noqa: E731
    x = give(np.asarray(batch["images"], np.float64).transpose(0, 3, 1, 2))
    x.requires_grad_(True)
    y = x
    for i in range(2):
      w = give(own[f"half{i}"]["w"].transpose(3, 2, 0, 1))
      bias = give(own[f"shift{i}"]["bias"])
      y = torch.nn.functional.conv2d(y, w, bias, stride=2, padding=1)
      y = torch.nn.functional.leaky_relu(y, 0.2)
    w = give(own["score"]["w"][..., 0].transpose(2, 0, 1))
    score = (y * w).sum((1, 2, 3)) + give(own["score"]["bias"])
    (dx,) = torch.autograd.grad(score.sum(), x)
    return float((dx**2).sum())

  means = adversary.score_of(style, r1=1.0)(params, batch)
  assert float(means["slope"].sum) == pytest.approx(slope(own), rel=1e-5)
  grads = part_of_loss(style, "discriminator", r1=1e4)(params, batch)
  without = part_of_loss(style, "discriminator")(params, batch)
  draw = np.random.default_rng(1)
  for name in ("half0", "half1", "score"):
    way = draw.normal(size=own[name]["w"].shape)
    ends = []
    for sign in (1, -1):
      moved = dict(own[name], w=own[name]["w"] + sign * 1e-6 * way)
      ends.append(slope({**own, name: moved}))
    along = (ends[0] - ends[1]) / 2e-6
    found = np.sum(
      (
        np.asarray(grads["discriminator"][name]["w"], np.float64)
        - np.asarray(without["discriminator"][name]["w"], np.float64)
      )
      * way
    )
    assert found / 5e3 == pytest.approx(along, rel=1e-3), name


def test_losses_are_their_definitions():
  scores = np.array([-2.0, -0.5, 0.3, 3.0])
  log = lambda x: -np.log(1 / (1 + np.exp(-x)))  # noqa: E731
  exact = {
    "non_saturating": (log(scores), log(-scores), log(scores)),
    "hinge": (
      np.maximum(0, 1 - scores), np.maximum(0, 1 + scores), -scores,
    ),
  }  # fmt: skip
  assert set(exact) == set(LOSSES)
  for name, values in exact.items():
    for f, value in zip(LOSSES[name], values, strict=True):
      np.testing.assert_allclose(f(jnp.asarray(scores)), value, rtol=1e-6)


@pytest.mark.slow
def test_parts_of_a_batch_add_up_to_the_whole_without_batch_norm():
  params, batch = (
    adversary.variables_of("plain")["params"],
    adversary.batch_of(),
  )
  graded = adversary.gradient_of("plain", r1=0.7)
  parts = [
    graded(params, {name: x[rows] for name, x in batch.items()})
    for rows in (slice(0, 8, 2), slice(1, 8, 2))
  ]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
    graded(params, batch),
    jax.tree.map(jnp.add, *parts),
  )


@pytest.mark.slow
def test_a_norm_hears_of_real_and_drawn_images_once_each():
  """What fools the judge is seen by it a second time, and is not counted."""
  params, batch = (
    adversary.variables_of("batch norm")["params"], adversary.batch_of(),
  )  # fmt: skip
  reports = adversary.score_of("batch norm")(params, batch)["reports"]
  counts = {
    player: {
      name: float(report["moments"].shift.weight)
      for name, report in reports[player].items()
    }
    for player in PLAYERS
  }
  assert counts["discriminator"] == {"norm1": 2 * 8 * 3 * 3}
  assert counts["generator"] == {"norm1": 8 * 3 * 3, "norm0": 8 * 6 * 6}


def test_who_is_right_is_counted():
  def predict(batch, role, **how):
    if role == "generator":
      return batch["images"] - 10
    return Judged(batch["images"].reshape(len(batch["images"]), -1))

  images = jnp.asarray([1.0, 2.0, -3.0, 4.0]).reshape(4, 1, 1, 1)
  batch = dict(images=images, draw=jnp.zeros((4, 2)))
  batch["weights"] = jnp.asarray([1.0, 1, 1, 0])
  means = adversarial(predict, batch)
  assert float(means["real"].value()) == pytest.approx(2 / 3)
  assert float(means["fake"].value()) == 1
  assert float(means["loss"].weight) == 3


@pytest.mark.parametrize(
  ("style", "options", "word"),
  [
    ("batch norm", dict(r1=1.0), "discriminator_norm=none"),
    ("plain", dict(r1=-1.0), "0 or more"),
    ("plain", dict(loss="wasserstein"), "hinge, non_saturating"),
  ],
)
def test_options_that_cannot_go_together_are_refused(style, options, word):
  params, batch = adversary.variables_of(style)["params"], adversary.batch_of(2)
  with pytest.raises(BadConfig, match=word):
    jax.eval_shape(adversary.score_of(style, **options), params, batch)


def test_data_without_keys_is_refused():
  model = adversary.build("plain")
  score = run.scorer(model, functools.partial(adversarial))
  batch = adversary.batch_of(2)
  del batch["draw"]
  with pytest.raises(BadConfig, match="data.draw=True"):
    score(adversary.variables_of("plain")["params"], batch, None, fixed=Fixed())
