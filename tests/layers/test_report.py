"""Laws of what layers report beside their output."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from aigc_jax.layers.report import (
  REPORTS,
  STATS,
  OfLayers,
  are_averaged,
  averaged,
  report,
  reporting,
)
from aigc_jax.metrics import Mean


@struct.dataclass
class Seen:
  """The mean of what a layer saw, which its stats follow half of the way."""

  mean: Mean
  share: float = struct.field(pytree_node=False)

  def move(self, old):
    return {
      "mean": old["mean"] + self.share * (self.mean.value() - old["mean"])
    }


class Follows(nn.Module):
  @nn.compact
  def __call__(self, x):
    mean = self.variable(STATS, "mean", jnp.zeros, (3,))
    total = Mean(x.sum(0), jnp.asarray(len(x), jnp.float32))
    report(self, "seen", Seen(total, 0.5))
    return x - mean.value, reporting(self)


class Twice(nn.Module):
  @nn.compact
  def __call__(self, x):
    layer = Follows(name="follows")
    x, asked = layer(x)
    return layer(x)[0], asked


X = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)


def test_nothing_is_reported_where_nobody_asks():
  stats = Twice().init(jax.random.key(0), X)
  assert set(stats) == {STATS}
  (_, asked), made = Twice().apply(stats, X, mutable=["other"])
  assert not asked and not made


def test_reports_of_several_calls_and_parts_of_a_batch_are_one_sum():
  stats = Twice().init(jax.random.key(0), X)

  def seen(x):
    (_, asked), made = Twice().apply(stats, x, mutable=[REPORTS])
    assert asked
    return made[REPORTS]

  whole = seen(X)["follows"]["seen"]
  np.testing.assert_allclose(whole.mean.sum, 2 * X.sum(0), rtol=1e-6)
  assert float(whole.mean.weight) == 16
  parted = jax.tree.map(jnp.add, seen(X[::2]), seen(X[1::2]))
  moved = parted["follows"]["seen"].move(stats[STATS]["follows"])
  np.testing.assert_allclose(moved["mean"], X.mean(0) / 2, rtol=1e-5)


@struct.dataclass
class Followed(Seen):
  averages = True


def test_what_says_so_is_moved_for_itself_and_the_rest_is_as_it_is():
  total = Mean(X.sum(0), jnp.asarray(8.0))
  old, new = jnp.arange(3.0), jnp.arange(3.0) + 4
  stats = dict(
    a=dict(mean=new, of=dict(mean=new)), b=dict(mean=new[None]), still=new
  )
  before = jax.tree.map(lambda x: x - 4, stats)
  layers = jax.tree.map(lambda x: x[None], Followed(total, 0.5))
  reports = dict(
    a=dict(seen=Followed(total, 0.5), of=dict(seen=Seen(total, 0.5))),
    b=dict(seen=OfLayers(layers)),
    other=dict(seen=Followed(total, 0.5)),
  )
  assert are_averaged(reports) and not are_averaged(reports["a"]["of"])
  found = averaged(before, stats, reports)
  moved = (old + X.mean(0)) / 2
  assert jax.tree.structure(found) == jax.tree.structure(stats)
  np.testing.assert_allclose(found["a"]["mean"], moved, rtol=1e-5)
  np.testing.assert_allclose(found["b"]["mean"], moved[None], rtol=1e-5)
  for x in (found["a"]["of"]["mean"], found["still"]):
    np.testing.assert_array_equal(x, new)
