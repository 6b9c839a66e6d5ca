"""Array files of a store, none of which is read before its sha256 is compared.

That is done when a store is opened for training (`check`), else when a file is
first read. Of a store of more than ALWAYS bytes it is remembered in
FOLDER.checked, under inode, size and times of each file, so that a large store
is read once and not at every start; `verify` reads it again.
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aigc_jax import files, records
from aigc_jax.data.arrays import (
  AGAIN,
  ArrayFile,
  State,
  check_size,
  most_open,
  state_of,
)
from aigc_jax.errors import BadData, StorageFailure
from aigc_jax.records import SHA256

# Smaller stores are compared at every start: 10 to 40 ms, of some seconds.
ALWAYS = 16 << 20
# The checked files of a store: its seal, and {file name: State}.
CHECKED = {"seal": SHA256, "files": dict}


def beside(folder: Path, suffix: str) -> Path:
  """FOLDER.suffix; a name may contain dots of its own."""
  return folder.with_name(folder.name + suffix)


def check_manifest(path: Path, what: str) -> None:
  """Raises BadData where there is none; `what`: of what, in words.

  Also where it may not be looked at, as in a folder of somebody else.
  """
  try:
    os.stat(path)
  except FileNotFoundError:
    raise BadData(f"{path}: there is no {what} here; {AGAIN}") from None
  except OSError as e:
    raise BadData(f"{path}: cannot be read: {e.strerror}") from None


class Expected(NamedTuple):
  """What a file must be: `count` numbers from `least` to `most`."""

  dtype: np.dtype
  count: int
  sha256: str
  most: int
  least: int = 0


class Verified:
  """The array files of a folder, by name; `seal` is that of its manifest.

  Raises BadData for a file that is not there or has not its size; where it
  holds other bytes, when it is first opened.
  """

  def __init__(self, folder: Path, seal: str, arrays: Mapping[str, Expected]):
    self.folder, self._seal, self._arrays = folder, seal, arrays
    self._states = {name: self._state(name) for name in arrays}
    self._open = functools.lru_cache(most_open())(self._opened)
    self._large = sum(state[1] for state in self._states.values()) > ALWAYS
    self._checked: dict[str, State] = self._remembered() if self._large else {}

  def _state(self, name: str) -> State:
    path = self.folder / name
    try:
      status = os.stat(path)
    except OSError as e:
      raise BadData(f"{path}: {e.strerror}; {AGAIN}") from e
    expected = self._arrays[name]
    check_size(path, status, expected.count * expected.dtype.itemsize)
    return state_of(status)

  def verify(self, progress: Callable[[int, int], None] | None = None) -> None:
    """Reads all of it and compares with the sha256 of the manifest."""
    self._checked = {}
    self._open.cache_clear()
    self.check(progress=progress)

  def check(
    self,
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] | None = None,
    remember: bool = True,
  ) -> None:
    """`verify` of what changed since it was checked, or was never.

    remember: note beside a large store that it was checked.
    """
    todo = [
      name
      for name, state in self._states.items()
      if self._checked.get(name) != state
    ]
    total = sum(self._states[name][1] for name in todo)
    if total > ALWAYS:
      say(f"checking {total / 1e6:,.0f} MB of {self.folder}")
    done = 0
    with concurrent.futures.ThreadPoolExecutor(
      min(8, os.cpu_count() or 1)
    ) as pool:
      try:
        for name, _ in zip(todo, pool.map(self._open, todo), strict=True):
          done += self._states[name][1]
          if progress:
            progress(done, total)
      except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    if todo and self._large and remember:
      self._remember()

  def _remembered(self) -> dict[str, State]:
    """The states under which files were found to be right, if any are kept."""
    path = beside(self.folder, ".checked")
    try:
      kept = records.check(files.read_json(path), CHECKED, str(path))
    except BadData:
      return {}
    if kept["seal"] != self._seal:
      return {}
    return {
      name: tuple(state)
      for name, state in kept["files"].items()
      if records.fits(state, [int])
    }

  def _remember(self) -> None:
    """A convenience: that it cannot be written harms nobody."""
    with contextlib.suppress(OSError, StorageFailure):
      files.write_json(
        beside(self.folder, ".checked"),
        {"seal": self._seal, "files": self._checked},
      )

  def _opened(self, name: str) -> ArrayFile:
    """A file of the store, whose content is known to be right."""
    expected = self._arrays[name]
    file = ArrayFile(self.folder / name, expected.dtype, expected.count)
    if self._checked.get(name) != file.state:
      _compare(file, expected)
      self._checked[name] = file.state
    return file


def _compare(file: ArrayFile, expected: Expected) -> None:
  """Raises BadData unless a file is what the manifest says."""
  digest = hashlib.sha256()
  least, largest = 0, 0
  for block in file.blocks():
    digest.update(block.data)
    least = min(least, int(block.min()))
    largest = max(largest, int(block.max()))
  if digest.hexdigest() != expected.sha256:
    raise BadData(
      f"{file.path}: not the bytes that the manifest names: it was changed "
      f"or its disk is failing; {AGAIN}"
    )
  if least < expected.least or largest > expected.most:
    raise BadData(
      f"{file.path}: holds {least} to {largest}, expected {expected.least} to "
      f"{expected.most}; {AGAIN}"
    )
