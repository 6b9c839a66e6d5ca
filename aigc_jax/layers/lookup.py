"""A table read by index, and the forms of the gradient of that reading.

Each row of the table gets the sum over all tokens that read it. Written as
additions in place, many at once go to the row of a frequent token, which a GPU
does by atomic operations: slow ones in some versions, and in no fixed order.
The other forms have no such additions.
"""

import jax
import jax.numpy as jnp

from aigc_jax import errors, sharding
from aigc_jax.layers.forms import are_plain

TILE = 128  # sorted tokens that one small product adds up
ENTRIES = 2**26  # of a one-hot matrix at once
FEW = 1024  # rows, up to which a product takes no longer than sorting


def lookup(
  table_VD: jax.Array, ids_BT: jax.Array, dtype, gradient: str = "auto"
) -> jax.Array:
  """Rows of the table in `dtype`, (B, T, D); its gradient adds in float32.

  gradient: "scatter" adds in place; "product" multiplies by one-hot rows, a
  piece of the table at a time; "sorted" adds up equal neighbours of the sorted
  tokens by small products, and writes each row once. The last two always add
  in the same order. "auto" is what `resolve` says. An id that is no row reads
  the nearest row, and gets no gradient.
  """
  if are_plain():
    return _read(table_VD, ids_BT, dtype, gradient)
  return _lookup(table_VD, ids_BT, dtype, gradient)


def _read(table_VD, ids_BT, dtype, gradient):
  if not sharding.alone():
    # The same bits; devices that hold other rows add zeros to them in `dtype`.
    table_VD = table_VD.astype(dtype)
  return jnp.take(table_VD, ids_BT, axis=0, mode="clip").astype(dtype)


_lookup = jax.custom_vjp(_read, nondiff_argnums=(2, 3))


def _lookup_forward(table_VD, ids_BT, dtype, gradient):
  return _read(table_VD, ids_BT, dtype, gradient), (table_VD, ids_BT)


def _lookup_backward(dtype, gradient, kept, dy_BTD):
  table_VD, ids_BT = kept
  d_VD = summed_by_id(ids_BT, dy_BTD, len(table_VD), gradient)
  return d_VD.astype(table_VD.dtype), None


_lookup.defvjp(_lookup_forward, _lookup_backward)


def resolve(rows: int) -> str:
  """What "auto" means for a table of so many rows on the mesh in use."""
  if sharding.platform() == "cpu":
    return "scatter"  # one thread's additions: nothing to wait for
  mesh = jax.sharding.get_abstract_mesh()
  cut = not mesh.empty and sharding.length_shards(mesh) > 1
  # To be sorted, the positions of a row would have to come together first.
  return "product" if rows <= FEW or cut else "sorted"


def summed_by_id(
  ids_BT: jax.Array, x_BTD: jax.Array, V: int, gradient: str = "auto"
) -> jax.Array:
  """Sums of x by id, (V, D) float32, in the form that `lookup` would take.

  What has an id that is none of 0 to V - 1 is left out.
  """
  check_gradient(gradient)
  form = resolve(V) if gradient == "auto" else gradient
  return GRADIENTS[form](ids_BT, x_BTD, V)


def by_scatter(ids_BT: jax.Array, dy_BTD: jax.Array, V: int) -> jax.Array:
  """Sums of dy by id, (V, D): additions in place."""
  # In bfloat16 they would lose bits, and be a slow loop on any GPU.
  zeros_VD = jnp.zeros((V, dy_BTD.shape[-1]), jnp.float32)
  # A negative index would count from the end.
  return zeros_VD.at[jnp.where(ids_BT < 0, V, ids_BT)].add(
    dy_BTD.astype(jnp.float32), mode="drop"
  )


