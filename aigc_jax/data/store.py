"""A token store: shards of plain .npy arrays and a manifest.

FOLDER/manifest.json            counts, sha256 of everything, yardsticks
FOLDER/tokens-00000.npy ...     uint16 or uint32: eot d1 eot d2 eot ... dn eot
FOLDER/offsets-00000.npy ...    int64: where in the shard each document starts
FOLDER.checked                  which files were found to be as they should

The shards in order are one long stream. An end of text begins the next
document as input and ends the one before as target, so every token but the
very first is a target exactly once. A store is written aside and renamed
(writer.py): a folder with this name is whole. Nothing here is executed, no
array is a pickle.

Nothing is read from a file whose sha256 was not compared with the manifest's,
which has a sha256 of its own: see verified.py.
"""

from pathlib import Path

import numpy as np

from aigc_jax import files, records
from aigc_jax.data.arrays import AGAIN
from aigc_jax.data.verified import Expected, Verified, check_manifest
from aigc_jax.errors import BadData
from aigc_jax.records import COUNT, SHA256

FORMAT = 2
LARGEST_MANIFEST = 256 << 20
SHARD = {
  "tokens": COUNT,
  "documents": COUNT,
  "sha256": SHA256,
  "offsets_sha256": SHA256,
}
IDS = range(2**31)  # what int32 holds
FORM = {
  "format": int,
  "name": str,
  "split": str,
  "source": str,
  "tokenizer": {
    "kind": str,
    "name": str,
    "vocab": range(1, 2**31),
    "eot": IDS,
    "fingerprint": SHA256,
  },
  "dtype": "<u2|<u4",
  "tokens": COUNT,
  "documents": COUNT,
  "bytes": COUNT,
  "bytes_per_token": float,
  "replaced": COUNT,
  "max_token": IDS,
  "fingerprint": SHA256,
  "yardsticks": dict,
  "shards": [SHARD],
  "seal": SHA256,
}
# Of held-out text; of other text there are none.
YARDSTICKS = {"gzip": float, "xz": float, "bytes": COUNT}


def token_dtype(vocab: int) -> np.dtype:
  """The smallest unsigned type for the ids of a vocabulary, little-endian."""
  return np.dtype("<u2" if vocab <= 1 << 16 else "<u4")


def store_fingerprint(tokenizer: str, dtype: str, shards: list[dict]) -> str:
  """sha256 over what the tokens are."""
  content = [tokenizer, dtype] + [[s["tokens"], s["sha256"]] for s in shards]
  return files.sha256_json(content)


def seal(manifest: dict) -> str:
  """sha256 over all that a manifest says, but for the seal itself."""
  content = {key: x for key, x in manifest.items() if key != "seal"}
  return files.sha256_json(content)


