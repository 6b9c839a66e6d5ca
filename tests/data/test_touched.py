"""Sources whose files are touched, and put back, while a store is made of them.

The store holds what the source was when it was listed, or there is none.
"""

import importlib.util
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

pytest.importorskip("PIL", reason="needs aigc_jax[images]")

from aigc_jax.data import (  # noqa: E402
  columns,
  files,
  listing,
  pair_sources,
  preparation,
  rows,
  sentences,
  writer,
)
from aigc_jax.data.captions import sources as captions  # noqa: E402
from aigc_jax.data.images import sources as images  # noqa: E402
from aigc_jax.data.sound import sources as sound  # noqa: E402
from aigc_jax.data.sound.decoding import wav  # noqa: E402
from aigc_jax.data.sources import open_source  # noqa: E402
from aigc_jax.data.tokenizers import Bytes  # noqa: E402
from aigc_jax.errors import BadData  # noqa: E402
from tests.data.test_captions import shade  # noqa: E402
from tests.data.test_sound_data import tone  # noqa: E402


def silent(text) -> None:
  """Says nothing."""


class Kind(NamedTuple):
  """A kind of source: writes its files, opens it."""

  fill: Callable[[Path], None]
  opened: Callable
  ends: str  # of the files that are touched


def labelled(top: Path) -> None:
  for label in "ab":
    (top / label).mkdir(parents=True)
    for i in range(2):
      (top / label / f"{i}.ppm").write_bytes(shade(ord(label) + i))


def captioned(top: Path) -> None:
  top.mkdir()
  for i in range(4):
    (top / f"{i}.ppm").write_bytes(shade(i))
    (top / f"{i}.txt").write_text(f"shade {i}\n")


def spoken(top: Path) -> None:
  top.mkdir()
  for i in range(4):
    (top / f"{i}.wav").write_bytes(wav(tone(800, i)[:, 0]))
    (top / f"{i}.txt").write_text(f"word {i}\n")


def written(top: Path) -> None:
  top.mkdir()
  for i in range(4):
    (top / f"{i}.txt").write_text(f"text {i}\n" * 9)


def text_at(top: Path):
  spec = dict(kind="text", path=str(top), split="train", field="text")
  return open_source(spec, validation=0.0, root=top.parent / "root")


KINDS = {
  "images": Kind(
    labelled, lambda top: images.Folder(top, "train", 0.0, 0.0), ".ppm"
  ),
  "captions": Kind(
    captioned, lambda top: captions.Folder(top, "train", 0.0, 0.0), ".ppm"
  ),
  "sound": Kind(
    spoken,
    lambda top: sound.Folder(top, sound.How(0.0, "file", 0.0, "mean")),
    ".wav",
  ),
  "text": Kind(written, text_at, ".txt"),
}


def made(folder: Path, source, split: str = "train"):
  """The store of a source."""
  if isinstance(source, files.Files):
    return writer.write(folder, source, split, Bytes(), workers=0, say=silent)
  return columns.write(folder, source, split, say=silent)


@pytest.fixture(params=KINDS)
def given(request, tmp_path, monkeypatch):
  """(kind, folder with its files, fingerprint of their store).

  A job for each file.
  """
  for module in (images, captions, sound, files):
    monkeypatch.setattr(module, "job_size", lambda total: 1)
  kind, top = KINDS[request.param], tmp_path / "data"
  kind.fill(top)
  whole = made(tmp_path / "whole", kind.opened(top)).fingerprint
  return kind, top, whole


def after_one(source, act: Callable[[], None]) -> None:
  """`act` comes once its first job is read."""
  read, seen = source.read, []

  def hooked(job, *rest):
    if len(seen) == 1:
      act()
    seen.append(job)
    yield from read(job, *rest)

  source.read = hooked


def changing(kind, top: Path):
  """(a source whose last files change once its first is read, the way back)."""
  source, ways = kind.opened(top), []
  _ = source.fingerprint
  after_one(source, lambda: ways.append(other_bytes(top, kind.ends)))
  return source, lambda: ways[0]()


def other_bytes(top: Path, ends: str) -> Callable[[], None]:
  """Changes the last files, not their sizes; gives what puts all back."""
  before = [
    (path, path.read_bytes(), path.stat())
    for path in sorted(top.rglob(f"*{ends}"))[2:]
  ]
  for path, data, _ in before:
    path.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])

  def put_back() -> None:
    for path, data, status in before:
      path.write_bytes(data)
      os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

  return put_back


def test_what_was_read_of_changed_files_is_in_no_store_once_they_are_back(
  given, tmp_path
):
  kind, top, whole = given
  source, put_back = changing(kind, top)
  with pytest.raises(BadData, match="changed while it was read"):
    made(tmp_path / "store", source)
  put_back()
  assert made(tmp_path / "store", kind.opened(top)).fingerprint == whole


def test_files_that_were_changed_and_put_back_while_they_were_read_are_refused(
  given, tmp_path
):
  kind, top, whole = given
  source, put_back = changing(kind, top)
  unchanged = source.unchanged
  source.unchanged = lambda: (put_back(), unchanged())[1]
  with pytest.raises(BadData, match="changed while it was read"):
    made(tmp_path / "store", source)


