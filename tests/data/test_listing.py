"""What a path holds: told by its content, refused by name, ways out that work.

Every way out that a message names is tried here.
"""

import errno
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest

from aigc_jax import data
from aigc_jax.data import listing, pair_sources
from aigc_jax.data.captions import sources as captioned
from aigc_jax.data.images import sources as pictured
from aigc_jax.data.sound import sources as spoken
from aigc_jax.data.sources import open_source
from aigc_jax.errors import BadConfig, BadData
from tests.data.texts import SHAPE, prose, settings, text_source


def source_at(path, tmp_path, validation=0.0, **changes):
  spec = text_source(path, **changes)
  return open_source(spec, validation=validation, root=tmp_path / "root")


def texts(source, split="train") -> list[str]:
  found = [d for job in source.jobs(split) for d in source.read(job, split)]
  return [d.data.decode() for d in found]


RECORDS = [{"text": f"row {i} é", "n": i} for i in range(5)]
TEXTS = [row["text"] for row in RECORDS]
JSON = {
  "lines": "".join(json.dumps(row) + "\n" for row in RECORDS),
  "lines after empty ones": "\n\n" + "\n".join(map(json.dumps, RECORDS)),
  "an array on one line": json.dumps(RECORDS),
  "an indented array": json.dumps(RECORDS, indent=2),
  "a byte order mark": "\ufeff" + json.dumps(RECORDS),
}


@pytest.mark.parametrize("what", JSON)
def test_a_json_file_of_records_is_read_as_records(what, tmp_path):
  folder = tmp_path / "folder"
  folder.mkdir()
  (folder / "x.json").write_text(JSON[what])
  assert texts(source_at(folder / "x.json", tmp_path)) == TEXTS
  (folder / "package.json").write_text('{\n "name": "p"\n}\n')
  (folder / "list.json").write_text('[{"name": "no text"}]')
  found = texts(source_at(folder, tmp_path))
  assert sorted(found) == sorted(
    [*TEXTS, '{\n "name": "p"\n}\n', '[{"name": "no text"}]']
  )
  assert texts(source_at(folder / "*x.json", tmp_path)) == TEXTS


def test_a_json_file_whose_first_record_is_long_is_still_records(tmp_path):
  rows = [{"text": "long " * 50_000}, *RECORDS]
  (tmp_path / "x.json").write_text(json.dumps(rows, indent=1))
  assert texts(source_at(tmp_path / "x.json", tmp_path))[1:] == TEXTS


def test_a_named_json_file_without_records_says_how_to_read_it(tmp_path):
  path = tmp_path / "x.json"
  path.write_text(json.dumps({"data": RECORDS}, indent=1))
  with pytest.raises(BadData, match=r"jq -c.*rename it to .txt"):
    source_at(path, tmp_path).jobs("train")
  (tmp_path / "records.jsonl").write_text(JSON["lines"])  # as jq writes them
  assert texts(source_at(tmp_path / "records.jsonl", tmp_path)) == TEXTS
  renamed = path.rename(tmp_path / "x.txt")
  assert texts(source_at(renamed, tmp_path)) == [renamed.read_text()]


@pytest.mark.parametrize(
  "text, message",
  [
    ('[{"text": "a"}, 3]', "entry 1: expected an object"),
    ('[{"text": "a"},', "x.json: not JSON"),
    ('["a", "b"]', "entry 0: expected an object"),
    ('[{"title": "a"}]', "entry 0: no field 'text'.*its fields: title"),
    ("[" * 200_000, "x.json: not JSON"),
  ],
)
def test_a_bad_entry_of_an_array_is_named(text, message, tmp_path):
  (tmp_path / "x.json").write_text(text)
  with pytest.raises(BadData, match=message):
    texts(source_at(tmp_path / "x.json", tmp_path))


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-16-be",
                                   "utf-32"])  # fmt: skip
@pytest.mark.parametrize("name", ["x.txt", "x.jsonl", "x.json"])
def test_utf16_is_refused_and_converted_by_the_line_given(
  codec, name, tmp_path
):
  path = tmp_path / name
  text = "Some naïve text\n" if name == "x.txt" else JSON["lines"]
  path.write_bytes(text.encode(codec))
  if codec == "utf-32" and name != "x.txt":
    assert path.read_bytes()[:4] == b"\xff\xfe\0\0"
  with pytest.raises(BadData, match="iconv") as refused:
    texts(source_at(path, tmp_path))
  if shutil.which("iconv"):
    line = str(refused.value).partition("convert it: ")[2]
    subprocess.run(line, shell=True, check=True)
    found = texts(source_at(f"{path}.utf8{path.suffix}", tmp_path))
    assert [x.lstrip("\ufeff") for x in found] == (
      [text] if name == "x.txt" else TEXTS
    )


