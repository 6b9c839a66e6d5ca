"""Writes a token store: idempotent, parallel, resumed after a kill.

The store is built in FOLDER.building, one shard for each job of the source. A
shard's files are written aside and renamed, and its record comes last, so what
has a record is whole; it is checked and kept when the work starts again, on
files that nobody touched since. When all shards are there, the manifest is
written and the folder renamed. Jobs are a function of the source alone, so
neither the number of workers nor any interruption changes a byte. A lock keeps
a second builder waiting; where locks do not work (some network file systems) it
would write the same bytes, and the first rename wins.
"""

import contextlib
import gzip
import hashlib
import itertools
import lzma
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from aigc_jax import records
from aigc_jax.data.arrays import HEADER, header
from aigc_jax.data.documents import Document, Job, changed, dividing, reading
from aigc_jax.data.store import (
  FORMAT,
  Store,
  seal,
  store_fingerprint,
  token_dtype,
)
from aigc_jax.data.verified import beside
from aigc_jax.errors import BadData, StorageFailure
from aigc_jax.files import (
  locked,
  new_aside,
  own_folder,
  read_json,
  sha256_file,
  sha256_json,
  storage,
  sync,
  write_json,
)
from aigc_jax.records import COUNT, SHA256

AT_ONCE = 1 << 20  # bytes of text encoded in one call
ELSEWHERE = (
  "free some space or choose another place with --config.data.root=DIR"
)
LOOKED_AT = 10_000  # documents, to find a way to divide them
YARDSTICK = 8 << 20  # bytes that gzip and xz are tried on
# Of a finished shard, while the others are made.
RECORD = {
  "bytes": COUNT,
  "replaced": COUNT,
  "max_token": COUNT,
  "tokens": COUNT,
  "documents": COUNT,
  "sha256": SHA256,
  "offsets_sha256": SHA256,
}
Progress = Callable[[int, int], None]  # (bytes done, bytes in all)


def write(
  folder: Path,
  source,
  split: str,
  tokenizer,
  *,
  workers: int,
  say: Callable[[str], None],
  progress: Progress | None = None,
) -> Store:
  """The store of one split of a source, written if it is not there.

  workers: processes; 0 works in this one. `progress` is told (done, all) bytes.
  Raises BadData where the source cannot be read or has nothing in this split,
  StorageFailure where the folder cannot be written.
  """
  folder = Path(folder)
  with storage(folder, ELSEWHERE), locked(beside(folder, ".lock"), say):
    if not folder.is_dir():
      try:
        _build(folder, source, split, tokenizer, workers, progress)
      except (OSError, StorageFailure):
        if not folder.is_dir():  # else another builder was first
          raise
        shutil.rmtree(beside(folder, ".building"), ignore_errors=True)
    return Store(folder)


def _build(folder, source, split, tokenizer, workers, progress) -> None:
  """Makes all shards, then the manifest, then the folder."""
  aside = beside(folder, ".building")
  with reading():
    jobs = source.jobs(split)
    state = source.state
  start_aside(aside, jobs, state)
  records = _shards(aside, source, split, tokenizer, jobs, workers, progress)
  manifest = _manifest(records, source, split, tokenizer)
  if not manifest["documents"]:
    shutil.rmtree(aside)
    raise BadData(_nothing(source, split))
  if split != "train":
    manifest["yardsticks"] = _yardsticks(source, split, jobs)
  if not source.unchanged():
    shutil.rmtree(aside)
    raise changed(source.name)
  manifest["seal"] = seal(manifest)
  write_json(aside / "manifest.json", manifest)
  kept = {"manifest.json"}
  for i in range(len(jobs)):
    kept |= {f"tokens-{i:05d}.npy", f"offsets-{i:05d}.npy"}
  for path in aside.iterdir():  # records, and what dead writers began
    if path.name not in kept:
      path.unlink()
  sync(aside)
  os.rename(aside, folder)
  sync(folder.parent)