class Store(Verified):
  """Reads a store. `manifest` is its manifest.json.

  Raises BadData where the folder is no store, is not whole, or holds other
  bytes than its manifest names: at once with verify=True, else when they are
  read.
  """

  def __init__(self, folder, verify: bool = False):
    self.folder = Path(folder)
    self.manifest = m = read_manifest(self.folder)
    self.tokens: int = m["tokens"]
    self.documents: int = m["documents"]
    self.bytes: int = m["bytes"]
    self.max_token: int = m["max_token"]
    self.eot: int = m["tokenizer"]["eot"]
    self.fingerprint: str = m["fingerprint"]
    self.dtype = np.dtype(m["dtype"])
    self._shards = m["shards"]
    sizes = [s["tokens"] for s in self._shards]
    documents = [s["documents"] for s in self._shards]
    self._ends = np.cumsum([0] + sizes)
    self._firsts = self._ends.tolist()
    self._document_ends = np.cumsum([0] + documents)
    arrays = {}
    for i, shard in enumerate(self._shards):
      arrays[f"tokens-{i:05d}.npy"] = Expected(
        self.dtype, shard["tokens"], shard["sha256"], self.max_token
      )
      arrays[f"offsets-{i:05d}.npy"] = Expected(
        np.dtype("<i8"), shard["documents"], shard["offsets_sha256"],
        shard["tokens"],
      )  # fmt: skip
    super().__init__(self.folder, m["seal"], arrays)
    if verify:
      self.verify()

  def _fill(self, out: np.ndarray, start: int, stop: int) -> None:
    """Tokens [start, stop) of the stream, across shards."""
    at = start
    i = int(np.searchsorted(self._ends, start, side="right")) - 1
    while at < stop:
      end = min(self._firsts[i + 1], stop)
      if end > at:
        file = self._open(f"tokens-{i:05d}.npy")
        file.fill(out[at - start : end - start], at - self._firsts[i])
        at = end
      i += 1

  def _as_ids(self, found: np.ndarray) -> np.ndarray:
    """As int32. A file may change after it was compared: ids still fit."""
    if found.size and int(found.max()) > self.max_token:
      raise BadData(
        f"{self.folder}: holds token id {int(found.max())}, expected "
        f"{self.max_token} at most: it changed while it was read; {AGAIN}"
      )
    return found.astype(np.int32)

  def read(self, start: int, stop: int) -> np.ndarray:
    """Tokens [start, stop) of the stream, int32; fewer at its end."""
    stop = min(stop, self.tokens)
    found = np.empty(max(stop - start, 0), self.dtype)
    self._fill(found, start, stop)
    return self._as_ids(found)

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
    found = np.empty((len(numbers), length + 1), self.dtype)
    starts = np.asarray(numbers, np.int64) * length
    stops = starts + length + 1
    shards = np.searchsorted(self._ends, starts, side="right") - 1
    whole = stops <= self._ends[shards + 1]
    where = (x.tolist() for x in (starts, stops, shards, whole))
    for row, start, stop, i, in_one in zip(found, *where, strict=True):
      if in_one:
        file = self._open(f"tokens-{i:05d}.npy")
        file.fill(row, start - self._firsts[i])
      else:
        self._fill(row, start, stop)
    return self._as_ids(found)

  def document(self, i: int) -> np.ndarray:
    """The tokens of document `i`, without its end of text."""
    start = self._start(i)
    stop = self._start(i + 1) if i + 1 < self.documents else self.tokens
    return self.read(start, stop - 1)

  def _start(self, i: int) -> int:
    if not 0 <= i < self.documents:
      raise IndexError(f"document {i} of {self.documents}")
    shard = int(np.searchsorted(self._document_ends, i, side="right")) - 1
    offset = np.empty(1, "<i8")
    file = self._open(f"offsets-{shard:05d}.npy")
    file.fill(offset, i - int(self._document_ends[shard]))
    return self._firsts[shard] + int(offset[0])


def read_manifest(folder: Path) -> dict:
  """The manifest of a store, sealed, whole and free of contradictions."""
  path = folder / "manifest.json"
  check_manifest(path, "token store")
  try:
    found = files.read_json(path, LARGEST_MANIFEST)
    version = found.get("format")
    if version != FORMAT:
      version = records.shown(version)
      raise BadData(f"{path}: format {version}, expected {FORMAT}")
    m = records.check(found, FORM, str(path))
    if seal(m) != m["seal"]:
      raise BadData(f"{path}: not what was written: its seal is another")
    if m["yardsticks"]:
      records.check(m["yardsticks"], YARDSTICKS, f"{path}: yardsticks")
    shards = m["shards"]
    totals = {k: sum(s[k] for s in shards) for k in ("tokens", "documents")}
    tokenizer = m["tokenizer"]
    if (
      totals != {k: m[k] for k in totals}
      or m["fingerprint"]
      != store_fingerprint(tokenizer["fingerprint"], m["dtype"], shards)
      or m["dtype"] != token_dtype(tokenizer["vocab"]).str
      or not m["max_token"] < tokenizer["vocab"]
    ):
      raise BadData(f"{path}: the manifest contradicts itself")
  except BadData as e:
    raise BadData(f"{e}; {AGAIN}") from None
  return m
