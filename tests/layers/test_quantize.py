"""Laws of quantisers: codebooks that means or gradients move, and grids."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from aigc_jax import sharding
from aigc_jax.layers import quantize
from aigc_jax.layers.quantize import Codebook, Grid
from aigc_jax.layers.report import REPORTS, STATS, moved, told
from tests.diffusion import keys_of
from tests.sweep import sweep

V, D, B, T = 7, 3, 8, 5
ONE = np.ones(B, np.float32)
MEANS = dict(codes=V, dim=D, decay=0.9, revive=0.5)


def rows(seed: int = 0) -> np.ndarray:
  draw = np.random.default_rng(seed)
  return draw.normal(size=(B, T, D)).astype(np.float32)


@functools.cache
def fresh(module, seed: int = 0):
  init = jax.jit(module.init)
  return nn.unbox(init(jax.random.key(seed), rows()[:1], ONE[:1], keys_of(1)))


move = jax.jit(moved)


@functools.cache
def reporter(**keys):
  """jitted (variables, x, weights, draw) -> (Quantized, reports)."""
  module = Codebook(**keys)

  def run(variables, x, weights, draw):
    found, new = module.apply(variables, x, weights, draw, mutable=[REPORTS])
    return found, new[REPORTS]

  return jax.jit(run)


def stepped(stats, x, draw, parts: int = 1, weights=None, **keys):
  """The stats after a step on x, taken in interleaved parts."""
  weights = ONE if weights is None else weights
  total = None
  for i in range(parts):
    some = (np.asarray(a)[i::parts] for a in (x, weights, draw))
    _, new = reporter(**MEANS | keys)({STATS: stats}, *some)
    total = new if total is None else jax.tree.map(np.add, total, new)
  return move(stats, total)


@functools.cache
def trained(steps: int, parts: int = 1, **keys):
  """Stats after some steps, each on rows of its own."""
  stats = fresh(Codebook(**MEANS | keys))[STATS]
  for i in range(steps):
    stats = stepped(stats, rows(i), keys_of(B, i), parts, **keys)
  return stats


def assert_close(a, b):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b
  )


def test_each_vector_becomes_the_nearest_of_the_codebook():
  module = Codebook(codes=V, dim=D)
  variables, x = fresh(module), rows()
  found = jax.jit(module.apply)(variables, x, ONE)
  table = np.asarray(variables["params"]["table"])
  far = ((np.asarray(x)[:, :, None] - table) ** 2).sum(-1)
  np.testing.assert_array_equal(found.codes_BT, far.argmin(-1))
  np.testing.assert_array_equal(found.vectors_BTD, table[far.argmin(-1)])
  apply = functools.partial(module.apply, method="vectors")
  vectors = jax.jit(apply)(variables, found.codes_BT)
  np.testing.assert_array_equal(found.vectors_BTD, vectors)


@pytest.mark.parametrize("decay", [None, 0.9])
def test_the_gradient_of_a_vector_goes_straight_through(decay):
  module = Codebook(codes=V, dim=D, decay=decay)
  variables, x = fresh(module), rows()
  weight = rows(1)

  def value(x, params):
    found = module.apply(variables | params, x, jnp.ones(B))
    return jnp.sum(weight * found.vectors_BTD)

  params = {"params": variables.get("params", {})}
  dx, dparams = jax.jit(jax.grad(value, argnums=(0, 1)))(x, params)
  np.testing.assert_array_equal(dx, weight)
  assert not any(np.any(d) for d in jax.tree.leaves(dparams))


def test_commitment_moves_what_is_quantised_and_the_codebook_its_vectors():
  module = Codebook(codes=V, dim=D)
  variables, x = fresh(module), rows()

  @jax.jit
  def values(x, variables):
    """Both sums, and what moves them."""

    def value(x, variables, name):
      return jnp.sum(getattr(module.apply(variables, x, ONE), name))

    f = jax.value_and_grad(value, argnums=(0, 1))
    return [f(x, variables, name) for name in ("commitment_B", "codebook_B")]

  (one, of_x), (other, of_table) = values(x, variables)
  for (dx, d), moves in ((of_x, (True, False)), (of_table, (False, True))):
    assert (np.any(dx), np.any(d["params"]["table"])) == moves
  assert one == other  # of equal value: they are one distance


def test_means_move_towards_what_was_assigned_before_they_moved():
  before, x = trained(3, revive=0.0), rows(9)
  after = stepped(before, x, keys_of(B), revive=0.0)
  codes = np.asarray(jax.jit(quantize.nearest)(x, before["table"])).reshape(-1)
  flat = np.asarray(x).reshape(-1, D)
  counts = np.bincount(codes, minlength=V)
  sums = np.stack([flat[codes == k].sum(0) for k in range(V)])
  before, after = jax.device_get((before, after))
  counts = 0.9 * before["counts"] + 0.1 * counts
  sums = 0.9 * before["sums"] + 0.1 * sums
  assert_close(after["counts"], counts)
  assert_close(after["table"][counts > 0], (sums / counts[:, None])[counts > 0])


def test_no_evaluation_moves_a_codebook():
  module, stats = Codebook(**MEANS), trained(2)
  apply = functools.partial(module.apply, mutable=["other"])
  _, new = jax.jit(apply)({STATS: stats}, rows(), ONE)
  assert not new


@pytest.mark.slow
@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("parts", sweep([2, 4], 2))
def test_parts_of_a_batch_move_a_codebook_as_the_whole_does(parts, cosine):
  one, many = (trained(6, n, cosine=cosine) for n in (1, parts))
  assert_close(one, many)


@pytest.mark.slow
def test_eight_devices_move_a_codebook_as_one_does():
  before, x, draw = trained(4), rows(9), keys_of(B, 9)
  mesh = sharding.make_mesh(
    data=2, fsdp=2, expert=1, tensor=2, sequence=1, pipeline=1
  )
  place = lambda a, letters: jax.device_put(  # noqa: E731
    a, sharding.shardings(letters, a.shape, mesh)
  )
  letters = dict(table="VD", sums="VD", counts="V", size=".")
  laid = {name: place(a, letters[name]) for name, a in before.items()}
  ones = place(jnp.ones(B), "B")
  with jax.set_mesh(mesh):
    run = jax.jit(reporter(**MEANS).__wrapped__)
    _, new = run({STATS: laid}, place(x, "BTD"), ones, place(draw, "B."))
    many = jax.device_get(moved(laid, new))
  assert_close(stepped(before, x, draw), many)


def born(before, after) -> list[int]:
  """The codes that are one vector of the batch, to the bit."""
  flat = {row.tobytes() for row in np.asarray(rows(9)).reshape(-1, D)}
  table = np.asarray(after["table"])
  return [k for k in range(V) if table[k].tobytes() in flat]


def with_dead(dead=(1, 4)):
  """A codebook two of whose vectors lie where nothing is."""
  stats = jax.tree.map(np.array, trained(4, revive=0.0))
  stats["table"][list(dead)], stats["counts"][list(dead)] = 1e3, 0.0
  return stats


@pytest.mark.slow
def test_a_dead_code_becomes_a_vector_of_the_batch_the_same_in_any_parts():
  before, taken = with_dead(), 0
  for seed in range(8):
    one, two, four = (
      stepped(before, rows(9), keys_of(B, seed), n) for n in (1, 2, 4)
    )
    found = born(before, one)
    assert found == born(before, two) == born(before, four)
    taken += len(set(found) & {1, 4})
    at = jnp.asarray(found, int)
    np.testing.assert_array_equal(one["table"][at], four["table"][at])
  # On average a code has one vector drawn for it, and none or two otherwise.
  assert 3 <= taken <= 13
  assert not {1, 4} & set(
    born(before, stepped(before, rows(9), keys_of(B, 0), revive=0.0))
  )


def test_dead_codes_come_into_use():
  stats = with_dead(dead=range(1, V))
  perplexity = jax.jit(quantize.perplexity)
  first = perplexity(stats["counts"])
  for i in range(40):
    stats = stepped(stats, rows(i), keys_of(B, i))
  assert first < 1.5 and perplexity(stats["counts"]) > 0.7 * V


def test_a_row_of_weight_0_moves_nothing():
  before, draw = trained(3), keys_of(B, 5)
  weights, x = ONE.copy(), rows(9)
  junk = x.copy()
  weights[2], junk[2] = 0.0, 50.0
  a, b = (stepped(before, some, draw, weights=weights) for some in (x, junk))
  jax.tree.map(np.testing.assert_array_equal, a, b)
  assert float(a["size"][0]) == (B - 1) * T


def test_the_use_of_a_codebook_is_recorded():
  counts = np.array([4.0, 4, 0, 0, 0, 0, 0], np.float32)
  stats = trained(5) | dict(counts=counts)
  _, new = reporter(**MEANS)({STATS: stats}, rows(), ONE, keys_of(B))
  found = {name: float(mean.value()) for name, mean in told(new).items()}
  assert found == pytest.approx({"perplexity": 2.0, "used": 2 / V})


@pytest.mark.parametrize("module", [Codebook(**MEANS), Grid((3, 4, 5))])
def test_before_the_first_step_nothing_is_said_of_the_use(module):
  """Or the mean over the steps of a row had one of no use in it."""
  apply = jax.jit(functools.partial(module.apply, mutable=[REPORTS]))
  _, new = apply(fresh(module), rows(), ONE, keys_of(B))
  found = told(new[REPORTS])
  assert {name: float(mean.weight) for name, mean in found.items()} == {
    "perplexity": 0.0, "used": 0.0,
  }  # fmt: skip


LEVELS = (3, 4, 5)


@pytest.mark.slow
def test_every_code_of_a_grid_has_a_vector_of_its_own_and_is_reached():
  module = Grid(LEVELS)
  assert module.codes == 60 and module.dim == 3
  variables = fresh(module)
  wide = 4 * jax.random.normal(jax.random.key(0), (40, 200, 3))
  found = module.apply(variables, wide, jnp.ones(40))
  assert np.array_equal(np.unique(found.codes_BT), np.arange(60))
  vectors = module.apply(variables, jnp.arange(60)[None], method="vectors")[0]
  assert len(np.unique(vectors, axis=0)) == 60
  assert np.abs(vectors).max() == 1.0
  # There and back, to the bit.
  again = module.apply(variables, found.codes_BT, method="vectors")
  np.testing.assert_array_equal(again, found.vectors_BTD)


@pytest.mark.slow
def test_a_grid_rounds_what_it_bounds_and_lets_its_gradient_through():
  module, x = Grid(LEVELS), rows()
  variables = fresh(module)
  run = lambda x: module.apply(variables, x, jnp.ones(B))  # noqa: E731
  slope = jax.grad(lambda x: jnp.sum(run(x).vectors_BTD))(x)
  assert np.all(slope > 0)
  half = np.asarray(LEVELS) // 2
  small = np.zeros((1, 1, 3), np.float32)
  np.testing.assert_array_equal(run(small).vectors_BTD, 0 * small)
  large = run(np.full((1, 1, 3), 9.0)).vectors_BTD * half
  np.testing.assert_array_equal(large[0, 0], [1, 1, 2])
  low = run(np.full((1, 1, 3), -9.0)).vectors_BTD * half
  np.testing.assert_array_equal(low[0, 0], [-1, -2, -2])


def test_cosine_takes_the_nearest_direction():
  module = Codebook(**MEANS | dict(cosine=True))
  stats = trained(3, cosine=True)
  x = rows()
  run = jax.jit(lambda x: module.apply({STATS: stats}, x, ONE))
  np.testing.assert_array_equal(run(x).codes_BT, run(5 * x).codes_BT)
  lengths = np.linalg.norm(run(x).vectors_BTD, axis=-1)
  np.testing.assert_allclose(lengths, 1.0, rtol=1e-5)
