"""The .npy files of a store: one plain array each, read by position.

A file is never mapped. Where a mapped file becomes shorter, or its disk fails,
the process ends with SIGBUS and no word; a read says what happened, for some
microseconds more a row.
"""

import functools
import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from aigc_jax.errors import BadData

HEADER = 128  # bytes before the data of every .npy here
BLOCK = 4 << 20  # bytes read at once where all of a file is read
AGAIN = "delete the folder and prepare it again"
State = tuple[int, int, int, int]


def header(dtype: np.dtype, count: int) -> bytes:
  """The .npy header of a one-dimensional array, HEADER bytes long."""
  head = f"{{'descr': '{dtype.str}', 'fortran_order': False, "
  head += f"'shape': ({count},), }}"
  size = HEADER - 10
  return (
    b"\x93NUMPY\x01\x00"
    + size.to_bytes(2, "little")
    + head.ljust(size - 1).encode()
    + b"\n"
  )


def state_of(status: os.stat_result) -> State:
  """What changes when a file is replaced, written to, or gets another size."""
  return (
    status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
  )  # fmt: skip


def check_size(path: Path, status: os.stat_result, size: int) -> None:
  """Raises BadData unless it is a regular file of `size` bytes of data."""
  if not stat.S_ISREG(status.st_mode):
    raise BadData(f"{path}: not a regular file; {AGAIN}")
  if status.st_size != HEADER + size:
    raise BadData(
      f"{path}: {status.st_size} bytes, expected {HEADER + size}: the store is "
      f"incomplete or damaged; {AGAIN}"
    )


class ArrayFile:
  """An array of `count` numbers in a file that `header` begins, open.

  state: of the file that is open, whatever has its name by now. Closed with
  the last reference. Raises BadData where it is another array or none.
  """

  def __init__(self, path: Path, dtype: np.dtype, count: int):
    self.path, self.dtype, self.count = path, dtype, count
    self._fd = -1
    try:
      flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
      self._fd = os.open(path, flags)
      status = os.fstat(self._fd)
      check_size(path, status, count * dtype.itemsize)
      head = os.pread(self._fd, HEADER, 0)
    except OSError as e:
      raise BadData(f"{path}: {e.strerror}; {AGAIN}") from e
    if head != header(dtype, count):
      raise BadData(
        f"{path}: not an array of {count} numbers of type {dtype}; {AGAIN}"
      )
    self.state = state_of(status)

  def __del__(self):
    if self._fd >= 0:
      os.close(self._fd)

  def fill(self, out: np.ndarray, start: int) -> None:
    """Numbers [start, start + len(out)), into an array of this dtype."""
    at = HEADER + start * self.dtype.itemsize
    try:
      found = os.preadv(self._fd, [out], at)
      if found != out.nbytes:
        self._rest(memoryview(out).cast("B"), at, found)
    except OSError as e:
      raise BadData(f"{self.path}: cannot be read: {e.strerror}") from e

  def _rest(self, view: memoryview, at: int, found: int) -> None:
    """What a read that ended early left; a signal may end one."""
    while found < len(view):
      more = os.preadv(self._fd, [view[found:]], at + found)
      if not more:
        size = os.fstat(self._fd).st_size
        raise BadData(
          f"{self.path}: ends at byte {size} of "
          f"{HEADER + self.count * self.dtype.itemsize}: it became shorter "
          f"while it was read; {AGAIN}, or bring back what was there, and run "
          "again"
        )
      found += more

  def blocks(self) -> Iterator[np.ndarray]:
    """All of it in order; a block is the same memory as the one before."""
    block = np.empty(BLOCK // self.dtype.itemsize, self.dtype)
    for start in range(0, self.count, len(block)):
      part = block[: min(len(block), self.count - start)]
      self.fill(part, start)
      yield part


@functools.cache
def most_open() -> int:
  """How many files of a store may be open at once.

  A large store has thousands of shards, and rows come from all of them: the
  soft limit of the process, often 1024, goes up as far as it may.
  """
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  unlimited = hard == resource.RLIM_INFINITY
  wanted = max(soft, 1 << 16 if unlimited else min(hard, 1 << 16))
  try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
  except (OSError, ValueError):
    wanted = soft
  return max(16, wanted // 8)
