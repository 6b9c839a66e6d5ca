"""What lies at a path: which files are text, of which kind, what is left out.

kind        files                                  how they are told
plain       any other text                         as it is, a document a file
jsonl       .jsonl, .ndjson, .json of JSON lines   one object a line
json        .json that is an array                 one object an entry
jsonl.gz    .jsonl.gz, .ndjson.gz, .json.gz        JSON lines, packed
parquet     .parquet                               rows

A .json file in a folder is told by its first record: with the text field it is
records, without (package.json, a notebook's settings) it is text like any
other. One that is named directly holds records or is refused.
"""

import errno
import glob
import json
import os
import re
import shlex
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from aigc_jax import files
from aigc_jax.errors import BadConfig, BadData

HEAD = 8192  # bytes from which it is told whether a file is text
LONGEST_ROW = 256 << 20  # bytes of one JSON line, or of a .json array
ENTRY = 16 << 20  # bytes of an array in which its first entry is looked for
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz", ".7z")
MARKS = {  # how files begin that are no text, whatever their name
  b"%PDF-": "a PDF file",
  b"PK\x03\x04": "a zip file (or of Office, which is one)",
  b"\x1f\x8b": "a gzip file",
  b"\xfd7zXZ\0": "an xz file",
  b"\x28\xb5\x2f\xfd": "a zstd file",
  b"PAR1": "a Parquet file without .parquet in its name",
  b"\x93NUMPY": "an array",
}
REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
COPIES = {
  "gs": "gcloud storage cp -r {} DIR",
  "s3": "aws s3 cp --recursive {} DIR",
  "http": "curl -LO {}",
  "https": "curl -LO {}",
}


class File(NamedTuple):
  """A file that is read: `name` is relative, `kind` as above."""

  name: str
  path: str
  size: int
  kind: str


class Found(NamedTuple):
  """Regular files by name: (name, path, size), and what was passed over."""

  files: list[tuple[str, str, int]]
  left_out: dict[str, list[str]]  # {why: names}


def check_local(path: str, what: str) -> None:
  """Raises BadConfig for a URL or the path of a bucket; says what works."""
  if not REMOTE.match(str(path)):
    return
  scheme = str(path).partition(":")[0].lower()
  copy = COPIES.get(scheme, "").format(shlex.quote(str(path)))
  raise BadConfig(
    f"{what}={path}: only files on a disk or mounted file system are read; "
    f"copy it here{f' ({copy})' if copy else ''} and name the copy, or mount "
    "it (gcsfuse for gs://, mount-s3 for s3://) and name the mounted folder"
  )


def check_there(path: str, key: str) -> None:
  """Raises BadData where a path or glob that `key` names leads to nothing."""
  check_local(path, key)
  place = str(files.expanded(path))
  try:
    os.stat(place)
    return
  except PermissionError as e:
    raise BadData(f"{key}={path!r} cannot be read: {e.strerror}") from None
  except (OSError, ValueError):
    pass
  if not glob.glob(place, recursive=True):
    what = "no file matches" if glob.has_magic(place) else "no such file"
    raise BadData(f"{key}={path!r}: {what} ({os.path.abspath(place)})")


def check_apart(
  workdir: str, paths: Iterable[str], what: str, why: str = ""
) -> None:
  """Raises BadConfig for a work directory that is the folder of the data.

  what: the data, in words. why: what would come of it.
  """
  place = os.path.realpath(files.expanded(workdir))
  if place in (os.path.realpath(files.expanded(path)) for path in paths):
    raise BadConfig(
      f"--workdir={workdir} is the folder of {what}{why}; use "
      f"--workdir={shlex.quote(os.path.join(workdir, 'run'))}"
    )


def find(path: str, given: str, root: Path) -> Found:
  """All regular files below an absolute `path`, by name relative to it.

  Hidden files and folders are not looked at. Left out, by reason: links to
  folders, work directories of runs, `root` (where stores are kept).
  """
  left_out: dict[str, list[str]] = {}
  if os.path.isfile(path):
    top, found = os.path.dirname(path), [path]
  elif os.path.isdir(path):
    top, found = path, list(_walk(path, str(root), left_out))
  else:
    matches = sorted(filter(os.path.isfile, glob.glob(path, recursive=True)))
    if not matches:
      what = "no file matches" if glob.has_magic(path) else "no such file"
      raise BadData(
        f"{given!r}: {what} ({path}); expected a file, a folder or a glob such "
        "as 'texts/**/*.txt'"
      )
    top = os.path.commonpath([os.path.dirname(p) for p in matches])
    found = [p for p in matches if not _made_here(p, top, root, left_out)]
  files = []
  for p in found:
    try:
      status = os.stat(p)
    except PermissionError as e:  # its folder may be listed, and not entered
      _unreadable(e)
    except OSError:  # a link to nowhere, or gone
      _note(left_out, "broken link", os.path.relpath(p, top))
      continue
    if stat.S_ISREG(status.st_mode):
      files.append((os.path.relpath(p, top), p, status.st_size))
    else:
      _note(left_out, "no regular file", os.path.relpath(p, top))
  return Found(sorted(files), left_out)


