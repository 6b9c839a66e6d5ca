"""safetensors: an 8-byte length, a JSON header, the bytes of the tensors.

Format: https://github.com/huggingface/safetensors#format. A header is checked
whole against the size of its file before any tensor is looked at.
"""

import dataclasses
import json
import math
import os
import signal
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NoReturn

import ml_dtypes
import numpy as np

from aigc_jax import early, files
from aigc_jax.errors import BadData, StorageFailure

DTYPES = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "I64": np.dtype(np.int64),
  "I32": np.dtype(np.int32),
  "I16": np.dtype(np.int16),
  "I8": np.dtype(np.int8),
  "U64": np.dtype(np.uint64),
  "U32": np.dtype(np.uint32),
  "U16": np.dtype(np.uint16),
  "U8": np.dtype(np.uint8),
  "BOOL": np.dtype(np.bool_),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

MOST_AXES = 16
# How a pickle and a zip archive (torch.save makes both) begin.
PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Where one tensor lies; its bytes are mapped when `view` is called."""

  file: Path
  dtype: np.dtype
  shape: tuple[int, ...]
  start: int  # of its bytes in the file

  @property
  def size(self) -> int:
    """How many numbers it has."""
    return math.prod(self.shape)

  def view(self) -> np.ndarray:
    """The tensor, read-only; only the pages that are used are read.

    Each view is a mapping of its own, given back with the array: resident
    memory never grows to the size of the file.
    """
    if not self.size:
      return np.zeros(self.shape, self.dtype)
    _name_failures(self.file)
    span = self.size * self.dtype.itemsize
    mapped = np.memmap(self.file, np.uint8, "r", self.start, (span,))
    return np.asarray(mapped).view(self.dtype).reshape(self.shape)


def _name_failures(path: Path) -> None:
  """Gives words and our status to a process that cannot read mapped pages.

  Where a file became shorter since it was opened, or a disk or network fails,
  the kernel ends the process by SIGBUS.
  """
  global _mapped
  _mapped = path
  early.end_by(signal.SIGBUS, _unreadable)


def _unreadable() -> NoReturn:
  early.say(
    f"aigc_jax: {_mapped} became shorter while it was read, or cannot be read: "
    "bring back what was there, or look after the disk, and run again"
  )
  os._exit(StorageFailure.code)


_mapped = Path()  # the file whose pages were asked for last


def read(path: Path) -> dict[str, Tensor]:
  """{name: Tensor} of a file, in the order of its bytes.

  Raises BadData unless every byte after the header belongs to one tensor and
  each span is its shape times its dtype.
  """
  total = files.regular(path).st_size
  with open(path, "rb") as file:
    first, brace = file.read(8), file.read(1)
    # The length of a header may by chance begin like a pickle.
    if brace != b"{" and first.startswith(PICKLES):
      raise BadData(
        f"{path} is a pickle, not safetensors: opening it could run code"
      )
    length = int.from_bytes(first, "little")
    if len(first) < 8 or length > total - 8:
      raise BadData(
        f"{path} is {total} bytes, its header claims {length}: it is truncated "
        "or not a safetensors file"
      )
    if length > files.LIMIT:
      raise BadData(
        f"{path}: a header of {length} bytes, expected at most {files.LIMIT}"
      )
    text = brace + file.read(length - 1) if length else b""
  if not text.startswith(b"{"):
    raise BadData(f"{path}: the header does not start with '{{'")
  header = files.parse_json(text, f"the header of {path}")
  notes = header.pop("__metadata__", {})
  if not _is_notes(notes):
    raise BadData(f"{path}: __metadata__ is not an object of strings")
  return _checked(path, header, 8 + length, total)


def _is_notes(notes) -> bool:
  return isinstance(notes, dict) and all(
    isinstance(value, str) for value in notes.values()
  )


def _checked(path, header: dict, start: int, total: int) -> dict[str, Tensor]:
  """The tensors of a header whose spans cover start..total without a gap."""
  found = [_entry(path, name, entry) for name, entry in header.items()]
  found.sort(key=lambda e: (e[0], e[1]))
  at = 0
  tensors = {}
  for begin, end, name, dtype, shape in found:
    if begin != at:
      what = "overlaps the one before" if begin < at else "leaves a gap"
      raise BadData(
        f"{path}: tensor {name[:80]!r} at {begin}..{end} {what}, which ends at "
        f"{at}"
      )
    tensors[name] = Tensor(path, dtype, shape, start + begin)
    at = end
  if start + at != total:
    raise BadData(
      f"{path}: the tensors end at byte {start + at}, the file at {total}"
    )
  return tensors


def _entry(path, name: str, entry):
  """(begin, end, name, dtype, shape) of one entry, or BadData."""
  where = f"{path}: tensor {name[:80]!r}"
  if not isinstance(entry, dict) or set(entry) != {
    "dtype",
    "shape",
    "data_offsets",
  }:
    raise BadData(f"{where}: expected dtype, shape and data_offsets")
  kind = entry["dtype"]
  if not isinstance(kind, str) or kind not in DTYPES:
    raise BadData(
      f"{where}: dtype {str(kind)[:40]!r} is not among {', '.join(DTYPES)} "
      "(save the model in one of them; quantised weights are not read)"
    )
  shape, span = entry["shape"], entry["data_offsets"]
  if not _is_counts(shape) or len(shape) > MOST_AXES:
    raise BadData(
      f"{where}: shape {str(shape)[:80]} is not at most {MOST_AXES} whole "
      "numbers"
    )
  if not _is_counts(span) or len(span) != 2 or span[0] > span[1]:
    raise BadData(f"{where}: data_offsets {str(span)[:80]} is not [begin, end]")
  need = math.prod(shape) * DTYPES[kind].itemsize
  if span[1] - span[0] != need:
    raise BadData(
      f"{where}: {kind} of shape {str(shape)[:80]} needs {str(need)[:40]} "
      f"bytes, data_offsets give {span[1] - span[0]}"
    )
  return span[0], span[1], name, DTYPES[kind], tuple(shape)


def _is_counts(values) -> bool:
  return isinstance(values, list) and all(
    type(v) is int and 0 <= v < 2**63 for v in values
  )


def write(
  path: Path,
  shapes: Mapping[str, tuple[tuple[int, ...], np.dtype]],
  tensors: Iterable[tuple[str, Callable[[], np.ndarray]]],
) -> None:
  """A file of the tensors that `shapes` announces, made one at a time."""
  header: dict = {"__metadata__": {"format": "pt"}}
  at = 0
  for name, (shape, dtype) in shapes.items():
    end = at + math.prod(shape) * dtype.itemsize
    header[name] = dict(
      dtype=NAMES[dtype], shape=list(shape), data_offsets=[at, end]
    )
    at = end
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  with open(path, "wb") as file:
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for name, make in tensors:
      array = np.asarray(make())
      if (array.shape, array.dtype) != shapes[name]:
        raise ValueError(f"{name}: {array.shape} {array.dtype}, {shapes[name]}")
      file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
