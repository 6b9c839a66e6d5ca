"""To a Hugging Face folder: config.json and the weights."""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import jax
import ml_dtypes
import numpy as np

from aigc_jax import files, tree
from aigc_jax.errors import choose
from aigc_jax.hf import folder as folders
from aigc_jax.hf import kinds, safetensors
from aigc_jax.hf.families import write_config
from aigc_jax.hf.table import Family, Leaf, leaves

DTYPES = {
  "float32": np.dtype(np.float32),
  "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def dtype_of(name: str) -> np.dtype:
  """The dtype that an export may have, by its name."""
  return choose(name, DTYPES, "--dtype")


def write(
  folder: Path,
  params,
  kwargs: Mapping,
  *,
  family: Family,
  dtype: str,
  shard_bytes: int,
  special: Mapping,
) -> dict:
  """config.json, generation_config.json and safetensors into a folder.

  That of generation where the model writes text.
  Tensors are taken from the devices one at a time. special: the ids of the
  special tokens, for both configs. Returns the config.
  """
  # What the family itself says of padding is part of the architecture.
  said = write_config(family, kwargs)
  own = {k: said[k] for k in special if said.get(k) is not None}
  config = said | dict(special) | own
  if family.library == "transformers":  # diffusers has no word for it
    config |= dict(torch_dtype=dtype)
  start = "decoder_start_token_id"
  if start in config and config[start] is None:  # as data and decoding have it
    config[start] = special["eos_token_id"]
  writes = family.kind not in kinds.KINDS or kinds.KINDS[family.kind].writes
  if writes:
    config["use_cache"] = True
    files.write_json(
      folder / "generation_config.json",
      dict(special)
      | {key: config[key] for key in (start,) if key in config}
      | {"_from_model_config": True},
      indent=2,
    )
  files.write_json(folder / "config.json", config, indent=2)
  flat = tree.flat(params)
  table = leaves(family, {path: x.shape for path, x in flat.items()})
  fixed = {name: make(kwargs) for name, make in family.fixed.items()}
  stem = folders.STEMS[family.library]
  write_weights(folder, table, flat, dtype_of(dtype), shard_bytes, fixed, stem)
  return config


def write_weights(
  folder: Path,
  table: Mapping[str, Leaf],
  arrays: Mapping[str, jax.Array],
  dtype: np.dtype,
  shard_bytes: int,
  fixed: Mapping[str, np.ndarray] = MappingProxyType({}),
  stem: str = "model",
) -> None:
  """`stem`.safetensors, or numbered files of at most `shard_bytes`, an index.

  A tensor larger than that has a file of its own. fixed: tensors that are no
  parameters here.
  """
  sources = dict(_tensors(table))
  shapes = {
    name: (parts[0][0].their_shape, dtype) for name, parts in sources.items()
  } | {name: (value.shape, dtype) for name, value in fixed.items()}

  def made(name: str) -> np.ndarray:
    if name in fixed:
      return fixed[name].astype(dtype)
    return _make(sources[name], arrays, dtype)

  shards = _shards(shapes, shard_bytes)
  where = {}
  for i, names in enumerate(shards):
    file = f"{stem}.safetensors"
    if len(shards) > 1:
      file = f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors"
    safetensors.write(
      folder / file,
      {name: shapes[name] for name in names},
      ((name, functools.partial(made, name)) for name in names),
    )
    where |= dict.fromkeys(names, file)
  if len(shards) > 1:
    total = sum(_bytes(*shape) for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    files.write_json(folder / f"{stem}.safetensors.index.json", index, indent=2)


def _tensors(table: Mapping[str, Leaf]) -> Iterator:
  """(their name, [(leaf, layer or None)] in the order of its parts)."""
  shared: dict[str, list] = {}
  for leaf in table.values():
    for i, name in enumerate(leaf.names):
      shared.setdefault(name, []).append((leaf, i if leaf.stacked else None))
  for name, parts in shared.items():
    yield name, sorted(parts, key=lambda part: part[0].row.part)


def _make(parts, arrays: Mapping[str, jax.Array], dtype) -> np.ndarray:
  """One tensor of theirs, fetched from the devices."""
  pieces = []
  for leaf, layer in parts:
    whole = arrays[leaf.row.path]
    piece = np.asarray(whole if layer is None else whole[layer])
    pieces.append(leaf.alone(piece).astype(dtype))
  return parts[0][0].theirs(pieces)


def _bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
  return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


def _shards(shapes: Mapping, shard_bytes: int) -> list[list[str]]:
  """The names in files of at most so many bytes, in order."""
  shards: list[list[str]] = [[]]
  room = shard_bytes
  for name, shape in shapes.items():
    need = _bytes(*shape)
    if shards[-1] and need > room:
      shards.append([])
      room = shard_bytes
    shards[-1].append(name)
    room -= need
  return shards
