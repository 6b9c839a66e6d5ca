"""Sources: what is read, what is held out, and what is refused, and how."""

import gzip
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from aigc_jax.data.corpora import CORPORA, stdlib
from aigc_jax.data.sources import open_source
from aigc_jax.errors import BadConfig, BadData
from tests.data.texts import prose, text_source


def source_at(path, tmp_path, validation=0.1, **changes):
  spec = text_source(path, **changes)
  return open_source(spec, validation=validation, root=tmp_path / "root")


def texts(source, split):
  """{id: bytes} of a split, pieces of one document joined."""
  found: dict[str, bytes] = {}
  for job in source.jobs(split):
    for document in source.read(job, split):
      assert document.starts == (document.id not in found)
      found[document.id] = found.get(document.id, b"") + document.data
  return found


def test_one_file_gives_both_splits_cut_after_a_line(book, tmp_path):
  source = source_at(book, tmp_path)
  train, held = (texts(source, s)["book.txt"] for s in source.splits)
  assert train + held == book.read_bytes()
  assert train.endswith(b"\n")
  assert 0.08 < len(held) / len(train + held) <= 0.1


@pytest.mark.parametrize("text", ["ab", "é" * 500, "🙂" * 501, "a\n" * 40])
def test_a_cut_never_divides_a_character(text, tmp_path):
  (tmp_path / "x.txt").write_text(text)
  source = source_at(tmp_path / "x.txt", tmp_path)
  parts = [b"".join(texts(source, s).values()) for s in source.splits]
  assert b"".join(parts) == text.encode()
  assert [part.decode() for part in parts]


def test_a_large_file_comes_in_pieces_that_join_to_it(tmp_path, monkeypatch):
  monkeypatch.setattr("aigc_jax.data.files.job_size", lambda total: 700)
  path = tmp_path / "x.txt"
  path.write_text(prose(5, 300) + "é" * 3000)
  source = source_at(path, tmp_path)
  assert len(source.jobs("train")) > 5
  whole = b"".join(texts(source, s)["x.txt"] for s in source.splits)
  assert whole == path.read_bytes()
  for split in source.splits:
    for job in source.jobs(split):
      for document in source.read(job, split):
        document.data.decode()  # no piece ends inside a character


def test_a_folder_is_read_to_its_bottom_without_what_is_no_text(tmp_path):
  folder = tmp_path / "folder"
  (folder / "deep" / "er").mkdir(parents=True)
  (folder / ".git").mkdir()
  (folder / "deep" / "er" / "a.py").write_text("x = 1\n" * 30)
  (folder / "b.md").write_text("words\n" * 30)
  (folder / "empty.txt").write_text("")
  (folder / "image.dat").write_bytes(b"\x89PNG\0\0\0")
  (folder / "packed.zip").write_bytes(b"PK text")
  (folder / ".git" / "config").write_text("no")
  (folder / "broken").symlink_to(folder / "nowhere")
  (folder / "linked").symlink_to(folder / "deep")
  source = source_at(folder, tmp_path)
  assert set(texts(source, "train")) == {"b.md", "deep/er/a.py"}
  for word in ("1 linked folder (linked;", "1 broken link (broken)",
               "1 empty (empty.txt)", "1 packed (packed.zip;",
               "1 binary (image.dat)"):  # fmt: skip
    assert word in source.left_out
  # What the message says of a link works.
  source = source_at(folder / "**" / "*", tmp_path)
  assert "linked/er/a.py" in texts(source, "train")


def test_a_glob_takes_what_matches(shelf, tmp_path):
  source = source_at(shelf / "**" / "1*.txt", tmp_path)
  names = set(texts(source, "train"))
  assert names and all(n.split("/")[-1].startswith("1") for n in names)
  assert source.name == shelf.name


def test_few_files_hold_out_tails_and_many_hold_out_files(tmp_path):
  few, many = tmp_path / "few", tmp_path / "many"
  for folder, count in ((few, 4), (many, 250)):
    folder.mkdir()
    for i in range(count):
      (folder / f"{i}.txt").write_text(f"line {i}\n" * 50)
  train, held = (
    texts(source_at(few, tmp_path), s) for s in ("train", "validation")
  )
  assert set(train) == set(held) and len(train) == 4
  train, held = (
    texts(source_at(many, tmp_path), s) for s in ("train", "validation")
  )
  assert not set(train) & set(held)
  assert len(train) + len(held) == 250 and 10 <= len(held) <= 45


