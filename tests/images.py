"""Tiny models of images, their sizes all different, and batches for them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from aigc_jax.layers.report import REPORTS
from aigc_jax.models.resnet import resnet
from aigc_jax.models.vit import vit
from aigc_jax.objectives.labels import labels
from tests import fresh
from tests.tiny import perturbed

VIT = dict(
  classes=7, image_size=12, channels=3, patch=4, layers=3, dim=24, heads=3,
  mlp_dim=44, activation="gelu", norm_eps=1e-6, position="learned",
  pool="token", registers=0, rotary_base=100.0, init_std=None, dropout=0.0,
  dtype="float32", remat="none", unroll=1, kernel="xla",
)  # fmt: skip
RESNET = dict(
  classes=7, image_size=17, channels=3, blocks=(1, 2), widths=(16, 24),
  bottleneck=True, stem="large", stem_dim=6, norm_eps=1e-5, norm_momentum=0.1,
  zero_init_residual=False, init_std=None, dtype="float32", remat="none",
)  # fmt: skip
STYLES = {
  "vit": (vit, VIT),
  "vit mean": (vit, VIT | dict(pool="mean", position="sincos")),
  "vit rotary": (vit, VIT | dict(position="rotary", registers=2)),
  "resnet": (resnet, RESNET),
  "resnet basic": (resnet, RESNET | dict(bottleneck=False, stem="small")),
}


def build(style: str, **changes):
  make, keys = STYLES[style]
  return make(**keys | changes)


@functools.cache
def variables_of(style: str):
  """Parameters and stats of a style, none of them zero or one."""
  model = build(style)
  return jax.tree.map(perturbed, fresh.variables(model, model.example()))


def batch_of(style: str, rows: int = 8, seed: int = 0) -> dict:
  """Images, labels, and weights that count some rows more than others."""
  _, keys = STYLES[style]
  draw = np.random.default_rng(seed)
  shape = (rows, keys["image_size"], keys["image_size"], keys["channels"])
  return dict(
    images=jnp.asarray(draw.normal(size=shape), jnp.float32),
    labels=jnp.asarray(draw.integers(0, keys["classes"], rows), jnp.int32),
    weights=jnp.ones(rows).at[-1].set(0.0),
  )


def score_of(model, **options):
  """(params, stats, batch) -> (loss sum, (means, reports)), as in training."""

  def score(params, stats, batch):
    variables = {"params": params, "stats": stats}
    found = {}

    def predict(batch):
      scores, found["reports"] = model.apply(
        variables, batch, mutable=[REPORTS]
      )
      return scores

    means = labels(predict, batch, **options)
    return means["loss"].sum, (means, found["reports"].get(REPORTS, {}))

  return score


@functools.cache
def loss_and_grad(style: str, **changes):
  """(loss sum, gradients, reports) on one batch; computed once a session."""
  v = variables_of(style)
  f = jax.value_and_grad(score_of(build(style, **changes)), has_aux=True)
  stats = v.get("stats", {})
  (loss, (_, reports)), grads = jax.jit(f)(v["params"], stats, batch_of(style))
  return loss, grads, reports