def _note(left_out: dict[str, list[str]], why: str, name: str) -> None:
  left_out.setdefault(why, []).append(name)


def _walk(top: str, root: str, left_out) -> Iterator[str]:
  for folder, folders, names in os.walk(top, onerror=_unreadable):
    kept = []
    for name in sorted(folders):
      inner = os.path.join(folder, name)
      relative = os.path.relpath(inner, top)
      if name.startswith("."):
        continue
      if os.path.islink(inner):
        _note(left_out, "linked folder", relative)
      elif why := _made(inner, root):
        _note(left_out, why, relative)
      else:
        kept.append(name)
    folders[:] = kept
    yield from (os.path.join(folder, n) for n in sorted(names) if n[0] != ".")


def below(top: str | Path, hidden: bool = False) -> Iterator[Path]:
  """All files below a folder in the order of their names, folder by folder.

  hidden: those too whose name, or whose folder's, begins with a dot. Raises
  BadData for a folder that cannot be read, and for a link to one: what is in it
  would be missing, and nobody told.
  """
  for place, folders, names in os.walk(top, onerror=_unreadable):
    if not os.access(place, os.X_OK):  # its names may be listed, and no more
      raise BadData(f"{place}: cannot be entered: {os.strerror(errno.EACCES)}")
    folders[:] = sorted(x for x in folders if hidden or x[0] != ".")
    for inner in (os.path.join(place, name) for name in folders):
      if os.path.islink(inner):
        raise BadData(
          f"{inner} is a link to {os.path.realpath(inner)}, a folder "
          "elsewhere: copy the folder with its links resolved (cp -rL), or "
          "name what it leads to as a source of its own"
        )
    yield from (Path(place, x) for x in sorted(names) if hidden or x[0] != ".")


def _unreadable(error: OSError) -> None:
  raise BadData(f"{error.filename}: cannot be read: {error.strerror}")


def _made(folder: str, root: str) -> str:
  """What a folder is, if this package writes it; "" if it does not.

  A run would otherwise train on what it says about itself, and find other data
  whenever it is continued.
  """
  if os.path.realpath(folder) == os.path.realpath(root):
    return "data.root"
  has = (os.path.lexists(os.path.join(folder, x)) for x in
         ("LOCK", "config.json", "checkpoints"))  # fmt: skip
  lock, config, checkpoints = has
  return "work directory" if lock or (config and checkpoints) else ""


def _made_here(path: str, top: str, root: Path, left_out) -> bool:
  """Whether a match of a glob lies in a folder that is left out."""
  folder = os.path.dirname(path)
  while len(folder) > len(top):
    if why := _made(folder, str(root)):
      name = os.path.relpath(folder, top)
      if name not in left_out.get(why, ()):
        _note(left_out, why, name)
      return True
    folder = os.path.dirname(folder)
  return False


WAYS = {
  "linked folder": "name it as a source of its own, or use a glob, PATH/**/*",
  "UTF-16": "iconv -f UTF-16 -t UTF-8 FILE > FILE.txt makes text of it",
  "packed": "unpack it",
}


def told(left_out: dict[str, list[str]]) -> str:
  """What was left out and why, as one line; "" for nothing."""
  parts = []
  for why, names in sorted(left_out.items()):
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    way = f"; {WAYS[why]}" if why in WAYS else ""
    parts.append(f"{len(names)} {why} ({shown}{way})")
  return ", ".join(parts)


def divided(found: Found, field: str) -> tuple[list[File], dict]:
  """(the files of a folder or glob that hold text, all that is left out)."""
  kept: list[File] = []
  left_out = {why: list(names) for why, names in found.left_out.items()}
  for name, path, size in found.files:
    kind = _by_name(name)
    if not size:
      why = "empty"
    elif kind == "plain" and _packed(name):
      why = "packed"
    elif kind in ("parquet", "jsonl.gz"):
      why = ""
    else:
      why = _no_text(path)[0]
    if why:
      _note(left_out, why, name)
      continue
    if kind == "json":
      kind = _records(path, field) or "plain"
    kept.append(File(name, path, size, kind))
  return kept, left_out