@pytest.mark.skipif(not shutil.which("iconv"), reason="iconv is not here")
def test_the_line_that_converts_a_file_can_be_typed_whatever_its_name(tmp_path):
  path = tmp_path / "it's $(touch bad) `x`.txt"
  path.write_bytes("one line\n".encode("utf-16"))
  with pytest.raises(BadData, match="iconv") as refused:
    texts(source_at(path, tmp_path))
  line = str(refused.value).partition("convert it: ")[2]
  subprocess.run(line, shell=True, check=True, cwd=tmp_path)
  made = tmp_path / f"{path.name}.utf8.txt"
  assert made.read_text().lstrip("\ufeff") == "one line\n"
  assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(
  "content, what",
  [
    (b"\x7fELF\x02\0\0 code", "binary \\(byte 5 is 0\\)"),
    (b"%PDF-1.7 text", "a PDF file"),
    (b"PK\x03\x04 words", "a zip file"),
    (b"\x1f\x8b packed", "a gzip file"),
  ],
)
def test_a_named_file_that_is_no_text_is_refused(content, what, tmp_path):
  (tmp_path / "x.txt").write_bytes(content)
  with pytest.raises(BadData, match=f"{what}.*column of bytes"):
    source_at(tmp_path / "x.txt", tmp_path).jobs("train")


def test_raw_bytes_are_trained_on_from_a_parquet_file(tmp_path):
  parquet = pytest.importorskip("pyarrow.parquet")
  from pyarrow import Table

  raw = b"\x7fELF\x02\0\0\xff"
  parquet.write_table(
    Table.from_pylist([{"text": raw}]), tmp_path / "x.parquet"
  )
  source = source_at(tmp_path / "x.parquet", tmp_path)
  (job,) = source.jobs("train")
  assert [d.data for d in source.read(job, "train")] == [raw]


@pytest.mark.parametrize("where", ["gs://bucket/x", "s3://b/y/*.txt",
                                   "https://host/x.txt"])  # fmt: skip
def test_a_bucket_says_what_is_supported(where, tmp_path):
  scheme = where.partition(":")[0]
  with pytest.raises(BadConfig, match="a disk or mounted file system") as e:
    source_at(where, tmp_path)
  assert {"gs": "gcloud", "s3": "aws s3", "https": "curl"}[scheme] in str(e)
  for key in ("root", "tokenizer"):
    with pytest.raises(BadConfig, match=f"data.{key}=.*only files on a disk"):
      data.find_tokenizer(
        **settings(tmp_path, tmp_path, tokenizer="sentencepiece") | {key: where}
      )


def test_runs_and_stores_below_the_path_are_no_text(tmp_path):
  """A run would train on what it says, and find other data when continued."""
  folder = tmp_path / "texts"
  for name in ("run/checkpoints/4", "started", "root/stores/x"):
    (folder / name).mkdir(parents=True)
  (folder / "a.txt").write_text("text\n" * 9)
  for name in ("run/config.json", "run/metrics.jsonl", "started/LOCK",
               "run/checkpoints/4/manifest.json",
               "root/stores/x/manifest.json"):  # fmt: skip
    (folder / name).write_text("{}")
  for path in (folder, folder / "**" / "*"):
    spec = text_source(path)
    source = open_source(spec, validation=0.0, root=folder / "root")
    assert texts(source) == ["text\n" * 9]
    assert "2 work directory (run, started)" in source.left_out
    assert "1 data.root (root)" in source.left_out


def lines(path, count: int):
  rows = [json.dumps({"text": f"row {i} of a few"}) for i in range(count)]
  path.write_text("\n".join(rows) + "\n")
  return path


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
@pytest.mark.parametrize("count", [2, 3, 5, 20])
@pytest.mark.parametrize("share", [1e-9, 0.02, 0.5, 0.99])
def test_a_few_rows_are_divided_whatever_the_share(
  name, count, share, tmp_path
):
  path = lines(tmp_path / name, count)
  source = source_at(path, tmp_path, validation=share)
  train, held = (texts(source, split) for split in source.splits)
  assert train and held and not set(train) & set(held)
  assert len(train) + len(held) == count
  assert sorted(texts(source, "all")) == sorted(train + held)


def prepare(path, root, **changes):
  made = settings(path, root) | changes
  splits = (None, "validation") if made["validation"] else (None,)
  return data.prepare(**made, splits=splits, workers=0)


def test_what_is_advised_for_an_empty_split_works(tmp_path, monkeypatch):
  monkeypatch.setattr("aigc_jax.data.files.SMALL", 0)  # rows are not counted
  for count, share in ((30, 1e-9), (30, 0.9999999), (3, 1e-3), (2, 0.9999999)):
    path = lines(tmp_path / f"{count}-{share}.jsonl", count)
    with pytest.raises(BadData, match="has no document in its") as refused:
      prepare(path, tmp_path / "root", validation=share)
    (advice,) = re.findall(
      r"--config.data.validation=(\S+)", str(refused.value)
    )
    train, held = prepare(path, tmp_path / "root", validation=float(advice))
    assert train.documents + held.documents == count


