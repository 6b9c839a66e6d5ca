"""JSON from a stranger: bounded in size and depth, no duplicates, no NaN."""

import json
import os
import stat
from pathlib import Path

from aigc_jax.errors import BadData

LIMIT = 16 * 2**20  # bytes of a header, an index or a config
MOST = 1_000_000  # lists and objects: each takes many times its two bytes


def read(path: Path, limit: int = LIMIT) -> dict:
  """The object in a file, read only if it is at most `limit` bytes."""
  return parse(content(path, limit), str(path))


def content(path: Path, limit: int) -> bytes:
  """The bytes of a regular file, read only if there are at most `limit`."""
  size = regular(path).st_size
  if size > limit:
    raise BadData(f"{path} is {size} bytes: expected at most {limit} bytes")
  try:
    with open(path, "rb") as file:
      return file.read(limit + 1)
  except OSError as error:
    raise BadData(f"{path} cannot be read: {error.strerror}") from None


def parse(data: bytes, where: str, most: int = MOST) -> dict:
  """The JSON object in `data`; BadData where it is anything else."""
  if data.count(b"[") + data.count(b"{") > most:
    raise BadData(f"{where}: more than {most} lists and objects")

  def unique(pairs):
    found = {}
    for name, value in pairs:
      if name in found:
        raise BadData(f"{where}: the key {name[:80]!r} occurs twice")
      found[name] = value
    return found

  def constant(text):
    raise BadData(f"{where}: {text} is not JSON")

  try:
    found = json.loads(
      data.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant
    )
  except RecursionError:
    raise BadData(f"{where}: JSON nested too deep") from None
  except (UnicodeDecodeError, ValueError) as error:
    raise BadData(f"{where} is not JSON: {str(error)[:120]}") from None
  if not isinstance(found, dict):
    kind = type(found).__name__
    raise BadData(f"{where}: expected a JSON object, got {kind}")
  return found


def regular(path: Path) -> os.stat_result:
  """The status of a regular file that lies in its own folder, or BadData.

  A link is followed only within a model of the Hugging Face cache, from
  snapshots/REVISION to blobs.
  """
  try:
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
      target = Path(os.path.realpath(path))
      folder = Path(os.path.realpath(path.parent))
      blobs = folder.parent.parent / "blobs"
      cached = folder.parent.name == "snapshots" and target.parent == blobs
      if not cached:
        raise BadData(
          f"{path} is a link to {target}, outside its folder; copy the folder "
          "with its links resolved (cp -rL)"
        )
      status = os.lstat(target)
  except (OSError, ValueError) as error:
    raise BadData(f"{path} cannot be read: {error}") from None
  if not stat.S_ISREG(status.st_mode):
    raise BadData(f"{path} is not a regular file")
  return status