def rows(count):
  return [{"text": f"row {i} é\n", "n": i} for i in range(count)]


def write_rows(path, found):
  if path.name.endswith(".parquet"):
    from pyarrow import Table, parquet

    parquet.write_table(Table.from_pylist(found), path, row_group_size=17)
    return path
  data = "".join(json.dumps(row) + "\n" for row in found).encode()
  path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
  return path


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.parquet"])
def test_rows_are_all_read_once_and_divided(name, tmp_path, monkeypatch):
  monkeypatch.setattr("aigc_jax.data.files.job_size", lambda total: 999)
  expected = rows(200)
  path = write_rows(tmp_path / name, expected + [{"text": None}, {"text": ""}])
  source = source_at(path, tmp_path)
  train, held = (texts(source, s) for s in source.splits)
  assert not set(train) & set(held)
  found = sorted([*train.values(), *held.values()])
  assert found == sorted(row["text"].encode() for row in expected)
  assert 8 <= len(held) <= 40


@pytest.mark.parametrize("size", [1, 2, 7, 10**6])
def test_lines_are_read_once_however_the_file_is_divided(
  size, tmp_path, monkeypatch
):
  monkeypatch.setattr("aigc_jax.data.files.job_size", lambda total: size)
  lines = ['{"text": "a"}', "", '{"text": "bé"}', '{"text": "c"}', "  "]
  (tmp_path / "x.jsonl").write_text("\n".join(lines))
  source = source_at(tmp_path / "x.jsonl", tmp_path, validation=0.0)
  assert list(texts(source, "train").values()) == [b"a", "bé".encode(), b"c"]


BAD_ROWS = {
  "not JSON": "{'text': 1}",
  "did you mean 'txet'": '{"txet": "a"}',
  "its fields: body, title": '{"title": "a", "body": "b"}',
  "holds int, expected text": '{"text": 3}',
  "expected an object": '"text"',
}


@pytest.mark.parametrize("message", BAD_ROWS)
@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz"])
def test_a_bad_row_is_named_by_its_line(message, name, tmp_path):
  data = '{"text": "good"}\n\n' + BAD_ROWS[message] + "\n"
  path = tmp_path / name
  path.write_bytes(
    gzip.compress(data.encode()) if name.endswith("gz") else data.encode()
  )
  with pytest.raises(BadData, match=f"{name} line 3: .*{message}"):
    texts(source_at(path, tmp_path), "train")


def test_a_missing_parquet_column_names_the_columns(tmp_path):
  path = write_rows(tmp_path / "x.parquet", rows(3))
  with pytest.raises(BadData, match="no field 'body'.*its fields: n, text"):
    texts(source_at(path, tmp_path, field="body"), "train")


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.parquet"])
def test_a_damaged_file_is_named(name, tmp_path):
  path = write_rows(tmp_path / name, rows(200))
  path.write_bytes(path.read_bytes()[:-40])
  with pytest.raises(BadData, match=name):
    texts(source_at(path, tmp_path), "train")


def test_what_is_missing_or_empty_is_named(tmp_path):
  (tmp_path / "none").mkdir()
  (tmp_path / "empty.txt").touch()
  for path, message in {
    "nowhere.txt": "no such file",
    "*.docx": "no file matches",
    "none": "no readable text",
    "empty.txt": "no readable text",
  }.items():
    with pytest.raises(BadData, match=message):
      source_at(tmp_path / path, tmp_path).jobs("train")
  (tmp_path / "x.txt.xz").write_bytes(b"packed")
  with pytest.raises(BadData, match="unpack it first"):
    source_at(tmp_path / "x.txt.xz", tmp_path).jobs("train")


def test_impossible_sources_are_refused_with_the_nearest_word(tmp_path, book):
  def refused(message, validation=0.1, **changes):
    spec = text_source(book) | changes
    spec = {k: v for k, v in spec.items() if v != "absent"}
    with pytest.raises(BadConfig, match=message):
      source = open_source(spec, validation=validation, root=tmp_path)
      source.jobs(spec["split"])

  refused("source kind 'txt' is unknown; did you mean 'text'", kind="txt")
  refused("no kind", kind="absent")
  refused("unknown key 'feild'; did you mean 'field'", feild="text")
  refused("no 'path'", path="absent")
  refused("path is empty", path="")
  refused("split 'valid'.*did you mean 'validation'", split="valid")
  refused("expected a fraction", validation=1.0)
  with pytest.raises(
    BadConfig, match="corpus 'stdlb' is unknown; did you mean"
  ):
    spec = dict(kind="corpus", name="stdlb", split="train", weight=1.0)
    open_source(spec, validation=0.1, root=tmp_path)


