"""From a Hugging Face folder: a model's keywords and its parameters."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax import files, sharding, tree
from aigc_jax.errors import BadData
from aigc_jax.hf import folder as folders
from aigc_jax.hf import kinds
from aigc_jax.hf.families import family_of, read_config
from aigc_jax.hf.safetensors import Tensor
from aigc_jax.hf.table import Family, Leaf, check, leaves, renamed
from aigc_jax.layers.report import STATS

LAYERS = 10_000
# Keywords that say how large something is, and how many layers there are.
SIZES = (
  "vocab", "dim", "heads", "head_dim", "mlp_dim", "position_length",
  "image_dim", "image_heads", "image_mlp_dim", "text_length", "text_dim",
  "text_heads", "text_mlp_dim", "embed_dim",
)  # fmt: skip
DEPTHS = (
  "layers", "encoder_layers", "decoder_layers", "image_layers", "text_layers",
)  # fmt: skip
NEAR = 4e-3  # of numbers up to 1 in bfloat16
PIECE = 1 << 19  # numbers read or compared at a time


@dataclasses.dataclass(frozen=True)
class Imported:
  """A folder whose weights are known to be those of its config.json.

  kwargs: for the model of the family's kind. table and tensors: what
  `read_params` reads, lazily. tokenizer: a spec for `data.tokenizers`, or None.
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
  path = files.expanded(str(folder).removeprefix("hf:"))
  folders.check_there(path)
  where = str(path / "config.json")
  config = files.read_json(path / "config.json")
  family = family_of(config, where)
  named = config.get("transformers_weights") if "model_type" in config else None
  tensors = folders.weights(path, named)
  kwargs = read_config(family, config, where)
  tensors = renamed(family, tensors)
  kwargs |= {head: name in tensors for head, name in family.heads.items()}
  _plausible(where, kwargs, tensors)
  for copy, original in _copies(family, kwargs).items():
    tensors = _without_copy(str(path), tensors, copy, original)
  tensors = _without_fixed(str(path), tensors, family, kwargs)
  table = leaves(family, kinds.shapes_of(family.kind, kwargs))
  check(str(path), table, tensors)
  family.check(path, kwargs)
  has = (path / "tokenizer.json").exists()
  return Imported(
    path, family, config, kwargs, table, tensors, f"hf:{path}" if has else None
  )


def _plausible(where: str, kwargs: Mapping, tensors: Mapping) -> None:
  """No size in the config may exceed what the folder's tensors can hold."""
  largest = max((t.size for t in tensors.values()), default=0)
  most = dict.fromkeys(SIZES, largest)
  most["kv_heads"] = kwargs.get("heads", 0)
  most |= dict.fromkeys(DEPTHS, min(LAYERS, len(tensors)))
  if kwargs.get("position", "learned") != "learned":
    del most["position_length"]
  for key, limit in most.items():
    if (kwargs.get(key) or 0) > limit:
      raise BadData(
        f"{where} says {key}={kwargs[key]}; its weights have {len(tensors)} "
        f"tensors of at most {largest} numbers"
      )


def _copies(family: Family, kwargs: Mapping) -> Mapping[str, str]:
  """{tensor: what it must be, where it is there at all}."""
  if not kwargs.get("tied"):
    return family.copies
  names = {row.path: row.name for row in family.rows}
  return {**family.copies, names["head/table"]: names["embed/table"]}


def _without_copy(
  where: str, tensors: dict[str, Tensor], copy: str, original: str
) -> dict[str, Tensor]:
  """Tied: the head may be stored again, if it is the embedding bit by bit."""
  if copy not in tensors or original not in tensors:
    return tensors
  a, b = tensors[copy].view(), tensors[original].view()
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
      f"{where}: tie_word_embeddings is true, yet {copy} differs from "
      f"{original}; "
      "set tie_word_embeddings to false in config.json to use both"
    )
  return {name: t for name, t in tensors.items() if name != copy}


def _without_fixed(
  where: str, tensors: dict[str, Tensor], family: Family, kwargs: Mapping
) -> dict[str, Tensor]:
  """The tensors but those that are computed here, which must be as computed.

  As near as two bytes a number can hold them.
  """
  known = {
    name: lambda _, make=make: make(kwargs)
    for name, make in family.fixed.items()
  }
  known |= {
    name: lambda rows, make=make: make(kwargs, rows)
    for name, make in family.implied.items()
  }
  for name, make in known.items():
    if name not in tensors:
      continue
    found = np.asarray(tensors[name].view(), np.float32)
    # Of no other shape is as much made as is there.
    fits = found.ndim == 2 and found.shape[1] == kwargs["dim"]
    made = make(found.shape[0] if fits else 0)
    if found.shape != made.shape or not np.allclose(found, made, 0, NEAR):
      raise BadData(
        f"{where}: {name} of shape {found.shape} differs from the fixed values "
        f"of shape {made.shape} that it has in {family.architecture}: weights "
        "in which it was trained are not read"
      )
  return {name: t for name, t in tensors.items() if name not in known}


