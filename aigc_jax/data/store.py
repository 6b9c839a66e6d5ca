"""A token store: shards of plain .npy arrays and a manifest.

FOLDER/manifest.json            counts, sha256 of everything, yardsticks
FOLDER/tokens-00000.npy ...     uint16 or uint32: eot d1 eot d2 eot ... dn eot
FOLDER/offsets-00000.npy ...    int64: where in the shard each document starts

The shards in order are one long stream. An end of text begins the next
document as input and ends the one before as target, so every token but the
very first is a target exactly once. A store is written aside and renamed
(writer.py): a folder with this name is whole. Opening checks the sizes; the
content is checked on request. Nothing here is executed, no array is a pickle.
"""

import functools
import hashlib
import json
from pathlib import Path

import numpy as np

from aigc_jax.errors import BadData

FORMAT = 1
HEADER = 128  # bytes before the data of every .npy here
LARGEST_MANIFEST = 256 << 20
AGAIN = "delete the folder and prepare it again"


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


def token_dtype(vocab: int) -> np.dtype:
  """The smallest unsigned type for the ids of a vocabulary, little-endian."""
  return np.dtype("<u2" if vocab <= 1 << 16 else "<u4")


def store_fingerprint(tokenizer: str, dtype: str, shards: list[dict]) -> str:
  """sha256 over what the tokens are."""
  content = [tokenizer, dtype] + [[s["tokens"], s["sha256"]] for s in shards]
  return hashlib.sha256(json.dumps(content).encode()).hexdigest()


