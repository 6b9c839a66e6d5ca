"""Rows of tables, and what is no table by its name and line."""

import pytest

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
    ("x.xml", b"<a/>", r"x.xml: expected JSON lines \(.jsonl\) or columns"),
  ],
)
def test_what_is_no_table_is_refused_by_its_place(
  name, content, words, tmp_path
):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(BadData, match=words):
    list(tables.rows(tmp_path / name))


def test_a_column_that_lacks_is_named_with_those_that_are_there():
  words = (
    r"row 1: no 'sad'; did you mean 'said'\? \(it has: name, said\); text="
  )
  with pytest.raises(BadData, match=words):
    tables.field(ROW, "row 1", "sad", "text")
