"""Rows of tables, and what is no table by its name and line."""

import json

import pytest

from aigc_jax import files
from aigc_jax.data import tables
from aigc_jax.errors import BadData

ROW = {"name": "a.wav", "said": 'so "it" goes'}
TABLES = {
  "x.jsonl": '{"name": "a.wav", "said": "so \\"it\\" goes"}\n\n',
  "x.csv": 'name,said\na.wav,"so ""it"" goes"\n',
  "x.tsv": '\ufeffname\tsaid\na.wav\tso "it" goes\n',
}


@pytest.mark.parametrize("name", TABLES)
def test_a_row_is_the_same_however_it_is_written(name, tmp_path):
  path = tmp_path / name
  path.write_text(TABLES[name], encoding="utf-8")
  assert list(tables.rows(path)) == [(1, ROW)]


@pytest.mark.parametrize(
  "name, content, words",
  [
    ("x.csv", b"name\n" + b"y" * 200_000, "x.csv line 2: field larger than"),
    ("x.jsonl", b"[1]\n", "x.jsonl row 1: expected a JSON object, got list"),
    ("x.tsv", b"name\n\xff\n", "x.tsv: not UTF-8"),
    ("x.csv", b'name,said\n"a.wav,b\nc.wav,d\n', "x.csv line 2: unexpected"),
    ("x.csv", b"name,said,name\na,b,c\n", "x.csv: the column 'name' is there"),
    ("x.tsv", b"name\tsaid\na\tb\tc\n", "x.tsv row 1: more cells than"),
    ("x.xml", b"<a/>", r"x.xml: expected JSON lines \(.jsonl\) or columns"),
  ],
)
def test_what_is_no_table_is_refused_by_its_place(
  name, content, words, tmp_path
):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(BadData, match=words):
    list(tables.rows(tmp_path / name))


INSIDE = "so\u2028it\u2029goes\x85on\x0c\x0b\x1c\x1d\x1e."


def test_a_line_ends_where_a_line_ends_and_nowhere_within_a_text(tmp_path):
  for end in ("\n", "\r\n", "\r"):
    assert files.lines_of(f"{INSIDE}{end}{end}b") == [INSIDE, "", "b"]
    assert files.lines_of(f"a{end}") == ["a"]
  assert files.lines_of("") == []
  said = "so\u2028it\u2029goes\x85on"
  for name, text in (
    ("x.jsonl", json.dumps(dict(said=said), ensure_ascii=False) + "\n"),
    ("x.csv", f"said\n{said}\n"),
    ("x.tsv", f"said\n{said}\n"),
  ):
    (tmp_path / name).write_text(text)
    assert list(tables.rows(tmp_path / name)) == [(1, dict(said=said))]


def test_cells_without_a_name_that_hold_nothing_are_no_fault(tmp_path):
  (tmp_path / "x.csv").write_text("name,said\na,b,,\n")
  found = list(tables.rows(tmp_path / "x.csv"))
  assert found == [(1, dict(name="a", said="b"))]


def test_a_column_that_lacks_is_named_with_those_that_are_there():
  words = (
    r"row 1: no 'sad'; did you mean 'said'\? \(it has: name, said\); text="
  )
  with pytest.raises(BadData, match=words):
    tables.field(ROW, "row 1", "sad", "text")
