"""Laws of models of images, of batch norm, and of the objective of labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import errors, flops, sharding
from aigc_jax.errors import BadConfig
from aigc_jax.layers.batch_norm import BatchNorm
from aigc_jax.layers.classifier import Scores
from aigc_jax.layers.report import REPORTS, STATS, moved
from aigc_jax.models.images import check_images
from aigc_jax.objectives.labels import labels
from configs import resnet as resnet_presets
from configs import vit as vit_presets
from tests import images
from tests.golden import written
from tests.sweep import slow, sweep

CLOSE = dict(rtol=2e-4, atol=2e-5)
STYLES = sorted(images.STYLES)
PUBLISHED = {  # of 1,000 labels
  "vit:s16": 22_050_664,
  "vit:b16": 86_567_656,
  "vit:l16": 304_326_632,
  "resnet:r18": 11_689_512,
  "resnet:r34": 21_797_672,
  "resnet:r50": 25_557_032,
  "resnet:r101": 44_549_160,
  "resnet:r152": 60_192_808,
}


def test_every_preset_is_held_against_a_published_count():
  found = {
    f"{name}:{size}"
    for name, config in (("vit", vit_presets), ("resnet", resnet_presets))
    for size in config.SIZES
  }
  assert found == set(PUBLISHED)


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_have_their_published_counts(preset):
  assert written.count_of(preset) == PUBLISHED[preset]


@pytest.mark.slow
def test_how_a_vit_is_computed_changes_neither_value_nor_gradient():
  a, da, _ = images.loss_and_grad("vit rotary")
  b, db, _ = images.loss_and_grad("vit rotary", unroll=0, remat="dots")
  np.testing.assert_allclose(a, b, rtol=1e-5)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **CLOSE), da, db)


@pytest.mark.slow
def test_a_resnet_made_again_has_the_same_gradient_and_reports():
  a, b = (
    images.loss_and_grad("resnet", **change)
    for change in ({}, dict(remat="full"))
  )
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **CLOSE), a, b)


@pytest.mark.slow
@pytest.mark.parametrize("style", sweep(STYLES, "vit mean", "resnet basic"))
def test_in_evaluation_a_row_is_no_matter_of_the_others(style):
  model, variables = images.build(style), images.variables_of(style)
  batch = images.batch_of(style, rows=4)
  run = jax.jit(lambda x: model.apply(variables, {"images": x}).logits())
  whole, part = run(batch["images"]), run(batch["images"][1:2])
  np.testing.assert_allclose(whole[1:2], part, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize(
  "style", sweep(["vit", "vit mean", "vit rotary"], "vit rotary")
)
def test_where_a_patch_lies_matters(style):
  model, variables = images.build(style), images.variables_of(style)
  x = images.batch_of(style, rows=2)["images"]
  run = jax.jit(lambda x: model.apply(variables, {"images": x}).logits())
  swapped = jnp.concatenate([x[:, 4:8], x[:, :4], x[:, 8:]], axis=1)
  assert float(jnp.max(jnp.abs(run(x) - run(swapped)))) > 1e-3


MADE_AGAIN = {
  "resnet": dict(remat="full"), "vit rotary": dict(unroll=0, remat="dots"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
  ("style", "change"),
  [*MADE_AGAIN.items(), slow(("resnet", {})), slow(("vit", {}))],
)
def test_gradients_and_reports_are_the_same_on_one_and_eight_devices(
  style, change
):
  a = images.loss_and_grad(style)
  mesh = sharding.make_mesh(
    data=2, fsdp=2, expert=1, tensor=2, sequence=1, pipeline=1
  )
  v, batch = images.variables_of(style), images.batch_of(style)
  letters = dict(images="BYXC", labels="B", weights="B")
  laid = {
    k: jax.device_put(x, sharding.shardings(letters[k], x.shape, mesh))
    for k, x in batch.items()
  }
  model = images.build(style, **change)
  f = jax.value_and_grad(images.score_of(model), has_aux=True)
  with jax.set_mesh(mesh):
    (loss, (_, reports)), grads = jax.jit(f)(
      v["params"], v.get(STATS, {}), laid
    )
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=5e-5),
    a,
    (loss, grads, reports),
  )


@pytest.mark.slow
def test_flops_are_three_times_those_of_what_is_read():
  """Forward once; backward once for what is read, once for the weights."""
  style = "resnet"
  model, v = images.build(style), images.variables_of(style)
  batch = images.batch_of(style, rows=1)
  score = images.score_of(model)
  whole = flops.count(
    jax.grad(lambda p: score(p, v[STATS], batch)[0]), v["params"]
  )
  sizes = {  # by hand: the places that are written, and what each one reads
    "stem": 9 * 9 * 6 * 7 * 7 * 3,
    "block 0": 5 * 5 * (6 * 4 + 9 * 4 * 4 + 4 * 16 + 6 * 16),
    "block 1": 25 * 16 * 6 + 9 * (9 * 6 * 6 + 6 * 24 + 16 * 24),
    "block 2": 9 * (24 * 6 + 9 * 6 * 6 + 6 * 24),
    "head": 24 * 7,
  }
  # Nothing asks for the gradient of the images.
  assert whole == 2 * (3 * sum(sizes.values()) - sizes["stem"])


def norm_of(x, stats, momentum=0.1):
  layer = BatchNorm(1e-5, momentum)
  variables = {
    "params": {"scale": jnp.ones(x.shape[-1]), "bias": jnp.zeros(x.shape[-1])},
    STATS: stats,
  }
  return layer.apply(variables, x, mutable=[REPORTS])


def test_moments_do_not_lose_their_digits_far_from_zero():
  draw = np.random.default_rng(0).normal(size=(64, 3, 3, 5))
  x = jnp.asarray(1000 + 0.1 * draw, jnp.float32)
  stats = {"mean": jnp.full(5, 1000.0), "var": jnp.ones(5)}
  y, made = norm_of(x, stats, momentum=1.0)
  new = moved(stats, made[REPORTS])
  exact = np.asarray(x, np.float64).reshape(-1, 5)
  np.testing.assert_allclose(new["mean"], exact.mean(0), rtol=1e-6)
  np.testing.assert_allclose(new["var"], exact.var(0, ddof=1), rtol=1e-3)
  np.testing.assert_allclose(np.var(y, (0, 1, 2)), 1, rtol=1e-2)


def test_reports_of_parts_are_that_of_the_whole():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2, 2, 3)), "float32")
  stats = {"mean": jnp.full(3, 0.5), "var": jnp.ones(3)}
  whole = norm_of(x, stats)[1][REPORTS]
  parts = [norm_of(part, stats)[1][REPORTS] for part in (x[::2], x[1::2])]
  added = jax.tree.map(jnp.add, *parts)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    (moved(stats, whole), whole),
    (moved(stats, added), added),
  )


@pytest.mark.parametrize(
  ("style", "change", "word"),
  [
    ("vit", dict(patch=5), "10 and 15"),
    ("vit", dict(heads=5), "not divisible"),
    ("vit", dict(position="rotated"), "rotary"),
    ("vit", dict(position="rotary", heads=4), "multiple of 4"),
    ("vit", dict(pool="max"), "token"),
    ("vit", dict(registers=-1), "registers"),
    ("vit", dict(dtype="float16"), "bfloat16"),
    ("vit", dict(layers=0), "layers"),
    ("resnet", dict(widths=(16,)), "one number"),
    ("resnet", dict(widths=(16, 22)), r"widths\[1\]=22"),
    ("resnet", dict(stem="huge"), "large"),
    ("resnet", dict(norm_momentum=0.0), "norm_momentum"),
    ("resnet", dict(remat="some"), "full"),
  ],
)
def test_parts_that_cannot_go_together_are_refused(style, change, word):
  with pytest.raises(errors.BadConfig, match=word):
    images.build(style, **change)


def test_images_of_another_size_are_refused_by_name():
  batch = {"images": jnp.zeros((1, 8, 12, 3))}
  with pytest.raises(errors.BadConfig, match=r"12x12x3 .* gives 8x12x3"):
    jax.eval_shape(images.build("vit").init, jax.random.key(0), batch)


def means_of(logits, batch, **options):
  @jax.jit
  def run(logits, batch):
    means = labels(lambda batch: Scores(logits), batch, **options)
    return {name: mean.value() for name, mean in means.items()}

  found = run(np.asarray(logits, np.float32), batch)
  return {name: float(x) for name, x in found.items()}


def batch_of_labels(given, **more):
  ones = np.ones(len(given), np.float32)
  return dict(labels=np.asarray(given), weights=ones) | more


def test_labels_are_right_where_nothing_is_likelier():
  logits = np.eye(7)[[1, 1, 2, 3]]
  means = means_of(logits, batch_of_labels([1, 2, 2, 0]))
  assert means["top1"] == 0.5 and means["top5"] == 1.0
  assert means["loss"] == pytest.approx(means["nll"])


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_model_that_tells_nothing_is_not_right(value):
  """Equal logits are those of label 0; what is no number is never right."""
  means = means_of(np.full((4, 7), value), batch_of_labels([1, 2, 3, 6]))
  assert means["top1"] == 0
  assert means["top5"] == (0.75 if value == 0 else 0)


def test_smoothing_and_mixing_are_the_cross_entropy_of_soft_targets():
  draw = np.random.default_rng(0)
  logits, share = draw.normal(size=(3, 7)), np.float32([1.0, 0.25, 0.6])
  first, second = [1, 2, 3], [0, 5, 3]
  batch = batch_of_labels(
    first, other_labels=jnp.asarray(second), share=jnp.asarray(share)
  )
  hot = np.eye(7)
  target = share[:, None] * hot[first] + (1 - share[:, None]) * hot[second]
  logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  nll = -(target * logp).sum(1).mean()
  means = means_of(logits, batch, smoothing=0.2)
  assert means["nll"] == pytest.approx(nll, rel=1e-5)
  soft = 0.8 * target + 0.2 / 7
  assert means["loss"] == pytest.approx(-(soft * logp).sum(1).mean(), rel=1e-5)


def test_few_labels_have_no_five_likeliest():
  means = means_of(np.eye(3), batch_of_labels([0, 1, 1]))
  assert set(means) == {"loss", "nll", "top1"}
  assert means["top1"] == pytest.approx(2 / 3)


def test_images_of_another_size_are_told_the_keys_also_of_a_model_of_parts():
  images_BYXC = jnp.zeros((2, 16, 16, 1))
  with pytest.raises(BadConfig) as told:
    check_images(images_BYXC, (8, 8, 3))
  with pytest.raises(
    BadConfig, match=r"--config\.model\.parts\.vq\.image_size=16"
  ):
    check_images(images_BYXC, (8, 8, 3), "vq")
  for words in (
    "--config.data.image_size=8 --config.data.channels=3",
    "--config.model.image_size=16 --config.model.channels=1",
  ):
    assert words in str(told.value)
