"""From a Hugging Face folder: a decoder's keywords and its parameters."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from aigc_jax import tree
from aigc_jax.data import strict
from aigc_jax.errors import BadData
from aigc_jax.hf import folder as folders
from aigc_jax.hf.families import family_of, read_config
from aigc_jax.hf.safetensors import Tensor
from aigc_jax.hf.table import Family, Leaf, check, leaves, renamed
from aigc_jax.models import decoder

LAYERS = 10_000
PIECE = 1 << 26  # numbers compared at a time


@dataclasses.dataclass(frozen=True)
class Imported:
  """A folder whose weights are known to be those of its config.json.

  kwargs: for `models.decoder`. table and tensors: what `read_params` reads,
  lazily. tokenizer: a spec for `data.tokenizers`, or None.
  """

  folder: Path
  family: Family
  config: dict
  kwargs: dict
  table: dict[str, Leaf]
  tensors: dict[str, Tensor]
  tokenizer: str | None


def load(folder: str | Path) -> Imported:
  """Reads and checks everything about a folder but the weights themselves.

  Raises BadData for what is not such a folder: its tensors must be exactly
  those that its config.json calls for, in name and shape.
  """
  path = Path(str(folder).removeprefix("hf:")).expanduser()
  tensors = folders.weights(path)
  where = str(path / "config.json")
  config = strict.read(path / "config.json")
  family = family_of(config, where)
  kwargs = read_config(family, config, where)
  _plausible(where, kwargs, tensors)
  tensors = renamed(family, tensors)
  if kwargs["tied"]:
    tensors = _without_copy(str(path), tensors, family)
  table = leaves(family, shapes_of(kwargs))
  check(str(path), table, tensors)
  has = (path / "tokenizer.json").exists()
  return Imported(
    path, family, config, kwargs, table, tensors, f"hf:{path}" if has else None
  )


def shapes_of(kwargs: Mapping) -> dict[str, tuple[int, ...]]:
  """{path: shape} of a decoder's parameters; nothing is computed."""
  model = decoder(**kwargs)
  tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  boxed = jax.eval_shape(model.init, jax.random.key(0), {"tokens": tokens})
  flat = tree.flat(nn.unbox(boxed["params"]))
  return {path: x.shape for path, x in flat.items()}


def _plausible(where: str, kwargs: Mapping, tensors: Mapping) -> None:
  """No size in the config may exceed what the folder's tensors can hold."""
  largest = max((t.size for t in tensors.values()), default=0)
  most = {"layers": min(LAYERS, len(tensors)), "kv_heads": kwargs["heads"]}
  for key in ("vocab", "dim", "heads", "head_dim", "mlp_dim"):
    most[key] = largest
  if kwargs["position"] == "learned":
    most["position_length"] = largest
  for key, limit in most.items():
    if kwargs[key] > limit:
      raise BadData(
        f"{where} says {key}={kwargs[key]}; its weights have {len(tensors)} "
        f"tensors of at most {largest} numbers"
      )


def _without_copy(
  where: str, tensors: dict[str, Tensor], family: Family
) -> dict[str, Tensor]:
  """Tied: the head may be stored again, if it is the embedding bit by bit."""
  names = {row.path: row.name for row in family.rows}
  head, table = names["head/table"], names["embed/table"]
  if head not in tensors or table not in tensors:
    return tensors
  a, b = tensors[head].view(), tensors[table].view()
  same = a.shape == b.shape and a.dtype == b.dtype
  if same:
    words = np.dtype(f"u{a.dtype.itemsize}")
    a, b = (x.reshape(-1).view(words) for x in (a, b))
    same = all(
      np.array_equal(a[i : i + PIECE], b[i : i + PIECE])
      for i in range(0, a.size, PIECE)
    )
  if not same:
    raise BadData(
      f"{where}: tie_word_embeddings is true, yet {head} differs from {table}; "
      "set tie_word_embeddings to false in config.json to use both"
    )
  return {name: t for name, t in tensors.items() if name != head}


def read_params(source: Imported | str | Path, abstract, shardings=None):
  """The parameters, each leaf read straight into its devices' shards.

  abstract: the decoder's parameters as ShapeDtypeStructs (unboxed), whose
  dtypes are used. shardings: the same tree of shardings, one for all leaves,
  or None for the default device. The host holds at most one shard of one leaf
  beside what it has given to the devices. Raises BadData where the decoder is
  not the one of the folder.
  """
  found = source if isinstance(source, Imported) else load(source)
  wanted = tree.flat(abstract)
  faults = [
    f"{path}: the folder has {_shape(found.table.get(path))}, the model "
    f"{tuple(wanted[path].shape) if path in wanted else 'nothing'}"
    for path in sorted({*found.table, *wanted})
    if path not in wanted
    or path not in found.table
    or found.table[path].shape != tuple(wanted[path].shape)
  ]
  if faults:
    raise BadData(
      f"hf:{found.folder} is another model than the configured one (take "
      "model.* from the folder):\n  " + "\n  ".join(faults[:20])
    )
  if shardings is None or isinstance(shardings, jax.sharding.Sharding):
    one = shardings or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shardings = jax.tree.map(lambda _: one, abstract)
  places = tree.flat(shardings)
  made = [
    _place(found.table[path], found.tensors, leaf.dtype, places[path])
    for path, leaf in wanted.items()
  ]
  return jax.tree.unflatten(jax.tree.structure(abstract), made)


def _shape(leaf: Leaf | None):
  return leaf.shape if leaf else "nothing"


def _place(leaf: Leaf, tensors, dtype, sharding) -> jax.Array:
  """One leaf on its devices; equal shards are read once."""
  places: dict[tuple, list] = {}
  indices = {}
  for device, index in sharding.addressable_devices_indices_map(
    leaf.shape
  ).items():
    key = tuple(
      cut.indices(n) for cut, n in zip(index, leaf.shape, strict=True)
    )
    places.setdefault(key, []).append(device)
    indices[key] = tuple(slice(a, b) for a, b, _ in key)
  shards = []
  for key, devices in places.items():
    block = leaf.read(tensors, indices[key], dtype)
    shards += jax.block_until_ready(
      [jax.device_put(block, device) for device in devices]
    )
  return jax.make_array_from_single_device_arrays(leaf.shape, sharding, shards)
