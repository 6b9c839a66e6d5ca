"""Files: read within bounds, written whole or not at all, nothing followed.

Three kinds of files come by here. Those of strangers (a Hugging Face folder, a
work directory from elsewhere) are read by `content`, `read_json` and
`read_lines`: regular files of a bounded size, reached through no link. Those of
a directory of ours are opened for writing by `open_own`, which neither follows
a link nor touches a file that has another name elsewhere. Those that a user
names on the command line may be links, pipes or devices: `write_out`.

Whatever is replaced is written aside, made durable and renamed, so that every
reader sees the old file or the new one.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from aigc_jax.errors import BadConfig, BadData, StorageFailure

LIMIT = 16 * 2**20  # bytes of a header, an index or a config
MOST = 1_000_000  # lists and objects: each takes many times its two bytes
DIGITS = 300  # of a whole number: the largest float has 309
HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # may be half a character
ENDS = re.compile(r"\r\n|\n|\r")  # of lines
SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
LONGEST = 255  # bytes of a name, of nearly all file systems
FILLING = ".filling"  # of the name of a folder that is not whole yet
KINDS = {
  stat.S_IFLNK: "a link",
  stat.S_IFDIR: "a folder",
  stat.S_IFIFO: "a pipe (FIFO)",
  stat.S_IFSOCK: "a socket",
  stat.S_IFCHR: "a device",
  stat.S_IFBLK: "a device",
}
Failure = type[Exception]


def expanded(path: str | Path) -> Path:
  """A path that a user named, "~" and "~NAME" put in full.

  Raises BadConfig where there is no such user, and for a name that is no text:
  the records of a run could not hold it.
  """
  found = os.path.expanduser(path)
  check_text(str(found), "the path")
  if str(found).startswith("~"):
    name = str(found).split("/")[0]
    raise BadConfig(
      f"{path}: {name} has no home folder here; write the path in full, or "
      f"./{path} for a folder that is called {name}"
    )
  made = Path(found)
  # "./~" is a folder here, and stays one for who reads the path once more.
  return made.absolute() if str(made).startswith("~") else made


def check_text(text: str, what: str) -> None:
  """Raises BadConfig for half a character, which no file can hold.

  That is what Python makes of a byte of a name or a command line that is not
  UTF-8. It is found before any work: what is written of it could not be read.
  """
  try:
    text.encode()
  except UnicodeEncodeError:
    raise BadConfig(
      f"{what} {ascii(text)} is not UTF-8: rename the file or folder (or name "
      "the folder or a glob that it is in), or write the text in UTF-8"
    ) from None


def kind(mode: int) -> str:
  """What an entry of a folder is, in words: "a link", "a folder"."""
  return KINDS.get(stat.S_IFMT(mode), "a regular file")


def regular(path: Path, error: Failure = BadData) -> os.stat_result:
  """The status of a regular file that lies in its own folder, or `error`.

  A link is followed only within a model of the Hugging Face cache, from
  snapshots/REVISION to blobs.
  """
  path = Path(path)
  try:
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
      target = Path(os.path.realpath(path))
      folder = Path(os.path.realpath(path.parent))
      blobs = folder.parent.parent / "blobs"
      cached = folder.parent.name == "snapshots" and target.parent == blobs
      if not cached:
        raise error(
          f"{path} is a link to {target}, outside its folder; copy the folder "
          "with its links resolved (cp -rL)"
        )
      status = os.lstat(target)
  except (OSError, ValueError) as e:
    raise error(f"{path} cannot be read: {_why(e)}") from None
  if not stat.S_ISREG(status.st_mode):
    raise error(f"{path} is not a regular file but {kind(status.st_mode)}")
  return status


def is_there(path: Path) -> bool:
  """Whether a name, of a table say, leads to a regular file.

  Not one that is too long, holds a zero byte, leads in a circle, or may not be
  looked at: pathlib raises an error for some of these.
  """
  try:
    return stat.S_ISREG(os.stat(path).st_mode)
  except (OSError, ValueError):
    return False


def _unwaiting(path: str | Path) -> BinaryIO:
  """open() for reading, at once even where nobody writes to a pipe."""
  more = os.O_NONBLOCK | os.O_NOCTTY
  return open(path, "rb", opener=lambda name, how: os.open(name, how | more))


def opened(path: Path, error: Failure = BadData) -> BinaryIO:
  """A regular file, as `regular` has it, open for reading."""
  expected = regular(path, error)
  try:
    # What takes its place in this moment is not waited for.
    file = _unwaiting(path)
    found = os.fstat(file.fileno())
  except OSError as e:
    raise error(f"{path} cannot be read: {_why(e)}") from None
  if (found.st_dev, found.st_ino) != (expected.st_dev, expected.st_ino):
    file.close()
    raise error(f"{path} was replaced while it was opened; run again")
  return file


def readable(path: str | Path) -> BinaryIO:
  """A regular file of a user's data, links followed, open for reading.

  What takes its place between a listing and this moment, a pipe say, is not
  waited for. Raises OSError as open() does, and BadData for what is no file.
  """
  file = _unwaiting(path)
  mode = os.fstat(file.fileno()).st_mode
  if stat.S_ISREG(mode):
    return file
  file.close()
  raise BadData(
    f"{path} is not a regular file but {kind(mode)}, which took its place "
    "after it was listed; run again"
  )


def content(path: Path, limit: int = LIMIT, error: Failure = BadData) -> bytes:
  """The bytes of a regular file, read only if there are at most `limit`."""
  size = regular(path, error).st_size
  if size > limit:
    raise error(f"{path} is {size} bytes: expected at most {limit} bytes")
  with opened(path, error) as file:
    try:
      found = file.read(limit + 1)
    except OSError as e:
      raise error(f"{path} cannot be read: {_why(e)}") from None
  if len(found) > limit:
    raise error(f"{path} grew beyond {limit} bytes while it was read")
  return found


def given(path: str | Path, most: int, flag: str) -> bytes:
  """All of what a user named, be it a link or a pipe; BadData beyond `most`.

  A device such as /dev/zero has no end. Raises OSError.
  """
  with open(expanded(path), "rb") as file:
    found = file.read(most + 1)
  if len(found) > most:
    raise BadData(
      f"{flag}={path}: more than {most / 2**20:,.0f} MiB: give it in parts"
    )
  return found


def given_text(path: str | Path, most: int, flag: str) -> str:
  """The text of what a user named by a flag; BadData where it is none."""
  with told(f"{flag}={path}"):
    return given(path, most, flag).decode("utf-8")


@contextlib.contextmanager
def told(where: str) -> Iterator[None]:
  """Makes BadData of what cannot be read, or is no text in UTF-8."""
  try:
    yield
  except OSError as error:
    raise BadData(f"{where}: {error.strerror}") from None
  except UnicodeDecodeError as error:
    raise BadData(f"{where}: not UTF-8: {error}") from None


def read_json(
  path: Path, limit: int = LIMIT, error: Failure = BadData, most: int = MOST
) -> dict[str, Any]:
  """The JSON object in a file of at most `limit` bytes; see `parse_json`."""
  return parse_json(content(path, limit, error), str(path), most, error)


def parse_json(
  data: bytes,
  where: str,
  most: int = MOST,
  error: Failure = BadData,
  *,
  halves: bool = False,
) -> dict[str, Any]:
  """The JSON object in `data`; `error` where it is anything else.

  Stricter than the standard library: no key twice, no NaN nor infinity (1e999
  is one), no half characters (lone surrogates, unless `halves`), not too deep,
  bounded numbers of digits and of lists and objects.
  """
  if data.count(b"[") + data.count(b"{") > most:
    raise error(f"{where}: more than {most} lists and objects")

  def unique_keys(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
      names = [name for name, _ in pairs]
      twice = next(name for name in names if names.count(name) > 1)
      raise error(f"{where}: the key {twice[:80]!r} occurs twice")
    return found

  def constant(text):
    raise error(f"{where}: {text[:40]} is not JSON")

  def whole(text):
    return int(text) if len(text) <= DIGITS else constant(text)

  def fraction(text):
    value = float(text)
    return value if math.isfinite(value) else constant(text)

  try:
    found = json.loads(
      data.decode("utf-8"), object_pairs_hook=unique_keys,
      parse_constant=constant, parse_int=whole, parse_float=fraction,
    )  # fmt: skip
    if not halves and HALF.search(data):
      json.dumps(found, ensure_ascii=False).encode()
  except RecursionError:
    raise error(f"{where}: JSON nested too deep") from None
  except UnicodeEncodeError:
    raise error(f"{where}: half a character (a lone surrogate)") from None
  except ValueError as e:
    raise error(f"{where} is not JSON: {str(e)[:120]}") from None
  if not isinstance(found, dict):
    raise error(f"{where}: expected a JSON object, got {type(found).__name__}")
  return found


def lines_of(text: str) -> list[str]:
  """The lines of a text, which a line feed, a carriage return or both end.

  str.splitlines parts it as well at what stands within a line, and within a
  text in JSON: U+0085, U+2028, a form feed.
  """
  found = ENDS.split(text)
  return found if found[-1] else found[:-1]


class Line(NamedTuple):
  """A line of a file of JSON lines; `fault` says why it has no row."""

  offset: int  # bytes before it
  data: bytes  # with its end
  row: dict[str, Any] | None
  fault: str = ""


def read_lines(
  path: Path, longest: int = LIMIT, error: Failure = BadData
) -> Iterator[Line]:
  """The lines of a file of JSON objects, one by one, broken ones too.

  A line without an end, of more than `longest` bytes, or that `parse_json`
  refuses has no row. `error` is raised for what is no regular file.
  """
  with opened(path, error) as file:
    offset = 0
    while data := _read_line(file, longest, path, error):
      size = len(data)
      if size > longest:
        while rest := _read_line(file, longest, path, error):
          size += len(rest)
          if rest.endswith(b"\n"):
            break
        yield Line(offset, b"", None, f"longer than {longest} bytes")
      else:
        yield _line(offset, data)
      offset += size


def _read_line(file: BinaryIO, longest: int, path, error: Failure) -> bytes:
  try:
    return file.readline(longest + 1)
  except OSError as e:
    raise error(f"{path} cannot be read: {_why(e)}") from None


def _line(offset: int, data: bytes) -> Line:
  if not data.endswith(b"\n"):
    return Line(offset, data, None, "it has no end")
  try:
    return Line(offset, data, parse_json(data, "it"))
  except BadData as e:
    return Line(offset, data, None, str(e))


def open_own(path: Path, flags: int, mode: int = 0o666) -> int:
  """A descriptor of a regular file in a directory of ours.

  flags: of os.open; the file is created where it is missing, and O_TRUNC
  happens after it is known to be ours. Raises StorageFailure for a link, a
  pipe, a device, a folder, and for a file that has a second name (a hard link)
  elsewhere: writing to it would change what is not part of this directory.
  """
  path = Path(path)
  try:
    found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode):
      raise StorageFailure(_not_ours(path, found))
  except FileNotFoundError:
    pass
  except OSError as e:
    raise StorageFailure(f"{path} cannot be written: {_why(e)}") from e
  try:
    fd = os.open(path, flags & ~os.O_TRUNC | os.O_CREAT | SAFE, mode)
  except OSError as e:
    if e.errno == errno.ELOOP:  # a link since then
      raise StorageFailure(_not_ours(path, os.lstat(path))) from None
    raise StorageFailure(f"{path} cannot be written: {_why(e)}") from e
  try:
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
      raise StorageFailure(_not_ours(path, found))
    if flags & os.O_TRUNC:
      os.ftruncate(fd, 0)
  except OSError as e:
    os.close(fd)
    raise StorageFailure(f"{path} cannot be written: {_why(e)}") from e
  except BaseException:
    os.close(fd)
    raise
  return fd


def _not_ours(path: Path, found: os.stat_result) -> str:
  what = kind(found.st_mode)
  if stat.S_ISREG(found.st_mode):
    what = f"a file with {found.st_nlink} names (hard links)"
  if stat.S_ISLNK(found.st_mode):
    what += f" to {os.path.realpath(path)}"
  way_out = "put a copy in its place (cp it aside, then mv) or remove it"
  if not stat.S_ISREG(found.st_mode) and not stat.S_ISLNK(found.st_mode):
    way_out = "remove it"
  return (
    f"{path} is {what}: only a regular file of this folder alone is written "
    f"here; {way_out}"
  )


def check_own(path: Path) -> None:
  """Raises StorageFailure unless `path` may be written as one of ours.

  That is a folder, a regular file without a second name, or nothing yet.
  """
  try:
    found = os.lstat(path)
  except FileNotFoundError:
    return
  except OSError as e:
    raise StorageFailure(f"{path} cannot be written: {_why(e)}") from e
  if stat.S_ISDIR(found.st_mode):
    return
  if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
    raise StorageFailure(_not_ours(path, found))


def own_folder(path: Path) -> Path:
  """Makes a folder inside a directory of ours; it may exist, not as a link.

  Its parents are not made. Raises StorageFailure: what is written or deleted
  in it would be elsewhere.
  """
  path = Path(path)
  try:
    path.mkdir(exist_ok=True)
    found = os.lstat(path)
  except FileExistsError:
    found = os.lstat(path)
  except OSError as e:
    raise StorageFailure(f"{path} cannot be written: {_why(e)}") from e
  if not stat.S_ISDIR(found.st_mode):
    what = kind(found.st_mode)
    if stat.S_ISLNK(found.st_mode):
      what += f" to {os.path.realpath(path)}"
    raise StorageFailure(
      f"{path} is {what}: expected a folder of its own, so that nothing "
      "elsewhere is changed; remove it, or move what it names into its place"
    )
  return path


def unique(path: Path) -> Path:
  """A name beside `path` for this writer: no two ever write into one file."""
  writer = f"{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}"
  return path.with_name(_hidden(path.name, writer))


def _hidden(name: str, end: str) -> str:
  """The hidden name, for a while, of what will be called `name`.

  It begins as that does where a file system allows for as long a name.
  """
  if len(os.fsencode(name)) + len(end) + 2 > LONGEST:
    name = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
  return f".{name}.{end}"


def new_aside(path: Path, mode: int = 0o666) -> BinaryIO:
  """A new file beside `path` to write to and rename; raises OSError.

  Its `name` is its path. New or nothing: what stands there under this name was
  left by a writer that died, or is a link that leads elsewhere.
  """
  aside = unique(path)
  aside.unlink(missing_ok=True)
  flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | SAFE
  return open(aside, "wb", opener=lambda name, _: os.open(name, flags, mode))


def write_bytes(path: Path, data: bytes, mode: int = 0o666) -> None:
  """Written aside, made durable and renamed: the whole file or the old one.

  Raises StorageFailure where that cannot be done; nothing is left then. A link
  of this name is replaced, what it names is not touched.
  """
  path = Path(path)
  try:
    with new_aside(path, mode) as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    os.replace(file.name, path)
    sync(path.parent)
  except OSError as e:
    raise StorageFailure(f"{path} cannot be written: {_why(e)}") from e
  finally:
    with contextlib.suppress(OSError):
      unique(path).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
  """A text in UTF-8; see `write_bytes`."""
  write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value, indent: int = 1) -> None:
  """A JSON file, ValueError for what JSON cannot say; see `write_bytes`."""
  text = json.dumps(value, indent=indent, allow_nan=False)
  write_bytes(path, text.encode() + b"\n")


def write_out(path: str | Path, text: str | bytes, flag: str = "--out") -> None:
  """What a user asked to have written to a place of their own choice.

  A link is followed, its target replaced as by `write_bytes`; a pipe or device
  is written to. Raises StorageFailure, which names the flag.
  """
  data = text.encode("utf-8") if isinstance(text, str) else text
  target = expanded(path)
  if target.is_symlink():
    target = Path(os.path.realpath(target))
  try:
    mode = target.stat().st_mode if target.exists() else 0o100666
    if stat.S_ISREG(mode):
      write_bytes(target, data, stat.S_IMODE(mode))
    else:
      target.write_bytes(data)
  except (OSError, StorageFailure) as e:
    raise StorageFailure(f"{flag}={path}: {_why(e)}") from e


def append(path: Path, data: bytes) -> None:
  """Adds to a file of ours, durably: all of `data` or nothing of it.

  Raises StorageFailure.
  """
  fd = open_own(path, os.O_WRONLY | os.O_APPEND)
  try:
    append_to(fd, data)
    os.fsync(fd)
  except OSError as e:
    raise StorageFailure(f"{path} cannot be written: {_why(e)}") from e
  finally:
    os.close(fd)


def append_to(fd: int, data: bytes) -> None:
  """`append` to what is open with O_APPEND; raises OSError."""
  start, written = os.fstat(fd).st_size, 0
  try:
    while written < len(data):
      written += os.write(fd, data[written:])
  except OSError:
    if written:
      os.ftruncate(fd, start)
    raise


@contextlib.contextmanager
def folder_aside(out: Path) -> Iterator[Path]:
  """A new folder beside `out`, to be filled and renamed to that.

  It is gone at the end where it was not. A process that is killed leaves one:
  those of `out` that nobody on this machine holds are removed first. Raises
  OSError.
  """
  room = secrets.token_hex(4) + FILLING
  host = socket.gethostname()
  start = _hidden(out.name, f"{host}.{room}").removesuffix(room)
  with contextlib.suppress(OSError):
    for name in os.listdir(out.parent):
      if name.startswith(start) and name.endswith(FILLING):
        _remove_left(out.with_name(name))
  aside = out.with_name(start + room)
  aside.mkdir()
  fd = os.open(aside, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
  try:
    with contextlib.suppress(OSError):
      fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    yield aside
  finally:
    shutil.rmtree(aside, ignore_errors=True)
    os.close(fd)


def _remove_left(folder: Path) -> None:
  """Removes a folder whose writer is gone; not one that is held."""
  with contextlib.suppress(OSError):
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | SAFE)
    try:
      fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
      shutil.rmtree(folder, ignore_errors=True)
    finally:
      os.close(fd)


def sync(path: Path) -> None:
  """Makes a file, or the names in a folder, survive a loss of power."""
  fd = os.open(path, os.O_RDONLY)
  try:
    os.fsync(fd)
  finally:
    os.close(fd)


@contextlib.contextmanager
def locked(path: Path, say: Callable[[str], None]) -> Iterator[None]:
  """Holds a lock file; another holder is waited for, which is said."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(open_own(path, os.O_RDWR), "r+b") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      say(
        f"another process, perhaps of this very run, holds {path}; "
        "waiting for it"
      )
      fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
      pass  # no locks on this file system
    yield


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
  """Holds a folder, for what is read, added to and written again in it.

  Another holder is waited for; nothing is left behind. Where a file system has
  no locks nobody is kept out. Raises OSError.
  """
  fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
  try:
    with contextlib.suppress(OSError):
      fcntl.flock(fd, fcntl.LOCK_EX)
    yield
  finally:
    os.close(fd)


@contextlib.contextmanager
def storage(folder: Path, way_out: str) -> Iterator[None]:
  """Turns what the file system refuses into a StorageFailure.

  way_out: what the user can do, as the end of the message.
  """
  try:
    yield
  except OSError as e:
    raise StorageFailure(
      f"{folder}: cannot be written: {_why(e)}; {way_out}"
    ) from e
  except StorageFailure as e:
    raise StorageFailure(f"{e}; {way_out}") from e


def sha256_file(path: Path, start: int = 0) -> str:
  """sha256 of a file from byte `start` on; raises OSError."""
  with open(path, "rb") as file:
    file.seek(start)
    return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value, separators: tuple[str, str] = (", ", ": ")) -> str:
  """sha256 of a value as JSON with its keys in order."""
  text = json.dumps(value, sort_keys=True, separators=separators)
  return hashlib.sha256(text.encode()).hexdigest()


def _why(error: Exception) -> str:
  return getattr(error, "strerror", None) or str(error)