def test_a_fingerprint_follows_the_content_and_not_the_place(tmp_path):
  first, second = tmp_path / "a", tmp_path / "b"
  for folder in (first, second):
    folder.mkdir()
    (folder / "x.txt").write_text("some text\n")
  one = source_at(first, tmp_path).fingerprint
  assert source_at(second, tmp_path).fingerprint == one
  assert source_at(first, tmp_path, field="body").fingerprint != one
  source = source_at(first, tmp_path)
  assert source.fingerprint == one and source.unchanged()
  (first / "x.txt").write_text("same size\n")
  assert not source.unchanged()
  assert source_at(first, tmp_path).fingerprint != one


def test_an_unchanged_source_is_not_hashed_again(book, tmp_path, monkeypatch):
  one = source_at(book, tmp_path).fingerprint
  monkeypatch.setattr("aigc_jax.data.files.Files._content", lambda self: "?")
  assert source_at(book, tmp_path).fingerprint == one


def test_the_corpus_is_divided_by_file_and_whole(tmp_path):
  spec = dict(kind="corpus", name="stdlib", split="train", weight=1.0)
  source = open_source(spec, validation=0.5, root=tmp_path, say=lambda x: None)
  fingerprint = source.fingerprint
  assert not source.folder  # known before the dataset is written
  assert pickle.loads(pickle.dumps(source)).fingerprint == fingerprint
  train, held = (texts(source, s).values() for s in ("train", "validation"))
  documents = stdlib.stdlib.documents()
  assert sorted([*train, *held]) == sorted(documents.values())
  assert 5e6 < sum(map(len, train)) < 20e6
  assert 2e5 < sum(map(len, held)) < 2e6
  assert any("topics" in name for name in documents)
  with pytest.raises(BadConfig, match="no split 'test'"):
    source.jobs("test")
  assert set(CORPORA) == {"stdlib"}