def read_params(source: Imported | str | Path, abstract, shardings=None):
  """The parameters, each leaf read straight into its devices' shards.

  abstract: the model's parameters as ShapeDtypeStructs (unboxed), whose
  dtypes are used; with its stats under STATS, where those are wanted too. What
  no folder has of them begins as zeros.
  shardings: the same tree of shardings, one for all leaves, or None for the
  default device. Beside what the devices keep, the host holds
  PIECE numbers and the pages of one tensor of one file. Raises BadData where
  the model is not the one of the folder.
  """
  found = source if isinstance(source, Imported) else load(source)
  whole, unsaid = tree.flat(abstract), found.family.unsaid
  wanted = {path: leaf for path, leaf in whole.items() if path not in unsaid}
  faults = [
    f"{path}: the folder has {_shape(found.table.get(path))}, the model "
    f"{tuple(wanted[path].shape) if path in wanted else 'nothing'}"
    for path in sorted({*found.table, *wanted})
    if path in wanted or not _beside(path, wanted)
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
    if path in wanted
    else jax.device_put(np.zeros(leaf.shape, leaf.dtype), places[path])
    for path, leaf in whole.items()
  ]
  return jax.tree.unflatten(jax.tree.structure(abstract), made)


def _beside(path: str, wanted: Mapping) -> bool:
  """Whether a leaf is of the stats, none of which is asked for."""
  mine = f"{STATS}/"
  return path.startswith(mine) and not any(w.startswith(mine) for w in wanted)


def _shape(leaf: Leaf | None):
  return leaf.shape if leaf else "nothing"


def _place(leaf: Leaf, tensors, dtype, laid) -> jax.Array:
  """One leaf on its devices; what several of them hold is read once."""
  places: dict[tuple, list] = {}
  indices = laid.addressable_devices_indices_map(leaf.shape)
  for device, index in indices.items():
    ends = tuple(
      cut.indices(n)[:2] for cut, n in zip(index, leaf.shape, strict=True)
    )
    places.setdefault(ends, []).append(device)
  shards = []
  for ends, devices in places.items():
    whole = tuple(slice(*pair) for pair in ends)
    parts = list(_pieces(whole, leaf.order, PIECE))
    if len(parts) == 1:
      block = leaf.read(tensors, whole, dtype)
      shards += jax.device_put([block] * len(devices), devices)
    else:
      shards += _filled(leaf, tensors, dtype, whole, parts, devices)
    jax.block_until_ready(shards)
  return jax.make_array_from_single_device_arrays(leaf.shape, laid, shards)


def _pieces(
  whole: tuple[slice, ...], order: Sequence[int], most: int
) -> Iterator[tuple[slice, ...]]:
  """A block in blocks of at most `most` numbers, cut by axes in this order."""
  size = math.prod(cut.stop - cut.start for cut in whole)
  if size <= most:
    yield whole
    return
  axis, *rest = order
  cut = whole[axis]
  step = max(most * (cut.stop - cut.start) // size, 1)
  for at in range(cut.start, cut.stop, step):
    part = slice(at, min(at + step, cut.stop))
    yield from _pieces((*whole[:axis], part, *whole[axis + 1 :]), rest, most)


def _filled(leaf, tensors, dtype, whole, parts, devices) -> list[jax.Array]:
  """One shard on each of the devices, written there piece by piece."""
  shape = tuple(cut.stop - cut.start for cut in whole)
  shards = []
  for device in devices:
    with jax.set_mesh(sharding.mesh_of(device)):
      shards.append(jnp.zeros(shape, dtype))
  for part in parts:
    block = leaf.read(tensors, part, dtype)
    at = tuple(
      np.int32(cut.start - w.start) for cut, w in zip(part, whole, strict=True)
    )
    blocks = jax.device_put([block] * len(devices), devices)
    for i, device in enumerate(devices):
      with jax.set_mesh(sharding.mesh_of(device)):
        shards[i] = _write(shards[i], blocks[i], at)
    jax.block_until_ready(shards)  # or blocks would pile up on the host
  return shards


@functools.partial(jax.jit, donate_argnames="shard")
def _write(shard, block, at):
  """The shard with the block at `at`; in place, as it is given away."""
  return jax.lax.dynamic_update_slice(shard, block, at)