def single(found: Found, given: str, field: str) -> list[File]:
  """The one file that a path names; BadData where it is no text."""
  ((name, path, size),) = found.files
  kind = _by_name(name)
  if kind == "plain" and _packed(name):
    raise BadData(
      f"{given}: this is a packed file; unpack it first (only .jsonl.gz is "
      "read as it is)"
    )
  if not size:
    return []
  if kind not in ("parquet", "jsonl.gz"):
    why, what = _no_text(path)
    if why == "UTF-16":
      made = shlex.quote(f"{path}.utf8{Path(name).suffix}")
      raise BadData(
        f"{given}: this is {what}, and UTF-8 is read here; convert it: iconv "
        f"-f {what} -t UTF-8 {shlex.quote(path)} > {made}"
      )
    if why:
      raise BadData(
        f"{given}: this is {what}, not text; to train on raw bytes put them "
        "into a column of bytes in a .parquet file"
      )
  if kind == "json":
    kind = _records(path)
    if not kind:
      raise BadData(
        f"{given}: neither JSON lines nor an array of records; make JSON lines "
        f"of the records in it (jq -c '.KEY[]' {shlex.quote(path)} > "
        "records.jsonl), or rename it to .txt to train on it as it is"
      )
  return [File(name, path, size, kind)]


def _by_name(name: str) -> str:
  name = name.lower()
  if name.endswith((".jsonl", ".ndjson")):
    return "jsonl"
  if name.endswith((".jsonl.gz", ".ndjson.gz", ".json.gz")):
    return "jsonl.gz"
  for suffix in (".parquet", ".json"):
    if name.endswith(suffix):
      return suffix[1:]
  return "plain"


def _packed(name: str) -> bool:
  return name.lower().endswith(PACKED)


def _no_text(path: str) -> tuple[str, str]:
  """(why a file is no text that is read here, what it is), or two ""."""
  try:
    with files.readable(path) as f:
      head = f.read(HEAD)
  except OSError as e:
    raise BadData(f"{path}: cannot be read: {e.strerror}") from e
  if head.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
    return "UTF-16", "UTF-32"
  if head.startswith((b"\xff\xfe", b"\xfe\xff")):
    return "UTF-16", "UTF-16"
  for mark, what in MARKS.items():
    if head.startswith(mark):
      return "binary", what
  if b"\0" not in head:
    return "", ""
  # Of Latin text in UTF-16 every second byte is 0, and no other.
  for first, name in ((0, "UTF-16BE"), (1, "UTF-16LE")):
    zeros, others = head[first::2].count(0), head[1 - first :: 2].count(0)
    if not others and zeros > 0.3 * len(head[first::2]):
      return "UTF-16", name
  return "binary", f"binary (byte {head.index(0)} is 0)"


def _records(path: str, field: str = "") -> str:
  """ "jsonl" or "json" where a .json file holds records, else "".

  field: only if the first of them has it.
  """
  try:
    with files.readable(path) as f:
      line = b""
      while not line.strip() and (line := f.readline(LONGEST_ROW)):
        pass
      if line.lstrip(b"\xef\xbb\xbf \t")[:1] == b"[":
        kind, first = "json", _first((line + f.read(HEAD))[:ENTRY])
      else:
        kind, first = "jsonl", _value(line)
  except OSError as e:
    raise BadData(f"{path}: cannot be read: {e.strerror}") from e
  if kind == "json" and not field:
    return kind  # what is wrong in it is named when it is read
  if not isinstance(first, dict) or (field and field not in first):
    return ""
  return kind


def _value(line: bytes):
  try:
    return json.loads(line)
  except (ValueError, RecursionError):
    return None


def _first(head: bytes):
  """The first entry of an array, of which this is the beginning.

  An object that is longer is known by its keys so far.
  """
  text = head.decode("utf-8-sig", "ignore").lstrip()[1:].lstrip()
  try:
    return json.JSONDecoder().raw_decode(text)[0]
  except RecursionError:
    return None
  except ValueError:
    if not text.startswith("{"):
      return None
    return dict.fromkeys(re.findall(r'"([^"\\]*)"\s*:', text))