class Tiny(tfds.core.GeneratorBasedBuilder):
  """Forty short texts and a test split, without validation."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    features = tfds.features.FeaturesDict(
      {"body": tfds.features.Text(), "n": tfds.features.Scalar(np.int32)}
    )
    return tfds.core.DatasetInfo(builder=self, features=features)

  def _split_generators(self, dl_manager):
    return {
      "train": self._generate_examples(40),
      "test": self._generate_examples(3),
    }

  def _generate_examples(self, count):
    for i in range(count):
      yield i, {"body": f"text {i} é\n", "n": i}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  """The folder of the prepared dataset."""
  builder = Tiny(
    data_dir=str(tmp_path_factory.mktemp("tfds")), file_format="array_record"
  )
  builder.download_and_prepare()
  return builder.data_dir


def tiny_source(tiny, split="train", field="body"):
  spec = dict(kind="tfds", name=str(tiny), split=split, field=field, weight=1.0)
  return open_source(spec, validation=0.3, root="/nowhere")


def test_a_dataset_without_validation_holds_out_records(tiny):
  source = tiny_source(tiny)
  train, held = (
    set(texts(source, s).values()) for s in ("train", "validation")
  )
  assert train | held == {f"text {i} é\n".encode() for i in range(40)}
  assert not train & held and 4 <= len(held) <= 20
  assert len(texts(source, "test")) == 3
  assert source.name == "tiny"


def test_a_slice_of_a_dataset_is_a_split(tiny):
  source = tiny_source(tiny, split="train[:50%]")
  train, held = (texts(source, s) for s in ("train[:50%]", "validation"))
  assert len(train) + len(held) == 20


def test_a_wrong_field_or_split_of_a_dataset_is_named(tiny):
  with pytest.raises(BadData, match="no field 'text'.*its fields: body, n"):
    texts(tiny_source(tiny, field="text"), "train")
  with pytest.raises(BadData, match="expected text"):
    texts(tiny_source(tiny, field="n"), "train")
  with pytest.raises(BadConfig, match="no split 'tset'; did you mean 'test'"):
    tiny_source(tiny).jobs("tset")


TRAP = "trap.Feature"
CORE = "tensorflow_datasets.core.features."


def nested(features):
  features["featuresDict"]["features"]["n"]["pythonClassName"] = TRAP


def spelled(features):
  body = features["featuresDict"]["features"]["body"]
  body["python_class_name"] = body.pop("pythonClassName")
  features["featuresDict"]["features"]["x"] = {"python_class_name": TRAP}


def legacy(features):
  features.clear()
  content = {"x": {"type": TRAP, "content": {}}}
  features.update(type=f"{CORE}features_dict.FeaturesDict", content=content)


def whole(features):
  features["pythonClassName"] = TRAP


def in_the_info(info):
  info["features"] = {"pythonClassName": TRAP}


@pytest.mark.parametrize(
  ("file", "change"),
  [
    ("features.json", nested), ("features.json", spelled),
    ("features.json", legacy), ("features.json", whole),
    ("dataset_info.json", in_the_info),
  ],
)  # fmt: skip
def test_no_class_of_a_dataset_is_imported(
  tiny, tmp_path, monkeypatch, file, change
):
  folder = altered(tiny, tmp_path, file, change)
  (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(BadData, match=r"trap\.Feature.*would run its code"):
    tiny_source(folder).jobs("train")
  assert not (tmp_path / "ran").exists()


def altered(tiny, tmp_path, file, change):
  """A copy of the dataset with one of its JSON files changed."""
  folder = tmp_path / "tiny" / "1.0.0"
  shutil.copytree(tiny, folder)
  content = json.loads((folder / file).read_text())
  change(content)
  (folder / file).write_text(json.dumps(content))
  return folder


@pytest.mark.parametrize(
  "template", ["../{SPLIT}", "/etc/passwd", "{SPLIT:>99999999999}", 7]
)
def test_no_split_of_a_dataset_leads_out_of_its_folder(
  tiny, tmp_path, template
):
  def change(info):
    info["splits"][0]["filepathTemplate"] = template

  folder = altered(tiny, tmp_path, "dataset_info.json", change)
  with pytest.raises(BadData, match="may lead out of the folder"):
    tiny_source(folder).jobs("train")


def test_a_dataset_holds_regular_files_only(tiny, tmp_path):
  folder = altered(tiny, tmp_path, "features.json", lambda content: None)
  assert tiny_source(folder).jobs("train")
  os.mkfifo(folder / "tiny-train.array_record-00001-of-00002")
  with pytest.raises(BadData, match="FIFO"):
    tiny_source(folder).jobs("train")


@pytest.mark.parametrize("name", ["huggingface:squad", "me:mine", "../x"])
def test_a_name_that_stands_for_code_elsewhere_is_refused(name):
  with pytest.raises(BadConfig, match="TFDS catalogue"):
    open_source(
      dict(kind="tfds", name=name, split="train", field="text", weight=1.0),
      validation=0.1, root="/nowhere",
    )  # fmt: skip


def test_a_dataset_of_the_data_directory_is_found_by_name(tiny, monkeypatch):
  monkeypatch.setattr(
    tfds.core.utils.file_utils, "list_data_dirs",
    lambda **_: [Path(tiny).parent.parent],
  )  # fmt: skip
  assert tiny_source("tiny").jobs("train")
  assert tiny_source("tiny:1.0.0").jobs("train")


def test_a_dataset_that_is_not_here_says_how_to_get_it():
  spec = dict(
    kind="tfds", name="lm1b_", split="train", field="text", weight=1.0
  )
  source = open_source(spec, validation=0.1, root="/nowhere")
  assert not source.present
  with pytest.raises(BadData, match=r"did you mean 'lm1b'.*--download"):
    source.obtain(False, print)
  with pytest.raises(BadConfig, match="a b c"):
    open_source(spec | {"name": "a b c"}, validation=0.1, root="/nowhere")


def test_a_source_of_text_that_does_not_say_is_of_the_training_split(
  book, tmp_path
):
  spec = dict(kind="text", path=str(book))
  whole = spec | dict(split="train", field="text", weight=1.0)
  one, other = (
    open_source(entry, validation=0.1, root=tmp_path).fingerprint
    for entry in (spec, whole)
  )
  assert one == other