class Store:
  """Reads a store. `manifest` is its manifest.json.

  Raises BadData where the folder is no store, is not whole, or (verify=True)
  holds other bytes than it says.
  """

  def __init__(self, folder, verify: bool = False):
    self.folder = Path(folder)
    self.manifest = m = _manifest(self.folder)
    try:
      self.tokens: int = m["tokens"]
      self.documents: int = m["documents"]
      self.bytes: int = m["bytes"]
      self.max_token: int = m["max_token"]
      self.eot: int = m["tokenizer"]["eot"]
      self.fingerprint: str = m["fingerprint"]
      self.dtype = np.dtype(m["dtype"])
      self._shards = m["shards"]
      sizes = [s["tokens"] for s in self._shards]
      found = store_fingerprint(
        m["tokenizer"]["fingerprint"], m["dtype"], self._shards
      )
      offsets = [s["documents"] for s in self._shards]
    except (KeyError, TypeError) as e:
      raise BadData(f"{self.folder}/manifest.json: {e}; {AGAIN}") from e
    if found != self.fingerprint or sum(sizes) != self.tokens:
      raise BadData(f"{self.folder}: the manifest contradicts itself; {AGAIN}")
    self._ends = np.cumsum([0] + sizes)
    self._firsts = self._ends.tolist()
    self._document_ends = np.cumsum([0] + offsets)
    self._arrays: dict[int, np.ndarray] = {}
    for i in range(len(sizes)):
      self._check_size(self._path("tokens", i), sizes[i] * self.dtype.itemsize)
      self._check_size(self._path("offsets", i), offsets[i] * 8)
    if verify:
      self.verify()

  def _path(self, what: str, i: int) -> Path:
    return self.folder / f"{what}-{i:05d}.npy"

  def _check_size(self, path: Path, data: int) -> None:
    try:
      size = path.stat().st_size
    except OSError as e:
      raise BadData(f"{path}: {e.strerror}; {AGAIN}") from e
    if size != HEADER + data:
      raise BadData(
        f"{path}: {size} bytes, expected {HEADER + data}: the store is "
        f"incomplete or damaged; {AGAIN}"
      )

  def verify(self) -> None:
    """Reads all of it and compares with the sha256 of the manifest."""
    for i, shard in enumerate(self._shards):
      for what, key in (("tokens", "sha256"), ("offsets", "offsets_sha256")):
        if payload_sha256(self._path(what, i)) != shard[key]:
          raise BadData(
            f"{self._path(what, i)}: not the bytes that the manifest names; "
            f"{AGAIN}"
          )

  def _shard(self, i: int) -> np.ndarray:
    """The tokens of shard `i`, mapped and not read."""
    if i not in self._arrays:
      self._arrays[i] = self._map("tokens", i, self._shards[i]["tokens"])
    return self._arrays[i]

  def _map(self, what: str, i: int, count: int) -> np.ndarray:
    path = self._path(what, i)
    dtype = self.dtype if what == "tokens" else np.dtype("<i8")
    if count == 0:
      return np.zeros(0, dtype)
    try:
      found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as e:
      raise BadData(f"{path}: not an array: {e}; {AGAIN}") from e
    if found.dtype != dtype or found.shape != (count,):
      raise BadData(
        f"{path}: {found.dtype}{found.shape}, expected {dtype}({count},); "
        f"{AGAIN}"
      )
    return found.view(np.ndarray)  # slices of a memmap are slow to make

  def read(self, start: int, stop: int, out=None) -> np.ndarray:
    """Tokens [start, stop) of the stream, int32; fewer at its end."""
    stop = min(stop, self.tokens)
    if out is None:
      out = np.empty(max(stop - start, 0), np.int32)
    at = start
    i = int(np.searchsorted(self._ends, start, side="right")) - 1
    while at < stop:
      first, last = int(self._ends[i]), int(self._ends[i + 1])
      end = min(last, stop)
      if end > at:
        out[at - start : end - start] = self._shard(i)[at - first : end - first]
        at = end
      i += 1
    return out

  def window(self, i: int, length: int) -> np.ndarray:
    """Window `i`: length + 1 tokens, the last one shared with the next.

    The last windows of a store may be shorter (`windows` counts whole ones).
    """
    return self.read(i * length, i * length + length + 1)

  def windows(self, length: int) -> int:
    """How many whole windows of length + 1 tokens there are."""
    return max(self.tokens - 1, 0) // length

  def gather(self, numbers, length: int) -> np.ndarray:
    """The whole windows of these numbers: (len(numbers), length + 1) int32."""
    out = np.empty((len(numbers), length + 1), np.int32)
    starts = np.asarray(numbers, np.int64) * length
    stops = starts + length + 1
    shards = np.searchsorted(self._ends, starts, side="right") - 1
    whole = stops <= self._ends[shards + 1]
    found = (x.tolist() for x in (starts, stops, shards, whole))
    for row, start, stop, i, in_one in zip(out, *found, strict=True):
      if in_one:
        first = self._firsts[i]
        row[:] = self._shard(i)[start - first : stop - first]
      else:
        self.read(start, stop, row)
    return out

  def document(self, i: int) -> np.ndarray:
    """The tokens of document `i`, without its end of text."""
    start = self._start(i)
    stop = self._start(i + 1) if i + 1 < self.documents else self.tokens
    return self.read(start, stop - 1)

  def _start(self, i: int) -> int:
    if not 0 <= i < self.documents:
      raise IndexError(f"document {i} of {self.documents}")
    shard = int(np.searchsorted(self._document_ends, i, side="right")) - 1
    offsets = self._offsets(shard)
    local = i - int(self._document_ends[shard])
    return int(self._ends[shard]) + int(offsets[local])

  @functools.lru_cache(maxsize=64)  # noqa: B019  (stores live as long as runs)
  def _offsets(self, shard: int) -> np.ndarray:
    return self._map("offsets", shard, self._shards[shard]["documents"])


def payload_sha256(path: Path) -> str:
  """sha256 of the data of an .npy file that this package wrote."""
  with open(path, "rb") as f:
    f.seek(HEADER)
    return hashlib.file_digest(f, "sha256").hexdigest()


def _manifest(folder: Path) -> dict:
  path = folder / "manifest.json"
  try:
    if path.stat().st_size > LARGEST_MANIFEST:
      raise BadData(f"{path}: {path.stat().st_size} bytes is no manifest")
    found = json.loads(path.read_bytes())
  except OSError as e:
    raise BadData(f"{path}: {e.strerror}; there is no token store here") from e
  except ValueError as e:
    raise BadData(f"{path}: not JSON: {e}; {AGAIN}") from e
  version = found.get("format") if isinstance(found, dict) else None
  if version != FORMAT:
    raise BadData(f"{path}: format {version}, expected {FORMAT}; {AGAIN}")
  return found