def _nothing(source, split: str) -> str:
  """Why a split is empty, and what would not be."""
  name, share = repr(source.name), source.validation
  if split not in ("train", "validation"):
    return f"source {name} has no text in its split {split!r}"
  own = "--config.data.validation_path=FILE, held-out text of your own"
  if split == "validation" and not share:
    return (
      f"source {name} holds nothing out (data.validation=0); name "
      "--config.data.validation=0.05, or "
      f"{own}"
    )
  documents = itertools.chain.from_iterable(
    source.read(job, other)
    for other in ({"train": "validation"}.get(split, source.split),)
    for job in source.jobs(other)
  )
  found = dividing(d.id for d in itertools.islice(documents, LOOKED_AT))
  if found is None:
    return (
      f"source {name} has one document at most, and data.validation={share} "
      f"leaves its {split} split without any; name {own}, or train without "
      "held-out text: --config.data.validation=0"
    )
  return (
    f"source {name} has no document in its {split} split "
    f"(data.validation={share}); --config.data.validation={found} gives it "
    f"some, or name {own}"
  )


def start_aside(aside: Path, jobs: list[Job], state: str = "") -> None:
  """A place to build in; what another plan left there is thrown away.

  state: of the source's files. What was read of them while they were otherwise
  is no part of this, also where they are by now what they were before.
  """
  plan = sha256_json([jobs, state])
  kept = aside / "plan.json"
  own_folder(aside)
  with contextlib.suppress(BadData):
    if read_json(kept).get("plan") == plan:
      return
  shutil.rmtree(aside)
  own_folder(aside)
  write_json(kept, {"plan": plan})


def _shards(
  aside, source, split, tokenizer, jobs, workers, progress
) -> list[dict]:
  """The record of every shard; those that are missing are made."""
  records = {i: _finished(aside, i) for i in range(len(jobs))}
  todo = [i for i, record in records.items() if record is None]
  total = max(1, sum(job.size for job in jobs))
  done = total - sum(jobs[i].size for i in todo)

  def tell(i: int, record: dict) -> None:
    nonlocal done
    records[i] = record
    done += jobs[i].size
    if progress:
      progress(done, total)

  if progress:
    progress(done, total)
  if workers < 1 or len(todo) < 2:
    for i in todo:
      tell(i, write_shard(aside, i, source, split, tokenizer, jobs[i]))
    return [records[i] for i in range(len(jobs))]
  # Not fork, as JAX and others have threads by now; the server imports once.
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload([__name__])
  with ProcessPoolExecutor(
    min(workers, len(todo)),
    context,
    initializer=_begin,
    initargs=(aside, source, split, tokenizer),
  ) as pool:
    futures = {pool.submit(_work, i, jobs[i]): i for i in todo}
    try:
      for future in as_completed(futures):
        tell(futures[future], future.result())
    except BrokenProcessPool as e:
      raise BadData(
        f"source {source.name!r}: a worker process died (out of memory, or "
        "killed); what is finished is kept: run again, with fewer workers"
      ) from e
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise
  return [records[i] for i in range(len(jobs))]


_given: tuple = ()  # of a worker process: what all its jobs share


def _begin(*given) -> None:
  """Of a worker: what its jobs share; it ends with Ctrl-C and its parent."""
  global _given
  _given = given
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  multiprocessing.parent_process().join()
  os._exit(1)


def _work(i: int, job: Job) -> dict:
  aside, source, split, tokenizer = _given
  return write_shard(aside, i, source, split, tokenizer, job)


def _finished(aside: Path, i: int) -> dict | None:
  """The record of a shard that is whole, or None."""
  path = aside / f"shard-{i:05d}.json"
  try:
    record = records.check(read_json(path), RECORD, str(path))
    for what, key in (("tokens", "sha256"), ("offsets", "offsets_sha256")):
      path = aside / f"{what}-{i:05d}.npy"
      if sha256_file(path, HEADER) != record[key]:
        return None
    return record
  except (OSError, BadData):
    return None


class ArrayWriter:
  """An .npy file written piece by piece, aside, and renamed at the end."""

  def __init__(self, path: Path, dtype: np.dtype):
    self._path, self._dtype = path, dtype
    self._file = new_aside(path)
    self._file.write(b"\0" * HEADER)
    self._sha = hashlib.sha256()
    self.count = 0

  def append(self, values: np.ndarray) -> None:
    data = np.ascontiguousarray(values, self._dtype).data
    self._file.write(data)
    self._sha.update(data)
    self.count += len(values)

  def close(self) -> str:
    """Finishes the file; its sha256."""
    with self._file as f:
      f.seek(0)
      f.write(header(self._dtype, self.count))
      f.flush()
      os.fsync(f.fileno())
    os.replace(self._file.name, self._path)
    return self._sha.hexdigest()


