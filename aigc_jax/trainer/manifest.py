"""The manifest of a checkpoint: what was saved, and whether it is still that.

  {"format": 1, "step": 500, "digest_version": 2, "digest": [a, b],
   "leaves": [{"name": "params/embed/table", "shape": [...], "dtype": "float32",
               "digest": [a, b]}, ...],
   "files": {"arrays/d/1f...": 829704, ...},
   "hashes": {"arrays/_METADATA": "...", ...}, "meta": {...},
   "run": "3f0c...", "leg": "b7...", "sha256": "..."}

The digest of the state is the sum of its leaves' digests (`tree.digest`), so a
part of the state can be checked alone and a damaged leaf has a name. Without
"digest_version" it is the first (`linear_digest`). `hashes` are of the small
files, those that describe the arrays: they are proven before anything parses
them. `run` and `leg` are the identity of the run (`identity`). `sha256` covers
the rest of the manifest. A manifest is data: read with bounds, never trusted as
a path, never executed.
"""

import math
import os
from pathlib import Path

import jax.numpy as jnp

from aigc_jax import files, records, tree
from aigc_jax.errors import BadConfig
from aigc_jax.records import COUNT
from aigc_jax.trainer import digests
from aigc_jax.trainer.identity import Identity

NAME = "manifest.json"
FORMAT = 1
MOST_BYTES = 64 << 20
BESIDE_BYTES = 1 << 20  # most that a leaf may take beside its numbers
HASHED_BYTES = 1 << 20  # files up to this size have their sha256 noted
DTYPES = frozenset(
  str(jnp.dtype(x))
  for x in (
    jnp.bool_, jnp.int8, jnp.int16, jnp.int32, jnp.uint8, jnp.uint16,
    jnp.uint32, jnp.float16, jnp.bfloat16, jnp.float32, jnp.float8_e4m3fn,
    jnp.float8_e5m2,
  )
)  # fmt: skip
TEXT, WORDS, DIGEST = (str, None), {str: str}, [range(2**32)]
# What a run notes beside its state; its readers rely on these types.
META = {
  "batches?": [[COUNT]],
  "code_sha256?": TEXT,
  "config_sha256?": TEXT,
  "consumed?": {"units": {str: COUNT}, "flops": range(10**40)},
  "data_fingerprint?": str,
  "frozen_digest?": (DIGEST, None),
  "heldout_entries?": WORDS,
  "heldout_fingerprints?": WORDS,
  "hlo_sha256?": TEXT,
  "means?": {str: [float]},
  "model?": dict,
  "numerics?": dict,
  "origins?": {str: COUNT},
  "packages?": WORDS,
  "position?": COUNT,
  "rows?": dict,
  "skipped_in_a_row?": COUNT,
  "tokenizer_fingerprint?": TEXT,
}
LEAF = {
  "name": str,
  "shape": [COUNT],
  "dtype": "|".join(sorted(DTYPES)),
  "digest": DIGEST,
}
FORM = {
  "step": COUNT,
  "digest_version?": int,
  "digest": DIGEST,
  "leaves": [LEAF],
  "files": {str: COUNT},
  "hashes": WORDS,
  "meta": META,
  "run?": str,
  "leg?": str,
}


class Invalid(Exception):
  """Why a step on disk is not a checkpoint."""


def table(state) -> list[dict]:
  """Name, shape and dtype of every leaf; works on abstract trees."""
  return [
    {"name": name, "shape": list(x.shape), "dtype": str(jnp.dtype(x.dtype))}
    for name, x in tree.flat(state).items()
  ]


def digest_version(content: dict) -> int:
  """Which digest a manifest holds; BadConfig where a later program made it."""
  version = content.get("digest_version", 1)
  if version not in digests.LEAF:
    known = ", ".join(map(str, digests.LEAF))
    raise BadConfig(
      f"the checkpoint of step {content['step']} has a digest of version "
      f"{version}, which this program does not know (versions {known}): use "
      "the program that saved it, or a later one"
    )
  return version