@pytest.mark.parametrize("share", [1e-9, 0.9999999])
def test_one_document_is_held_out_or_trained_on(share, tmp_path):
  path = lines(tmp_path / "x.jsonl", 1)
  with pytest.raises(BadData, match="one document at most") as refused:
    prepare(path, tmp_path / "root", validation=share)
  assert "--config.data.validation=0" in str(refused.value)
  (store,) = prepare(path, tmp_path / "root", validation=0.0)
  assert store.documents == 1


def test_held_out_text_of_which_nothing_is_held_out(tmp_path):
  path = tmp_path / "x.txt"
  path.write_text(prose(1, 60))
  with pytest.raises(BadData, match="--config.data.validation=0.05"):
    data.build_eval(
      **settings(path, tmp_path / "root", validation=0.0), **SHAPE,
      split="validation",
    )  # fmt: skip
  whole = data.build_eval(
    **settings(path, tmp_path / "root", validation=0.0), **SHAPE, split="all"
  )
  assert whole.counts["bytes"] == path.stat().st_size
  assert set(whole.yardsticks) == {"gzip", "xz"}
  assert np.isfinite(whole.counts["tokens"])


WALKED = {
  "sound": lambda top: spoken.open_source(
    dict(kind="folder", path=top), spoken.How(0.0, "file", 0.0, "mix")
  ),
  "librispeech": lambda top: spoken.open_source(
    dict(kind="librispeech", path=top), spoken.How(0.0, "file", 0.0, "mix")
  ),
  "captions": lambda top: pictured.open_source(
    dict(kind="folder", path=top, split="all"), 0.0, 0.0, captioned.SOURCES
  ),
  "images": lambda top: pictured.open_source(
    dict(kind="folder", path=top, split="all"), 0.0, 0.0
  ),
}


def tree_at(top) -> str:
  """A label, and in it two folders, of which one has a file of each kind."""
  (top / "a" / "in").mkdir(parents=True)
  (top / "a" / "other").mkdir()
  for name in ("x.wav", "x.txt", "x.ppm", "x.jsonl"):
    (top / "a" / "in" / name).write_text("{}")
  return str(top)


def read(kind: str, top: str) -> None:
  if kind == "pairs":
    list(pair_sources.read_pairs(
      dict(kind="json", path=top, source="a", target="b")
    ))  # fmt: skip
  else:
    _ = WALKED[kind](top).fingerprint


@pytest.mark.parametrize("kind", [*WALKED, "pairs"])
def test_a_folder_that_cannot_be_read_is_named_not_passed_over(
  kind, tmp_path, monkeypatch
):
  top = tree_at(tmp_path / "data")
  closed = os.path.join(top, "a", "other")
  scan = os.scandir

  def refusing(path):
    if os.fspath(path) == closed:
      raise PermissionError(errno.EACCES, "Permission denied", closed)
    return scan(path)

  monkeypatch.setattr(os, "scandir", refusing)
  with pytest.raises(BadData, match="other: cannot be read: Permission denied"):
    read(kind, top)


@pytest.mark.parametrize("kind", [*WALKED, "pairs"])
def test_a_link_to_a_folder_is_named_not_passed_over(kind, tmp_path):
  top = tree_at(tmp_path / "data")
  (tmp_path / "data" / "a" / "link").symlink_to(tmp_path)
  with pytest.raises(BadData, match="link is a link to .*a folder elsewhere"):
    read(kind, top)


def test_files_below_come_in_order_and_hidden_ones_when_asked_for(tmp_path):
  for name in ("b/1", "a/2", "a/.3", ".c/4", "5"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()

  def found(**how) -> list[str]:
    paths = listing.below(tmp_path, **how)
    return [path.relative_to(tmp_path).as_posix() for path in paths]

  assert found() == ["5", "a/2", "b/1"]
  assert found(hidden=True) == ["5", ".c/4", "a/.3", "a/2", "b/1"]


@pytest.fixture
def locked(tmp_path, monkeypatch):
  """A folder that lists what is in it and lets nobody in, root neither."""
  folder = tmp_path / "locked"
  folder.mkdir()
  (folder / "a.txt").write_text("words\n" * 50)
  (folder / "b.png").write_bytes(b"x")
  access, stat = os.access, os.stat

  def barred(path, *args, **keys):
    if os.fspath(path).startswith(f"{folder}/"):
      raise PermissionError(errno.EACCES, "Permission denied", str(path))
    return stat(path, *args, **keys)

  monkeypatch.setattr(
    os, "access", lambda p, mode: access(p, mode) and str(p) != str(folder)
  )
  monkeypatch.setattr(os, "stat", barred)
  return folder


def test_a_folder_that_cannot_be_entered_is_told_as_such(locked, tmp_path):
  with pytest.raises(BadData, match="a.txt: cannot be read: Permission denied"):
    texts(source_at(locked, tmp_path))
  captions = captioned.Folder(str(locked), "train", 0.0, 0.0)
  with pytest.raises(BadData, match="locked: cannot be entered: Permission"):
    captions.jobs("train")
  with pytest.raises(BadData, match="data.path=.*cannot be read: Permission"):
    listing.check_there(str(locked / "a.txt"), "data.path")