def write_shard(aside, i, source, split, tokenizer, job: Job) -> dict:
  """Encodes one job into tokens-i.npy and offsets-i.npy; its record."""
  tokens = ArrayWriter(
    aside / f"tokens-{i:05d}.npy", token_dtype(tokenizer.vocab)
  )
  offsets = ArrayWriter(aside / f"offsets-{i:05d}.npy", np.dtype("<i8"))
  record = {"bytes": 0, "replaced": 0, "max_token": tokenizer.eot}
  eot = np.array([tokenizer.eot])
  if i == 0:
    tokens.append(eot)
  for batch in _batches(source.read(job, split)):
    encoded, sizes, replaced = _encode(tokenizer, batch)
    record["bytes"] += sizes
    record["replaced"] += replaced
    starts, pieces, at = [], [], tokens.count
    for document, ids in zip(batch, encoded, strict=True):
      if document.starts:
        starts.append(at)
      pieces.append(ids)
      at += len(ids)
      if document.ends:
        pieces.append(eot)
        at += 1
    ids = np.concatenate(pieces)
    record["max_token"] = max(record["max_token"], int(ids.max()))
    tokens.append(ids)
    offsets.append(np.array(starts, np.int64))
  record |= {"tokens": tokens.count, "documents": offsets.count}
  record |= {"sha256": tokens.close(), "offsets_sha256": offsets.close()}
  write_json(aside / f"shard-{i:05d}.json", record)
  return record


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
  """Documents in groups of about AT_ONCE bytes."""
  group: list[Document] = []
  size = 0
  for document in documents:
    group.append(document)
    size += len(document.data)
    if size >= AT_ONCE:
      yield group
      group, size = [], 0
  if group:
    yield group


def _encode(tokenizer, batch: list[Document]):
  """(ids of each document, bytes of text encoded, documents not UTF-8)."""
  if tokenizer.kind == "bytes":  # takes any bytes as they are
    data = [d.data for d in batch]
    encoded = [tokenizer.encode_bytes(d) for d in data]
    return encoded, sum(map(len, data)), 0
  texts, size, replaced = [], 0, 0
  for document in batch:
    try:
      text = document.data.decode("utf-8")
      size += len(document.data)
    except UnicodeDecodeError:
      text = document.data.decode("utf-8", "replace")
      size += len(text.encode("utf-8"))
      replaced += 1
    texts.append(text)
  return tokenizer.encode_documents(texts), size, replaced


def _manifest(records, source, split, tokenizer) -> dict:
  keys = ("tokens", "documents", "sha256", "offsets_sha256")
  shards = [{key: record[key] for key in keys} for record in records]
  dtype = token_dtype(tokenizer.vocab).str
  tokens = sum(s["tokens"] for s in shards)
  bytes_ = sum(r["bytes"] for r in records)
  return {
    "format": FORMAT,
    # A file name may be no text at all.
    "name": source.name.encode("utf-8", "replace").decode(),
    "split": split,
    "source": source.fingerprint,
    "tokenizer": {
      "kind": tokenizer.kind,
      "name": tokenizer.name,
      "vocab": tokenizer.vocab,
      "eot": tokenizer.eot,
      "fingerprint": tokenizer.fingerprint,
    },
    "dtype": dtype,
    "tokens": tokens,
    "documents": sum(s["documents"] for s in shards),
    "bytes": bytes_,
    "bytes_per_token": round(bytes_ / max(tokens - 1, 1), 4),
    "replaced": sum(r["replaced"] for r in records),
    "max_token": max((r["max_token"] for r in records), default=0),
    "fingerprint": store_fingerprint(tokenizer.fingerprint, dtype, shards),
    "yardsticks": {},
    "shards": shards,
  }


def _yardsticks(source, split: str, jobs: list[Job]) -> dict:
  """What gzip and xz need for the same text, in bits per byte.

  `bytes` says how much of the text they were given: its first 8 MB at most.
  """
  text = b""
  for job in jobs:
    for document in source.read(job, split):
      text += document.data
      if len(text) >= YARDSTICK:
        break
    if len(text) >= YARDSTICK:
      break
  text = text[:YARDSTICK]
  bits = 8 / len(text)
  return {
    "gzip": round(len(gzip.compress(text, 9, mtime=0)) * bits, 4),
    "xz": round(len(lzma.compress(text, preset=6)) * bits, 4),
    "bytes": len(text),
  }
