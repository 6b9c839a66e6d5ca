"""What a source hands out: documents, in jobs that can be read separately."""

import contextlib
import hashlib
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from aigc_jax.errors import BadData

ALL = "all"  # a split of text files: whatever they hold


class Document(NamedTuple):
  """A piece of text; a large document comes in several pieces, in order."""

  id: str
  data: bytes
  starts: bool = True  # this piece begins the document
  ends: bool = True  # this piece ends it


class Job(NamedTuple):
  """What one worker reads in one go. `parts` are plain values."""

  parts: tuple
  size: int  # bytes of text to come, about


@contextlib.contextmanager
def reading() -> Iterator[None]:
  """Makes BadData of what the file system refuses of a source's files.

  They may be moved, removed or replaced while they are listed or read.
  """
  try:
    yield
  except OSError as e:
    where = f"{e.filename}: " if e.filename else ""
    raise BadData(
      f"{where}cannot be read: {e.strerror or e}; where it was moved or "
      "changed meanwhile, run again"
    ) from e


def changed(name: str) -> BadData:
  """The refusal of a source that is not what it was when it was listed."""
  return BadData(f"source {name!r} changed while it was read; run again")


def fold(name: str) -> float:
  """A number in [0, 1) that depends on the document's name alone."""
  word = hashlib.sha256(b"held out " + name.encode("utf-8", "surrogateescape"))
  return int.from_bytes(word.digest()[:8], "big") / 2**64


def dividing(names: Iterable[str]) -> float | None:
  """A short fraction that holds out some of these documents and not all.

  None where there are fewer than two.
  """
  places = sorted(fold(name) for name in set(names))
  if len(places) < 2:
    return None
  for digits in range(17):
    step = 10.0 ** -(digits + 1)
    found = round((places[0] // step + 1) * step, digits + 1)
    if places[0] < found <= places[-1]:
      return found
  return places[-1]


def none_of(split: str, share: float, names: Collection[str]) -> str:
  """Why a split has none of these names, and a share by which it has some.

  names: all, or the first and the last by `fold`; none of a split that is not
  made by a share of them, and there is nothing to say.
  """
  if not names or split not in ("train", "validation"):
    return ""
  what = "none" if split == "validation" else "all"
  found = dividing(names)
  flag = f"--config.data.validation={found} holds out some"
  way = "a single one cannot be divided" if found is None else flag
  return f": data.validation={share} holds out {what} ({way})"


def is_held_out(name: str, fraction: float) -> bool:
  """Whether a document belongs to the validation split."""
  return fold(name) < fraction


def job_size(total: int) -> int:
  """Bytes of one job for a source of `total` bytes.

  About 16 jobs where the source is small, so that a few workers are busy; a
  job is at most 64 MB, so that little is lost when a worker is killed.
  """
  return min(max(total // 16, 1 << 20), 64 << 20)


def grouped(parts: list[tuple[tuple, int]], size: int) -> list[Job]:
  """Consecutive (part, bytes) pairs as jobs of at least `size` bytes."""
  jobs: list[Job] = []
  group: list[tuple] = []
  total = 0
  for part, part_size in parts:
    group.append(part)
    total += part_size
    if total >= size:
      jobs.append(Job(tuple(group), total))
      group, total = [], 0
  if group:
    jobs.append(Job(tuple(group), total))
  return jobs
