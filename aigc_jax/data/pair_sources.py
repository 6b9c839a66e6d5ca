"""Where pairs of texts come from: JSON lines, Parquet, TFDS, gettext."""

import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from aigc_jax import files
from aigc_jax.data.arrays import State, state_of
from aigc_jax.data.documents import changed, reading
from aigc_jax.data.entries import whole
from aigc_jax.data.gettext import read_catalogue
from aigc_jax.data.listing import LONGEST_ROW, below, check_local
from aigc_jax.data.rows import parquet_rows
from aigc_jax.data.sources import Tfds
from aigc_jax.data.tfds_folders import INFO
from aigc_jax.errors import BadConfig, BadData, choose, nearest

Pair = tuple[str, str]


def held_out(source: str, share: float) -> bool:
  """Whether a pair is of the held-out share, by its source text alone.

  So the same sentence is never in both parts, however often it is there, and
  upper case and spaces make no other sentence of it.
  """
  text = " ".join(source.casefold().split())
  digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
  return int.from_bytes(digest, "big") % 1000 < round(share * 1000)


def read_pairs(spec: Mapping) -> Iterator[Pair]:
  """All the pairs of one entry of `data.sources`, in a fixed order.

  Raises BadConfig for an unknown or missing key, BadData for what cannot be
  read, or was touched meanwhile.
  """
  read, suffixes, keys = _kind(spec)
  spec = whole(spec, keys)
  with reading():
    before = _states(spec["path"], suffixes)
    for path in before:
      yield from read(path, *(spec[key] for key in keys))
    if _states(spec["path"], suffixes) != before:
      raise changed(spec["path"])


def check_source(where: str, spec: Mapping) -> None:
  """Raises BadConfig for an entry of `data.sources` that none could be."""
  if not isinstance(spec, Mapping):
    raise BadConfig(f"{where}={spec!r}: expected dict(kind=..., path=...)")
  try:
    _, _, keys = _kind(spec)
  except BadConfig as e:
    raise BadConfig(f"{where}: {e}") from None
  wanted, spec = ("kind", "path", *keys), whole(spec, keys)
  for key in spec:
    if key not in (*wanted, "weight"):
      raise BadConfig(
        f"{where} has no key {key!r}{nearest(key, wanted)} (it has: "
        f"{', '.join(wanted)}, weight)"
      )
  for key in wanted:
    if not isinstance(spec.get(key), str) or not spec[key]:
      raise BadConfig(f"{where}.{key}={spec.get(key)!r}: expected a text")
  check_local(spec["path"], f"{where}.path")


def _kind(spec: Mapping):
  return choose(spec.get("kind"), KINDS, "source kind")


def _files(path: str, suffixes: tuple[str, ...]) -> list[Path]:
  """The files that a file, a folder or a glob names, by name.

  Without suffixes the folder is what is read.
  """
  given = files.expanded(path)
  if not suffixes:
    return [given]
  if given.is_dir():
    found = [p for p in below(given, hidden=True) if p.suffix in suffixes]
  elif given.is_file():
    found = [given]
  else:
    found = [Path(p) for p in glob.glob(str(given), recursive=True)]
  found = sorted(p for p in found if p.is_file())
  if not found:
    raise BadData(
      f"{path}: no file that ends in {', '.join(suffixes)}, nor a glob of such"
    )
  return found


def _states(path: str, suffixes: tuple[str, ...]) -> dict[Path, State]:
  """What each of `_files` is; a prepared dataset is never changed."""
  found = _files(path, suffixes)
  if not suffixes:
    return {folder: (0, 0, 0, 0) for folder in found}
  return {file: state_of(os.stat(file)) for file in found}


def _pair(row, fields: tuple[str, str], place: Callable[[], str]) -> Pair:
  """Both fields of a row; "" for null."""
  if not isinstance(row, dict):
    raise BadData(f"{place()}: expected an object, got {str(row)[:60]!r}")
  found = []
  for side, field in zip(("source", "target"), fields, strict=True):
    if field not in row:
      names = [str(name)[:40] for name in row][:20]
      raise BadData(
        f"{place()}: no field {field!r}{nearest(field, names)} (its fields: "
        f"{', '.join(names)}); name it with {side}=NAME of the source"
      )
    text = "" if row[field] is None else row[field]
    if not isinstance(text, str):
      raise BadData(
        f"{place()}: field {field!r} holds {type(text).__name__}, expected text"
      )
    found.append(text)
  return tuple(found)


def _lines(path: Path, source: str, target: str) -> Iterator[Pair]:
  with files.readable(path) as f:
    number = 0
    while line := f.readline(LONGEST_ROW):
      number += 1
      if not line.strip():
        continue
      where = f"{path} line {number}"
      try:
        row = json.loads(line)
      except (ValueError, RecursionError) as e:
        raise BadData(f"{where}: not JSON ({e}): {line[:60]!r}") from None
      yield _pair(row, (source, target), lambda where=where: where)


def _parquet(path: Path, source: str, target: str) -> Iterator[Pair]:
  for number, row in enumerate(parquet_rows(str(path), (source, target))):
    yield _pair(row, (source, target), lambda n=number: f"{path} row {n}")


def _tfds(path: Path, split: str, source: str, target: str) -> Iterator[Pair]:
  """The records of a prepared dataset, whose two texts are features of it."""
  if not (path / INFO).is_file():
    raise BadData(
      f"{path}: no prepared dataset of TFDS, such as ~/tensorflow_datasets/"
      f"wmt14_translate/de-en/1.0.0 (there is no {INFO} in it)"
    )
  for number, row in Tfds(str(path), path, split, source, 0.0).rows(split):
    texts = {name: _text(value) for name, value in row.items()}
    where = f"{path} {split} record {number}"
    yield _pair(texts, (source, target), lambda where=where: where)


def _text(value):
  return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


# kind -> (reader of a file, ends of its names, the keys it has besides a path);
# of a kind without ends the path is a folder that is read as a whole.
KINDS = {
  "json": (_lines, (".jsonl", ".json"), ("source", "target")),
  "parquet": (_parquet, (".parquet",), ("source", "target")),
  "tfds": (_tfds, (), ("split", "source", "target")),
  "gettext": (read_catalogue, (".po", ".mo"), ()),
}