def test_a_store_goes_on_after_a_kill_but_not_with_files_that_were_touched(
  given, tmp_path
):
  kind, top, whole = given

  def stop():
    raise KeyboardInterrupt

  put_back = other_bytes(top, kind.ends)
  put_back()
  first, put_back = changing(kind, top)
  first.unchanged = stop  # all is read, and then it is killed
  with pytest.raises(KeyboardInterrupt):
    made(tmp_path / "store", first)
  put_back()
  assert made(tmp_path / "store", kind.opened(top)).fingerprint == whole


def test_what_is_finished_is_kept_where_nobody_touched_the_files(
  given, tmp_path
):
  kind, top, whole = given
  first, again, read = kind.opened(top), kind.opened(top), []

  def stop():
    raise KeyboardInterrupt

  after_one(first, stop)
  with pytest.raises(KeyboardInterrupt):
    made(tmp_path / "store", first)
  once = again.read
  again.read = lambda job, *rest: (read.append(job), once(job, *rest))[1]
  assert made(tmp_path / "store", again).fingerprint == whole
  assert len(read) == len(again.jobs("train")) - 1


def test_files_that_go_are_bad_data_and_no_fault_of_the_place_of_the_store(
  given, tmp_path
):
  kind, top, _ = given
  away = tmp_path / "away"

  def moments():
    source = kind.opened(top)
    yield source
    _ = source.fingerprint
    yield source
    source.jobs("train")
    yield source
    after_one(source, lambda: None)
    yield source

  for count in range(1, 5):
    found = moments()
    for _ in range(count):
      source = next(found)
    if count == 4:
      after_one(source, lambda: os.rename(top, away))
    else:
      os.rename(top, away)
    with pytest.raises(BadData):
      _ = source.fingerprint
      made(tmp_path / f"store{count}", source)
    os.rename(away, top)


def test_text_that_became_longer_before_it_was_read_is_not_read_in_part(
  tmp_path,
):
  written(tmp_path / "text")
  source = text_at(tmp_path / "text")
  (tmp_path / "text/1.txt").write_text("another text, and a longer one\n" * 9)
  with pytest.raises(BadData, match="changed while it was read"):
    made(tmp_path / "store", source)
  whole = made(tmp_path / "store", text_at(tmp_path / "text"))
  ids = whole.read(0, whole.tokens).clip(0, 255)
  assert bytes(ids.tolist()).count(b"a longer one\n") == 9


def alarmed(*_):
  raise TimeoutError("it is waited for")


@pytest.mark.parametrize(
  "read",
  [
    lambda path: files._read_plain("x", path, 0, 5, True, True),
    lambda path: files._ranges("x", path, 0, 5, 1),
    lambda path: list(rows._read_lines("x", path, 0, 5, "text")),
    lambda path: list(rows._read_packed("x", path, "text")),
    lambda path: list(rows._read_array("x", path, "text")),
    lambda path: rows._place(path, 5),
    lambda path: list(pair_sources._lines(path, "a", "b")),
    listing._no_text,
    listing._records,
    pytest.param(
      rows._parquet,
      marks=pytest.mark.skipif(
        not importlib.util.find_spec("pyarrow"), reason="aigc_jax[parquet]"
      ),
    ),
  ],
)
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(read, tmp_path):
  os.mkfifo(path := tmp_path / "x.txt")
  before = signal.signal(signal.SIGALRM, alarmed)
  signal.alarm(20)
  try:
    with pytest.raises(BadData, match="x.txt is not a regular file but a pipe"):
      read(str(path))
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("given", ["images", "captions"], indirect=True)
def test_what_is_refused_leaves_nothing_that_is_half_made(given, tmp_path):
  kind, top, _ = given
  path = sorted(top.rglob("*.ppm"))[1]
  path.write_bytes(path.read_bytes()[:-9])
  for _ in range(2):
    with pytest.raises(BadData, match="damaged"):
      made(tmp_path / "store", kind.opened(top))
    assert not (tmp_path / "store.building").exists()


def test_a_tokenizer_of_text_that_changed_meanwhile_is_not_kept(
  tmp_path, monkeypatch
):
  top = tmp_path / "text"
  written(top)

  def touched(*args):
    (top / "0.txt").write_text("other text\n")
    return Bytes()

  monkeypatch.setattr(sentences, "train", touched)
  source = dict(kind="text", path=str(top), split="train", field="text")
  asked = dict(
    sources=[source], tokenizer="sentencepiece", tokenizer_vocab=300,
    validation=0.0, root=str(tmp_path / "root"), say=silent,
  )  # fmt: skip
  with pytest.raises(BadData, match="changed while it was read"):
    preparation.find_tokenizer(**asked)
  monkeypatch.setattr(sentences, "train", lambda *args: Bytes())
  assert preparation.find_tokenizer(**asked).kind == "bytes"


def test_yardsticks_are_of_the_text_that_the_store_holds(tmp_path, monkeypatch):
  top = tmp_path / "text"
  written(top)
  spec = dict(kind="text", path=str(top), split="train", field="text")
  source = open_source(spec, validation=0.5, root=tmp_path / "root")
  measured = writer._yardsticks

  def touched(*args):
    for path in top.iterdir():
      path.write_text("aaaa a\n" * 9)
    return measured(*args)

  monkeypatch.setattr(writer, "_yardsticks", touched)
  _ = source.fingerprint
  with pytest.raises(BadData, match="changed while it was read"):
    made(tmp_path / "store", source, "validation")
