"""The token store: the same bytes however made, and damage is refused."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import time

import numpy as np
import pytest

from aigc_jax import data
from aigc_jax.data import writer
from aigc_jax.data.arrays import ArrayFile
from aigc_jax.data.columns import read_manifest as columns_manifest
from aigc_jax.data.sources import open_source
from aigc_jax.data.store import read_manifest as store_manifest
from aigc_jax.data.store import seal
from aigc_jax.data.tokenizers import Bytes
from aigc_jax.errors import BadData, StorageFailure
from tests.data.texts import prose, settings, text_source

SPLIT = "train"


def quiet(text):
  """Says nothing."""


def source_of(path, root, validation=0.1):
  return open_source(text_source(path), validation=validation, root=root)


def write(folder, source, tokenizer=None, split=SPLIT, workers=0, **changes):
  tokenizer = tokenizer or Bytes()
  return writer.write(
    folder, source, split, tokenizer, workers=workers, say=quiet, **changes
  )


def content(folder) -> dict[str, bytes]:
  return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.fixture
def many_jobs(monkeypatch):
  """Shards of some kB, so that small texts have many."""
  monkeypatch.setattr("aigc_jax.data.files.job_size", lambda total: 2000)


@pytest.fixture
def store(shelf, tmp_path, many_jobs):
  return write(tmp_path / "store", source_of(shelf, tmp_path))


def stream_of(store) -> np.ndarray:
  return store.read(0, store.tokens)


def test_a_store_is_all_documents_between_ends_of_text(store, shelf, tmp_path):
  source = source_of(shelf, tmp_path)
  documents: dict[str, bytes] = {}
  for job in source.jobs(SPLIT):
    for d in source.read(job, SPLIT):
      documents[d.id] = documents.get(d.id, b"") + d.data
  expected = [256]
  for text in documents.values():
    expected += [*text, 256]
  assert stream_of(store).tolist() == expected
  m = store.manifest
  assert m["documents"] == len(documents)
  assert m["bytes"] == sum(map(len, documents.values()))
  assert (m["tokens"], m["max_token"]) == (len(expected), 256)
  count = len(m["shards"])
  assert count > 5
  names = [
    f"{x}-{i:05d}.npy" for x in ("offsets", "tokens") for i in range(count)
  ]
  assert sorted(content(store.folder)) == ["manifest.json", *names]
  for i, text in enumerate(documents.values()):
    assert store.document(i).tolist() == list(text)


@pytest.mark.parametrize("length", [1, 7, 64, 5000])
def test_windows_overlap_by_one_token_and_cross_shards(store, length):
  whole = stream_of(store)
  count = store.windows(length)
  assert count == (len(whole) - 1) // length
  for i in {0, 1, count // 2, count - 1}:
    expected = whole[i * length : i * length + length + 1]
    assert np.array_equal(store.window(i, length), expected)
  numbers = np.arange(count)[::-3]
  found = store.gather(numbers, length)
  for row, i in zip(found, numbers, strict=True):
    assert np.array_equal(row, store.window(int(i), length))


@pytest.mark.slow
def test_the_number_of_workers_does_not_change_a_byte(
  shelf, tmp_path, many_jobs, trained
):
  source = source_of(shelf, tmp_path)
  stores = [
    write(tmp_path / f"s{n}", source, trained, workers=n) for n in (0, 2)
  ]
  assert content(stores[0].folder) == content(stores[1].folder)
  text = trained.decode_bytes(stream_of(stores[0]))
  assert len(text) == stores[0].bytes


class Killed(BaseException):
  """Stands for a kill: nothing may catch it."""


@pytest.mark.parametrize("after", [0, 1, 4])
def test_an_interrupted_preparation_goes_on_to_the_same_bytes(
  after, shelf, store, tmp_path, many_jobs
):
  folder = tmp_path / "again"
  source = source_of(shelf, tmp_path)
  calls = []

  def progress(done, total):
    calls.append(done)
    if len(calls) > after + 1:
      raise Killed

  with pytest.raises(Killed):
    write(folder, source, progress=progress)
  assert not folder.exists()
  kept = content(tmp_path / "again.building")
  assert sum(name.startswith("shard-") for name in kept) == after + 1
  seen = []
  (tmp_path / "again.building" / "tokens-00099.npy.dead.1").write_text("half")
  write(folder, source, progress=lambda done, total: seen.append((done, total)))
  assert seen[0][0] > 0 and seen[-1][0] == seen[-1][1]
  assert content(folder) == content(store.folder)


def prepare_for_ever(folder, path, root):
  """A builder that is slow enough to be killed in the middle of a shard."""
  from aigc_jax.data import files

  files.job_size = lambda total: 2000
  real = writer.write_json

  def slow(*args):
    time.sleep(0.05)
    real(*args)

  writer.write_json = slow
  write(folder, source_of(path, root))


def test_a_killed_process_leaves_what_the_next_one_finishes(
  shelf, store, tmp_path, many_jobs
):
  folder = tmp_path / "killed"
  context = multiprocessing.get_context("spawn")
  process = context.Process(
    target=prepare_for_ever, args=(folder, shelf, tmp_path)
  )
  process.start()
  building = tmp_path / "killed.building"
  deadline = time.monotonic() + 60
  while not list(building.glob("shard-*.json")):
    assert time.monotonic() < deadline
    time.sleep(0.01)
  os.kill(process.pid, signal.SIGKILL)
  process.join()
  assert not folder.exists() and building.is_dir()
  write(folder, source_of(shelf, tmp_path))
  found = content(folder)
  expected = content(store.folder)
  assert {k: found[k] for k in expected} == expected
  left = set(found) - set(expected)  # half-written files of the dead process
  assert not left, left


def test_a_damaged_shard_is_made_again(shelf, store, tmp_path, many_jobs):
  folder = tmp_path / "again"
  building = tmp_path / "again.building"
  source = source_of(shelf, tmp_path)

  def stop(done, total):
    if done == total:
      raise Killed

  with pytest.raises(Killed):
    write(folder, source, progress=stop)
  shard = building / "tokens-00002.npy"
  data_ = bytearray(shard.read_bytes())
  data_[-1] ^= 1
  shard.write_bytes(data_)
  (building / "shard-00001.json").write_text("{")
  write(folder, source)
  assert content(folder) == content(store.folder)


def test_what_another_plan_left_is_thrown_away(
  shelf, store, tmp_path, many_jobs
):
  building = tmp_path / "again.building"
  shutil.copytree(store.folder, building)
  (building / "plan.json").write_text('{"plan": "another"}')
  write(tmp_path / "again", source_of(shelf, tmp_path))
  assert content(tmp_path / "again") == content(store.folder)


def test_two_builders_at_once_make_one_store(shelf, store, tmp_path, many_jobs):
  import threading

  folder = tmp_path / "both"
  found, said = [], []

  def build():
    source = source_of(shelf, tmp_path)
    made = writer.write(
      folder, source, SPLIT, Bytes(), workers=0, say=said.append
    )
    found.append(made.fingerprint)

  threads = [threading.Thread(target=build) for _ in range(3)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert found == [store.fingerprint] * 3
  assert content(folder) == content(store.folder)
  assert any("waiting" in text for text in said)


def test_builders_without_locks_still_make_one_store(
  shelf, store, tmp_path, many_jobs, monkeypatch
):
  def no_locks(*args):
    raise OSError("no locks on this file system")

  monkeypatch.setattr("fcntl.flock", no_locks)
  folder = tmp_path / "both"
  source = source_of(shelf, tmp_path)

  def other(done, total):
    if done == total:  # another builder is first at the very end
      shutil.copytree(store.folder, folder)

  assert write(folder, source, progress=other).fingerprint == store.fingerprint


def test_a_store_that_is_there_is_not_made_again(store, shelf, tmp_path):
  before = (store.folder / "manifest.json").stat().st_mtime_ns
  source = source_of(shelf, tmp_path)
  source.jobs = None  # would fail if it were asked
  assert write(store.folder, source).fingerprint == store.fingerprint
  assert (store.folder / "manifest.json").stat().st_mtime_ns == before


def test_a_damaged_store_is_refused(store):
  shard = store.folder / "tokens-00001.npy"
  good = shard.read_bytes()
  shard.write_bytes(good[:-2])
  with pytest.raises(BadData, match="tokens-00001.*incomplete or damaged"):
    data.Store(store.folder)
  shard.unlink()
  with pytest.raises(BadData, match="tokens-00001"):
    data.Store(store.folder)
  bad = bytearray(good)
  bad[-2] ^= 1
  shard.write_bytes(bad)
  data.Store(store.folder)  # sizes are right; content is checked when read
  with pytest.raises(BadData, match="not the bytes that the manifest names"):
    data.Store(store.folder, verify=True)
  shard.write_bytes(good)
  data.Store(store.folder, verify=True)


def test_a_header_that_is_no_plain_array_is_refused(store):
  shard = store.folder / "tokens-00000.npy"
  good = shard.read_bytes()
  for old, new in (
    (b"'<u2'", b"'|O' "),
    (b"'<u2'", b"'<i2'"),
    (b"NUMPY", b"xxxxx"),
  ):
    assert old in good
    shard.write_bytes(good.replace(old, new, 1))
    with pytest.raises(BadData, match="tokens-00000"):
      data.Store(store.folder).read(0, 4)


def rewrite(folder, change: dict, sealed: bool) -> None:
  """Changes a manifest; `sealed` as somebody would who knows its seal."""
  path = folder / "manifest.json"
  found = json.loads(path.read_text()) | change
  if sealed:
    found["seal"] = seal(found)
  path.write_text(json.dumps(found))


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(format=0), "format 0, expected 2"),
    (dict(tokens=5), "contradicts itself"),
    (dict(documents=5), "contradicts itself"),
    (dict(max_token=257), "contradicts itself"),
    (dict(dtype="<u4"), "contradicts itself"),
    (dict(fingerprint="0" * 64), "contradicts itself"),
    (dict(shards=3), "shards: expected a list, got 3"),
    (dict(bytes=-1), "bytes: expected a whole number from 0"),
  ],
)
def test_a_changed_manifest_is_refused(store, change, message):
  rewrite(store.folder, change, sealed=True)
  with pytest.raises(BadData, match=f"{message}.*prepare it again"):
    data.Store(store.folder)


@pytest.mark.parametrize(
  "change",
  [
    dict(bytes=1),
    dict(replaced=1),
    dict(yardsticks=dict(gzip=1.0, xz=1.0, bytes=1)),
  ],
)
def test_all_of_a_manifest_is_sealed(store, change):
  """Twice the bytes would halve bits per byte."""
  rewrite(store.folder, change, sealed=False)
  with pytest.raises(BadData, match="seal is another.*prepare it again"):
    data.Store(store.folder)


def flip(path, byte: int) -> None:
  """Flips a bit, as a failing disk does: without a trace in the times."""
  status = path.stat()
  content = bytearray(path.read_bytes())
  content[byte] ^= 1
  path.write_bytes(content)
  os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("large", [False, True])
def test_a_flipped_bit_is_never_read(store, large, monkeypatch):
  if large:
    monkeypatch.setattr("aigc_jax.data.verified.ALWAYS", 0)
  data.Store(store.folder).check()
  for name in ("tokens-00000.npy", "tokens-00003.npy"):
    for byte in (130, -1):
      flip(store.folder / name, byte)
      again = data.Store(store.folder)
      with pytest.raises(BadData, match=f"{name}.*not the bytes"):
        again.check()
      with pytest.raises(BadData, match=f"{name}.*not the bytes"):
        again.gather(np.arange(again.windows(16)), 16)
      flip(store.folder / name, byte)


def test_a_large_store_is_compared_once(store, monkeypatch):
  monkeypatch.setattr("aigc_jax.data.verified.ALWAYS", 0)
  read, said = [], []
  blocks = ArrayFile.blocks

  def counted(self):
    read.append(self.path.name)
    return blocks(self)

  monkeypatch.setattr(ArrayFile, "blocks", counted)
  first = data.Store(store.folder)
  first.check(said.append)
  assert len(read) == 2 * len(store.manifest["shards"])
  assert "checking" in said[0] and str(store.folder) in said[0]
  read.clear()
  second = data.Store(store.folder)
  second.check(said.append)
  assert np.array_equal(stream_of(second), stream_of(store)) and len(said) == 1
  read.clear()
  stream_of(data.Store(store.folder))
  assert not read
  os.utime(store.folder / "tokens-00002.npy")
  data.Store(store.folder).check()
  assert read == ["tokens-00002.npy"]
  read.clear()
  data.Store(store.folder).verify()
  assert len(read) == 2 * len(store.manifest["shards"])
  for nonsense in ("{", '{"seal": 1, "files": {}}', '{"files": [1]}'):
    (store.folder.parent / "store.checked").write_text(nonsense)
    read.clear()
    data.Store(store.folder).check()
    assert len(read) == 2 * len(store.manifest["shards"])


def test_a_file_that_becomes_shorter_while_it_is_open_is_named(store):
  """Mapped, it would end the process with SIGBUS."""
  store.check()
  path = store.folder / "tokens-00001.npy"
  os.truncate(path, 200)
  with pytest.raises(BadData, match="tokens-00001.npy: ends at byte 200"):
    stream_of(store)


def test_an_id_beyond_the_vocabulary_never_leaves_a_store(store):
  """On the device it would silently read another row."""
  store.check()
  with open(store.folder / "tokens-00000.npy", "r+b") as file:
    file.seek(140)
    file.write(b"\xff\xff")
  with pytest.raises(BadData, match="token id 65535, expected 256 at most"):
    store.gather(np.arange(4), 16)


def test_more_shards_than_files_may_be_open(store, monkeypatch):
  monkeypatch.setattr("aigc_jax.data.verified.most_open", lambda: 2)
  found = data.Store(store.folder)
  assert np.array_equal(stream_of(found), stream_of(store))
  assert found._open.cache_info().currsize == 2


def test_what_is_no_store_is_refused(tmp_path):
  with pytest.raises(BadData, match="no token store"):
    data.Store(tmp_path / "nowhere")
  (tmp_path / "manifest.json").write_text("[1")
  with pytest.raises(BadData, match="not JSON"):
    data.Store(tmp_path)


def test_numpy_reads_what_was_written(store):
  found = np.load(store.folder / "tokens-00000.npy", allow_pickle=False)
  assert found.dtype == np.dtype("<u2")
  assert np.array_equal(found, store.read(0, len(found)))


def test_a_large_vocabulary_takes_four_bytes(book, tmp_path):
  class Wide(Bytes):
    vocab = 1 << 17
    eot = (1 << 17) - 1

  store = write(tmp_path / "wide", source_of(book, tmp_path), Wide())
  assert store.dtype == np.dtype("<u4")
  assert store.read(0, 1)[0] == store.max_token == Wide.eot


def test_text_that_is_not_utf8_is_kept_in_bytes_and_counted_otherwise(
  tmp_path, trained
):
  raw = "naïve\n".encode("latin-1") * 90 + b"end\xff\x01\n"
  (tmp_path / "x.txt").write_bytes(raw)
  source = source_of(tmp_path / "x.txt", tmp_path, validation=0.0)
  exact = write(tmp_path / "bytes", source)
  assert Bytes().decode_bytes(stream_of(exact)) == raw
  assert exact.manifest["replaced"] == 0
  near = write(tmp_path / "pieces", source, trained)
  text = raw.decode("utf-8", "replace")
  assert trained.decode(stream_of(near)) == text
  assert near.manifest["replaced"] == 1
  assert near.bytes == len(text.encode())


def test_yardsticks_are_those_of_the_held_out_bytes(book, tmp_path):
  import gzip
  import lzma

  source = source_of(book, tmp_path)
  store = write(tmp_path / "held", source, split="validation")
  raw = Bytes().decode_bytes(stream_of(store))
  y = store.manifest["yardsticks"]
  assert y["bytes"] == len(raw) == store.bytes
  assert y["gzip"] == round(8 * len(gzip.compress(raw, 9)) / len(raw), 4)
  assert y["xz"] == round(8 * len(lzma.compress(raw)) / len(raw), 4)


def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path):
  path = tmp_path / "x.txt"
  path.write_text(prose(1, 50))
  source = source_of(path, tmp_path)
  assert source.fingerprint

  def change(done, total):
    os.utime(path, (1, 1))

  with pytest.raises(BadData, match="changed while it was read"):
    write(tmp_path / "s", source, progress=change)


def test_a_place_that_cannot_be_written_is_a_storage_failure(book, tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(StorageFailure, match="data.root"):
    data.prepare(
      **settings(book, tmp_path / "file" / "root"), splits=(None,), workers=0
    )


def test_a_bad_source_in_a_worker_is_the_same_error(tmp_path, many_jobs):
  lines = ['{"text": "good row"}'] * 900 + ["bad"]
  (tmp_path / "x.jsonl").write_text("\n".join(lines))
  source = source_of(tmp_path / "x.jsonl", tmp_path)
  with pytest.raises(BadData, match="line 901: not JSON"):
    write(tmp_path / "s", source, workers=2)


@pytest.mark.parametrize("read", [store_manifest, columns_manifest])
def test_a_store_of_somebody_else_is_none_that_can_be_read(
  read, tmp_path, monkeypatch
):
  """Others below the same root are looked through all the same."""
  with pytest.raises(BadData, match="there is no .*store.* here"):
    read(tmp_path)
  stat, path = os.stat, tmp_path / "manifest.json"

  def refusing(where, **how):
    if os.fspath(where) == str(path):
      raise PermissionError(errno.EACCES, "Permission denied", str(path))
    return stat(where, **how)

  monkeypatch.setattr(os, "stat", refusing)
  with pytest.raises(BadData, match="cannot be read: Permission denied"):
    read(tmp_path)