def write(
  folder: Path,
  *,
  step: int,
  leaves: list[dict],
  meta: dict,
  run: Identity | None = None,
) -> int:
  """Writes and syncs the manifest of the files below `folder`; their bytes.

  `leaves` is a table with the entry "digest" in every row; `run` the identity
  of the run that saves, where it has one.
  """
  content = {
    "format": FORMAT,
    "step": step,
    "digest_version": digests.VERSION,
    "digest": digests.total([leaf["digest"] for leaf in leaves]),
    "leaves": leaves,
    "files": sizes(folder),
    "hashes": hashes(folder),
    "meta": meta,
  }
  if run is not None:
    named = {"run": run.id, "leg": run.leg}
    content |= {key: x for key, x in named.items() if x}
  content["sha256"] = _hash(content)
  files.write_json(folder / NAME, content)
  for path in (folder, *(p for p in folder.rglob("*") if p.is_dir())):
    files.sync(path)
  return sum(content["files"].values())


def sizes(folder: Path) -> dict[str, int]:
  """{relative path: bytes} of the files below `folder`, but the manifest."""
  return {
    path.relative_to(folder).as_posix(): path.stat().st_size
    for path in sorted(folder.rglob("*"))
    if path.is_file() and path.name != NAME
  }


def hashes(folder: Path) -> dict[str, str]:
  """{relative path: sha256} of the small files below `folder`."""
  return {
    name: files.sha256_file(folder / name)
    for name, size in sizes(folder).items()
    if size <= HASHED_BYTES
  }


def read(folder: Path) -> dict:
  """The manifest of a step, sound in itself; raises Invalid."""
  path = folder / NAME
  if not os.path.lexists(path):
    raise Invalid(f"it has no {NAME}")
  content = files.read_json(path, MOST_BYTES, Invalid)
  if content.get("format") != FORMAT:
    raise Invalid(f"its {NAME} is not of format {FORMAT}")
  if content.get("sha256") != _hash(content):
    raise Invalid(f"its {NAME} does not have the sha256 it states")
  records.check(content, FORM, f"its {NAME}", Invalid)
  if any(len(pair) != 2 for pair in content["meta"].get("means", {}).values()):
    raise Invalid(f"its {NAME}: meta: means: expected pairs of numbers")
  if str(content["step"]) != folder.name:
    raise Invalid(f"its {NAME} is that of step {content['step']}")
  return content


def check_files(folder: Path, content: dict) -> None:
  """Every file of the manifest is there, whole and regular, or Invalid."""
  for name, size in content["files"].items():
    path = folder / name
    parts = Path(name).parts
    if Path(name).is_absolute() or ".." in parts or "\0" in name:
      raise Invalid(f"its {NAME} names a file outside of it: {name!r}")
    if path.is_symlink() or not path.is_file():
      raise Invalid(f"{name} is missing")
    if path.stat().st_size != size:
      raise Invalid(f"{name} has {path.stat().st_size} bytes, not {size}")
    if size <= HASHED_BYTES:
      found = files.sha256_file(path)
      if content["hashes"].get(name) != found:
        raise Invalid(f"{name} does not have the sha256 it was saved with")
  expected = sum(_bytes(leaf) for leaf in content["leaves"])
  stored = sum(content["files"].values())
  # Orbax stores a tree beside the numbers, and the slower the disk, the more
  # often it writes it anew.
  if stored > 1.1 * expected + (len(content["leaves"]) + 1) * BESIDE_BYTES:
    raise Invalid(f"its files hold {stored} bytes for {expected} of arrays")


def differences(
  content: dict, wanted: list[dict], prefix: str | tuple[str, ...]
) -> list[str]:
  """How the saved leaves below `prefix`, one or some, differ from a table."""
  saved = {
    leaf["name"]: leaf
    for leaf in content["leaves"]
    if leaf["name"].startswith(prefix)
  }
  lines = []
  for leaf in wanted:
    other = saved.pop(leaf["name"], None)
    if other is None:
      lines.append(f"{leaf['name']}: not in the checkpoint")
    elif (other["shape"], other["dtype"]) != (leaf["shape"], leaf["dtype"]):
      lines.append(
        f"{leaf['name']}: saved {other['dtype']}{other['shape']}, "
        f"expected {leaf['dtype']}{leaf['shape']}"
      )
  return lines + [f"{name}: only in the checkpoint" for name in saved]


def _bytes(leaf: dict) -> int:
  return math.prod(leaf["shape"]) * jnp.dtype(leaf["dtype"]).itemsize


def _hash(content: dict) -> str:
  rest = {name: x for name, x in content.items() if name != "sha256"}
  return files.sha256_json(rest, (",", ":"))