def by_product(ids_BT: jax.Array, dy_BTD: jax.Array, V: int) -> jax.Array:
  """The same as products with one-hot rows."""

  def local(ids_BT, dy_BTD):
    size = min(V, max(1, ENTRIES // ids_BT.size))

    def piece(first):
      hot_BTV = ids_BT[..., None] == first + jnp.arange(size)
      return _exact("BTV,BTD->VD", hot_BTV.astype(dy_BTD.dtype), dy_BTD)

    if size == V:
      return piece(0)
    d_PVD = jax.lax.map(piece, jnp.arange(0, V, size))
    return d_PVD.reshape(-1, dy_BTD.shape[-1])[:V]

  return _on_each_device(local, ids_BT, dy_BTD)


def by_sorting(ids_BT: jax.Array, dy_BTD: jax.Array, V: int) -> jax.Array:
  """The same from sorted tokens, in tiles: equal ids are neighbours there.

  A run of equal ids is added up within each tile (S numbers the runs of one),
  and what of it lies in later tiles is added to the tile where it begins. So
  every row of the table is written at most once.
  """

  def local(ids_BT, dy_BTD):
    ids, D = ids_BT.reshape(-1).astype(jnp.int32), dy_BTD.shape[-1]
    K = min(TILE, ids.size)
    C = -(-ids.size // K)
    # What fills the last tile sorts behind all ids and reads as zero.
    order = jnp.pad(
      jnp.argsort(ids), (0, C * K - ids.size), constant_values=ids.size
    )
    ids = jnp.take(ids, order, mode="fill", fill_value=V)
    dy_CKD = jnp.take(
      dy_BTD.reshape(-1, D), order, axis=0, mode="fill", fill_value=0
    ).reshape(C, K, D)
    runs, tiles = jnp.arange(K), jnp.arange(C)
    begins_CK = (ids != jnp.roll(ids, 1)).reshape(C, K)
    run_CK = jnp.cumsum(begins_CK & (runs > 0), axis=1)
    of_run_CKS = run_CK[..., None] == runs
    sums_CSD = _exact("CKS,CKD->CSD", of_run_CKS.astype(dy_CKD.dtype), dy_CKD)

    # Tiles whose first run began in an earlier one, and the tile where the
    # last run of each tile began.
    last_C = run_CK[:, -1]
    later_C = ~begins_CK[:, 0] & (tiles > 0)
    began_C = jax.lax.cummax(jnp.where(later_C & (last_C == 0), 0, tiles))
    home_C = jnp.roll(began_C, 1)
    at_home = (tiles[:, None] == home_C) & later_C
    added_CD = _exact("XC,CD->XD", at_home.astype(jnp.float32), sums_CSD[:, 0])
    is_last_CS = runs == last_C[:, None]
    sums_CSD += jnp.where(is_last_CS[..., None], added_CD[:, None], 0.0)

    ids_CK1 = ids.reshape(C, K, 1)
    row_CS = jnp.max(jnp.where(of_run_CKS, ids_CK1, -1), axis=1)
    unused_CS = (row_CS < 0) | (later_C[:, None] & (runs == 0))
    # Each to a place of its own, beyond the table.
    nowhere_CS = V + 1 + tiles[:, None] * K + runs
    d_VD = sharding.constrain(jnp.zeros((V, D), jnp.float32), "VD")
    return d_VD.at[jnp.where(unused_CS, nowhere_CS, row_CS)].add(
      sums_CSD, mode="drop", unique_indices=True
    )

  return _on_each_device(local, ids_BT, dy_BTD)


def _exact(equation: str, hot: jax.Array, x: jax.Array) -> jax.Array:
  """A product in float32 of which one operand is zeros and ones.

  Of float32 no bits are to be dropped, as GPUs and TPUs do by default.
  """
  return jnp.einsum(
    equation, hot, x,
    precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32,
  )  # fmt: skip


def _on_each_device(local, ids_BT, dy_BTD) -> jax.Array:
  """local(ids, dy) of each device's own rows, added up."""
  mesh = jax.sharding.get_abstract_mesh()
  return sharding.over_batch(local, mesh, (True, True))(ids_BT, dy_BTD)


GRADIENTS = {
  "scatter": by_scatter, "product": by_product, "sorted": by_sorting,
}  # fmt: skip


def check_gradient(gradient: str) -> None:
  """Raises BadConfig for a name that is no form, nor "auto"."""
  errors.choose(gradient, {"auto": None} | GRADIENTS, "compute.embed_gradient")
