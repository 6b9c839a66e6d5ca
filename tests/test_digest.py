"""The digest: no change escapes it, whatever other change goes with it."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import sharding, tree

DTYPES = (
  "float32", "int32", "uint32", "bfloat16", "float16", "int16", "uint16",
  "float8_e4m3fn", "float8_e5m2", "int8", "uint8", "bool",
)  # fmt: skip
FLOATING = ("float32", "bfloat16", "float16", "float8_e5m2")

digest_of_one = jax.jit(functools.partial(tree.digest_leaf, name="w"))
digests_of_many = jax.jit(
  jax.vmap(functools.partial(tree.digest_leaf, name="w"))
)


def unsigned(dtype: str):
  return np.dtype(f"uint{8 * jnp.dtype(dtype).itemsize}")


def ordinary(dtype: str, shape=(4, 6)) -> np.ndarray:
  """Numbers as a parameter may have them."""
  draw = np.random.default_rng(0).normal(size=shape)
  if jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
    return np.asarray(draw).astype(jnp.dtype(dtype))
  return (draw > 0 if dtype == "bool" else 100 * abs(draw)).astype(dtype)


def pairs_flipped(x: np.ndarray, bit: int) -> np.ndarray:
  """`x` with this bit flipped in two elements, for every pair of them."""
  if x.dtype == bool:
    raw, one = x.reshape(-1), np.array(True)
  else:
    raw = x.reshape(-1).view(unsigned(str(x.dtype)))
    one = raw.dtype.type(1 << bit)
  pairs = list(itertools.combinations(range(raw.size), 2))
  many = np.repeat(raw[None], len(pairs), 0)
  rows = np.arange(len(pairs))
  for column in np.array(pairs).T:
    many[rows, column] ^= one
  return many.view(x.dtype).reshape(-1, *x.shape)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_two_flips_of_one_bit_cancel(dtype):
  x = ordinary(dtype)
  whole = np.asarray(digest_of_one(x))
  bits = 1 if dtype == "bool" else 8 * x.dtype.itemsize
  for bit in range(bits):
    found = np.asarray(digests_of_many(pairs_flipped(x, bit)))
    assert (found != whole).any(1).all(), f"bit {bit}"


def test_no_two_flips_of_any_bits_cancel():
  x = np.zeros((2, 3), np.float32)  # where most is equal
  many = []
  places = list(itertools.product(range(x.size), range(32)))
  for (at, bit), (other, second) in itertools.combinations(places, 2):
    flipped = x.reshape(-1).view(np.uint32).copy()
    flipped[at] ^= np.uint32(1 << bit)
    flipped[other] ^= np.uint32(1 << second)
    many.append(flipped.view(np.float32).reshape(x.shape))
  found = np.asarray(digests_of_many(np.stack(many)))
  assert (found != np.asarray(digest_of_one(x))).any(1).all()
  assert len(np.unique(found, axis=0)) == len(found)


def changed(x: np.ndarray) -> dict[str, np.ndarray]:
  """What of the sort a wrong program or a tired memory may do to `x`."""
  twice = x.copy()
  twice[:2] = -twice[:2]
  columns = x.copy()
  columns[:, 1:3] = -columns[:, 1:3]
  return {
    "one row negated": np.concatenate([-x[:1], x[1:]]),
    "two rows negated": twice,
    "two columns negated": columns,
    "all negated": -x,
    "two rows exchanged": x[[1, 0, *range(2, len(x))]],
    "rows rolled": np.roll(x, 1, 0),
    "all reversed": x[::-1, ::-1],
    "columns exchanged": x[:, [1, 0, *range(2, x.shape[1])]],
    "doubled": x * x.dtype.type(2),
    "halved": x / x.dtype.type(2),
    "zero": x * x.dtype.type(0),
    "absolute": abs(x),
  }


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("what", ["drawn", "constant", "two values"])
def test_changes_of_whole_rows_and_matrices_show(dtype, what):
  x = ordinary(dtype, (8, 6))
  if what == "constant":
    x = np.full_like(x, 1.5)
  if what == "two values":
    x = np.where(x > 0, 1.5, -1.5).astype(x.dtype)
  whole = np.asarray(digest_of_one(x))
  for name, other in changed(x).items():
    if other.tobytes() != x.tobytes():
      assert (np.asarray(digest_of_one(other)) != whole).all(), name
  assert len(changed(x)) == 12


@pytest.mark.parametrize("dtype", FLOATING)
def test_zeros_and_nans_count_by_their_bits(dtype):
  kind = unsigned(dtype)
  x = np.zeros((3, 5), jnp.dtype(dtype))
  quiet = np.full_like(x, np.nan)
  payload = (quiet.view(kind) ^ kind.type(1)).view(x.dtype)
  minus = (quiet.view(kind) ^ kind.type(1 << (8 * kind.itemsize - 1))).view(
    x.dtype
  )
  values = [tuple(np.asarray(digest_of_one(a))) for a in (
    x, -x, quiet, payload, minus
  )]  # fmt: skip
  assert np.isnan(payload.astype(np.float32)).all()
  assert len(set(values)) == len(values)


def test_leaves_of_equal_shape_that_are_exchanged_show():
  x, y = ordinary("float32"), ordinary("float32") * 2
  digest = jax.jit(tree.digest)
  one, other = digest({"a": x, "b": y}), digest({"a": y, "b": x})
  assert (np.asarray(one) != np.asarray(other)).all()


def test_name_shape_and_dtype_are_part_of_a_digest():
  zeros = [
    ("a", np.zeros((2, 3), np.float32)),
    ("b", np.zeros((2, 3), np.float32)),
    ("a", np.zeros((3, 2), np.float32)),
    ("a", np.zeros((6,), np.float32)),
    ("a", np.zeros((2, 3), np.int32)),
    ("a", np.zeros((0, 3), np.float32)),
    ("a", np.zeros((0, 2), np.float32)),
    ("a", np.zeros((), np.float32)),
  ]
  digest = jax.jit(tree.digest)
  values = [tuple(np.asarray(digest({n: x}))) for n, x in zeros]
  assert len(set(values)) == len(values)


@pytest.mark.parametrize("letters", ["BD", "DF", "VD", "DB", "LD"])
def test_the_digest_is_the_same_on_every_mesh(letters):
  x = jnp.asarray(ordinary("float32", (8, 16)))
  mesh = sharding.make_mesh(
    data=2, fsdp=2, expert=1, tensor=2, sequence=1, pipeline=1
  )
  cut = jax.device_put(x, sharding.shardings(letters, x.shape, mesh))
  np.testing.assert_array_equal(digest_of_one(x), digest_of_one(cut))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool"])
def test_a_leaf_is_read_once(dtype):
  x = jax.ShapeDtypeStruct((64, 384, 96), dtype)
  cost = digest_of_one.lower(x).compile().cost_analysis()
  nbytes = x.size * x.dtype.itemsize
  assert nbytes <= cost["bytes accessed"] < 1.01 * nbytes + 1000


def test_no_device_is_sent_the_parts_of_others():
  mesh = sharding.make_mesh(
    data=1, fsdp=4, expert=1, tensor=2, sequence=1, pipeline=1
  )
  where = sharding.shardings("DF", (512, 256), mesh)
  x = jax.ShapeDtypeStruct((512, 256), jnp.float32, sharding=where)
  compiled = digest_of_one.lower(x).compile()
  assert compiled.cost_analysis()["bytes accessed"] < 1.1 * x.size * 4 / 8


def test_in_each_lane_no_two_places_of_a_leaf_are_the_same():
  for places in tree._places((5, 7, 3)):
    assert len(np.unique(places)) == 105


def test_a_64_bit_leaf_is_refused():
  with jax.enable_x64(True):
    with pytest.raises(TypeError, match="64-bit"):
      tree.digest_leaf(jnp.zeros((1,), jnp.float64))
