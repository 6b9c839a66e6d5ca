"""Whether all copies of a value are equal: a device that errs is found.

Where a value lies on several devices each computes its own copy, and nothing
else would ever compare them: a flipped bit stays on its device, and which copy
a checkpoint gets is chance.
"""

import collections
import functools
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from aigc_jax import sharding, tree


def differing(state) -> dict[str, list[jax.Device]]:
  """{name of a leaf: devices whose copy is not that of most}; {} if all agree.

  Of two copies that differ nobody knows the right one: both are named. Every
  process must call this, and gets the same answer.
  """
  copied = {name: x for name, x in tree.flat(state).items() if _copies(x) > 1}
  if not copied:
    return {}
  leaves = tuple(copied.values())
  (mesh,) = {x.sharding.mesh for x in leaves}
  digests = _digests(mesh, tuple(x.sharding.spec for x in leaves))
  rows = np.asarray(digests(leaves))
  found = {}
  for i, (name, x) in enumerate(copied.items()):
    if odd := _odd(x, mesh.devices.flat, rows[:, i]):
      found[name] = odd
  return found


def _copies(x: jax.Array) -> int:
  """On how many devices each number of `x` lies; 0 where `x` has none."""
  where = getattr(x, "sharding", None)
  if not isinstance(where, NamedSharding):
    return 1
  held = where.num_devices * math.prod(where.shard_shape(x.shape))
  return held // max(x.size, 1)


@functools.lru_cache(maxsize=8)
def _digests(mesh: jax.sharding.Mesh, specs: Sequence[PartitionSpec]):
  """Leaves -> the digests of what each device has of each, on every process.

  uint32 (devices, leaves, 2), devices in the order of the mesh.
  """

  def local(leaves):
    return jax.numpy.stack([tree.digest_leaf(x) for x in leaves])[None]

  each = jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(specs,),
    out_specs=PartitionSpec(mesh.axis_names),
    check_vma=False,  # that copies are equal is what it would take for granted
  )
  return jax.jit(each, out_shardings=sharding.replicated(mesh))


def _odd(x: jax.Array, devices, rows: np.ndarray) -> list[jax.Device]:
  """The devices whose part of `x` differs from most copies of that part."""
  parts = collections.defaultdict(list)
  places = x.sharding.devices_indices_map(x.shape)
  for device, row in zip(devices, rows.tolist(), strict=True):
    parts[str(places[device])].append((tuple(row), device))
  odd = []
  for part in parts.values():
    (most, count), *_ = collections.Counter(r for r, _ in part).most_common(1)
    whole = 2 * count > len(part)
    odd += [device for row, device in part if row != most or not whole]
  return odd
