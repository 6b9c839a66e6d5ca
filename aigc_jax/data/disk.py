"""Files that others may see: locks, and writes that are never half there."""

import contextlib
import fcntl
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from aigc_jax.errors import StorageFailure


def unique(path: Path) -> Path:
  """A name beside `path` for this writer: no two ever write into one file."""
  writer = f"{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}"
  return path.with_name(f"{path.name}.{writer}")


@contextlib.contextmanager
def locked(path: Path, say: Callable[[str], None]) -> Iterator[None]:
  """Holds a lock file; another holder is waited for, which is said."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, "w") as f:
    try:
      fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      say(f"another process holds {path}; waiting for it")
      fcntl.flock(f, fcntl.LOCK_EX)
    except OSError:
      pass  # no locks on this file system; see above
    yield


@contextlib.contextmanager
def storage(folder: Path) -> Iterator[None]:
  """Turns what the file system refuses into a StorageFailure."""
  try:
    yield
  except OSError as e:
    raise StorageFailure(
      f"{folder}: cannot be written: {e.strerror or e}; free some space or "
      "choose another place with --config.data.root=DIR"
    ) from e


def write_json(path: Path, value) -> None:
  """A small JSON file; see `write_bytes`."""
  write_bytes(path, json.dumps(value, indent=1).encode())


def write_bytes(path: Path, data: bytes) -> None:
  """Written aside, made durable and renamed."""
  aside = unique(path)
  with open(aside, "wb") as f:
    f.write(data)
    f.flush()
    os.fsync(f.fileno())
  os.replace(aside, path)


def sync(folder: Path) -> None:
  """Makes the names in a folder durable."""
  fd = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(fd)
  finally:
    os.close(fd)
