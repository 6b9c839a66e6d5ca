"""Pairs of texts: read, split, cut or left out, packed, and told."""

import functools
import gettext
import json
import struct

import numpy as np
import pytest

from aigc_jax.data.gettext import read_catalogue
from aigc_jax.data.pair_sources import held_out, read_pairs
from aigc_jax.data.pairs import Pairs, texts_fingerprint, trained_on
from aigc_jax.errors import BadConfig, BadData

MODEL = dict(vocab=300, start_token=None)
PO = """# comment
msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\\n"

#: a.py
msgid "Open \\"file\\""
msgstr ""
"Datei "
"öffnen"

#, fuzzy
msgid "unsure"
msgstr "unsicher"

msgctxt "menu"
msgid "one tree"
msgid_plural "%d trees"
msgstr[0] "ein Baum"
msgstr[1] "%d Bäume"
msgid "none"
msgstr ""

#~ msgid "old"
#~ msgstr "alt"
"""
FOUND = [('Open "file"', "Datei öffnen"), ("one tree", "ein Baum")]


def pairs_of(tmp_path, rows=None, **changes):
  if rows is None:
    rows = [(f"source {i}", f"target {i * i}") for i in range(60)]
  path = tmp_path / "pairs.jsonl"
  path.write_text(
    "".join(json.dumps({"en": a, "de": b}) + "\n" for a, b in rows)
  )
  source = dict(kind="json", path=str(path), source="en", target="de")
  return Pairs(
    **dict(
      sources=[source], tokenizer="bytes", tokenizer_vocab=300, batch=4,
      source_length=16, target_length=20, packed=False, long="cut",
      shuffle=True, validation=0.2, root=str(tmp_path / "root"), skip_steps=(),
    )
    | changes
  )  # fmt: skip


def quiet(text):
  """Says nothing."""


def text_of(tokenizer, ids) -> str:
  return bytes(i for i in ids.tolist() if i < 256).decode()


def spelled(batch, tokenizer):
  """The pairs of a batch as texts."""
  found = []
  for row in range(len(batch["tokens"])):
    for k in range(1, batch["segments"][row].max(initial=0) + 1):
      source = batch["encoder_tokens"][row][batch["encoder_segments"][row] == k]
      target = batch["targets"][row][batch["segments"][row] == k]
      found.append((text_of(tokenizer, source), text_of(tokenizer, target)))
  return found


def test_a_zero_byte_in_a_text_stops_no_tokenizer(tmp_path):
  texts = [f"some words {i} of a text" for i in range(400)]
  plain, odd = (
    trained_on([*texts, *more], "pairs", str(tmp_path), 300, print)
    for more in ((), ("a\0b",))
  )
  assert plain.vocab == odd.vocab


def test_a_tokenizer_is_of_the_texts_whatever_lies_where_they_are_kept(
  tmp_path,
):
  texts = [f"some words {i} of a text" for i in range(400)]
  asked = (texts, "pairs", str(tmp_path), 300, print)
  first = trained_on(*asked)
  (kept,) = (tmp_path / "pairs").glob("*.txt")
  kept.write_text(kept.read_text().replace("words", "worlds"))
  assert trained_on(*asked).fingerprint == first.fingerprint


def test_a_catalogue_is_read_as_text_and_compiled(tmp_path):
  po = tmp_path / "a.po"
  po.write_text(PO, encoding="utf-8")
  assert read_catalogue(po) == FOUND
  mo = tmp_path / "a.mo"
  messages = [("", "Content-Type: text/plain; charset=UTF-8\n"), *FOUND[:1],
              ("menu\x04one tree\0%d trees", "ein Baum\0%d Bäume")]  # fmt: skip
  mo.write_bytes(compiled(sorted(messages)))
  with open(mo, "rb") as f:  # it is one that Python's own gettext reads
    assert gettext.GNUTranslations(f).gettext('Open "file"') == "Datei öffnen"
  assert sorted(read_catalogue(mo)) == sorted(FOUND)


def test_a_message_may_hold_what_ends_a_line_elsewhere(tmp_path):
  text = "a\u2028b\x85c"
  po = tmp_path / "a.po"
  po.write_text(f'msgid "{text}"\nmsgstr "{text}"\n', encoding="utf-8")
  assert read_catalogue(po) == [(text, text)]


def compiled(messages) -> bytes:
  sides = [
    [text.encode() for text in side] for side in zip(*messages, strict=True)
  ]
  n, tables, data = len(messages), b"", b""
  start = 28 + 16 * n
  for side in sides:
    for text in side:
      tables += struct.pack("<2I", len(text), start + len(data))
      data += text + b"\0"
  head = struct.pack("<7I", 0x950412DE, 0, n, 28, 28 + 8 * n, 0, start)
  return head + tables + data


@pytest.mark.parametrize(
  ("name", "content"),
  [
    ("a.mo", b"no"), ("a.mo", compiled([("a", "b")])[:40]),
    ("a.mo", struct.pack("<5I", 0x950412DE, 0, 2**31, 28, 28)),
    ("a.po", b'msgid "a"\nmsgstr unquoted\n'), ("a.po", b"hello\n"),
    ("a.po", b'msgid "\xff"\nmsgstr "b"\n'),
    ("a.po", b'"charset=none-such\\n"\n'),
    ("a.po", b'"charset=undefined\\n"\n'),
  ],
)  # fmt: skip
def test_a_damaged_catalogue_is_named(tmp_path, name, content):
  path = tmp_path / name
  path.write_bytes(content)
  with pytest.raises(BadData, match=name):
    read_catalogue(path)


def test_every_pair_is_in_one_split_by_its_source_alone(tmp_path):
  rows = [(f"Source {i % 40}", f"target {i}") for i in range(120)]
  data = pairs_of(tmp_path, rows, validation=0.3)
  train, held = (set(data.texts(split)) for split in ("train", "validation"))
  assert train | held == set(rows) and not train & held
  assert not {s for s, _ in train} & {s for s, _ in held}
  assert held and len(held) < len(train)
  assert held_out("A  b", 0.5) == held_out("a B", 0.5)


def test_a_share_that_holds_out_no_pair_is_said_to_be_too_small(tmp_path):
  data = pairs_of(tmp_path, [("a", "b"), ("c", "d")], validation=1e-9)
  with pytest.raises(BadData, match="data.validation=0.05.*data.validation=0"):
    data.heldout(split="validation", model=MODEL, say=quiet)


@pytest.mark.parametrize("packed", [False, True])
def test_an_epoch_has_each_pair_once_whatever_lies_beside_it(tmp_path, packed):
  data = pairs_of(tmp_path, packed=packed, source_length=40, target_length=44)
  stream = data.stream(seed=0, model=MODEL, say=quiet)
  rows = len(stream.views[0])
  assert (rows < len(stream.views[0].pairs)) == packed
  found = []
  for step in range(-(-rows // 4)):
    some = np.arange(4)[: rows - 4 * step]
    found += spelled(stream.rows(step, some), stream.tokenizer)
  assert sorted(found) == sorted(data.texts("train"))


@pytest.mark.parametrize("packed", [False, True])
def test_a_held_out_set_has_each_target_once(tmp_path, packed):
  data = pairs_of(tmp_path, packed=packed, source_length=40, target_length=44)
  found = data.heldout(split="validation", model=MODEL, say=quiet)
  batches = [found.rows(i, slice(None)) for i in range(found.batches)]
  pairs = [p for b in batches for p in spelled(b, found.tokenizer)]
  assert sorted(pairs) == sorted(data.texts("validation"))
  assert found.targets == sum(b["weights"].sum() for b in batches)
  bytes_ = sum(len(target.encode()) for _, target in pairs)
  assert found.counts["bytes"] == bytes_


def test_targets_are_moved_on_by_the_start_token_of_the_model(tmp_path):
  for start in (None, 7):
    data = pairs_of(tmp_path, packed=True, source_length=40, target_length=44)
    stream = data.stream(
      seed=0, model=MODEL | dict(start_token=start), say=quiet
    )
    batch, eot = stream.rows(0, slice(None)), stream.tokenizer.eot
    expected = eot if start is None else start
    begins = batch["positions"] == 0
    real = batch["weights"] > 0
    assert (batch["tokens"][begins & real] == expected).all()
    inside = real[:, 1:] & ~begins[:, 1:]
    np.testing.assert_array_equal(
      batch["tokens"][:, 1:][inside], batch["targets"][:, :-1][inside]
    )
    # Every target keeps its first token and ends in the end of text.
    ends = real & (
      batch["segments"] != np.pad(batch["segments"], ((0, 0), (0, 1)))[:, 1:]
    )
    assert (batch["targets"][ends] == eot).all()


@pytest.mark.parametrize("packed", [False, True])
def test_the_spec_is_what_is_made(tmp_path, packed):
  data = pairs_of(tmp_path, packed=packed)
  batch = data.stream(seed=0, model=MODEL, say=quiet).rows(0, slice(None))
  assert {k: (s.shape, s.dtype) for k, s in data.spec.items()} == {
    k: (v.shape, v.dtype) for k, v in batch.items()
  }


@pytest.mark.parametrize("long", ["cut", "left_out"])
def test_what_does_not_fit_is_told(tmp_path, long):
  rows = [("short", "kurz"), ("", "leer"), ("empty", "  "), ("x" * 30, "lang"),
          ("long", "y" * 50)]  # fmt: skip
  said = []
  data = pairs_of(tmp_path, rows, long=long, validation=0.0, batch=1)
  stream = data.stream(seed=0, model=MODEL, say=said.append)
  kept = stream.views[0].pairs
  assert len(kept) == (3 if long == "cut" else 1)
  assert all(len(a) <= 16 and len(b) <= 20 for a, b in kept)
  assert "2 with a side that is longer" in said[0]
  assert "2 with an empty side were left out" in said[0]
  assert ("cut" in said[0]) == (long == "cut")


def test_pairs_are_told_with_the_split_that_they_are_of(tmp_path):
  rows = [(f"source {i}", f"target {i}") for i in range(30)]
  data, said = pairs_of(tmp_path, rows, validation=0.3, batch=1), []
  data.stream(seed=0, model=MODEL, say=said.append)
  data.heldout(split="validation", model=MODEL, say=said.append)
  assert "(train): " in said[0] and "(validation): " in said[1]


def test_a_count_of_none_left_out_is_not_told(tmp_path):
  cases = {
    (): "",
    (("long", "y" * 50),): "; 1 with a side that is longer had a side cut",
    (("", "leer"),): "; 1 with an empty side was left out",
  }
  for i, (more, told) in enumerate(cases.items()):
    (tmp_path / f"{i}").mkdir()
    rows = [("short", "kurz"), *more]
    data = pairs_of(
      tmp_path / f"{i}", rows, long="cut", validation=0.0, batch=1
    )
    said = []
    data.stream(seed=0, model=MODEL, say=said.append)
    assert said[0].partition(" tokens")[2] == told


@pytest.mark.parametrize("long", ["cut", "left_out"])
@pytest.mark.parametrize("side", [0, 1])
def test_text_that_no_batch_has_is_known_by_its_own_fingerprint(
  tmp_path, long, side
):
  """What is written is compared with all of it, however little is read."""

  def opened(end: str):
    rows = [(f"source {i}", f"target {i}") for i in range(30)]
    rows += [("a" * 99 + end * (side == 0), "b" * 99 + end * (side == 1))]
    data = pairs_of(tmp_path, rows, long=long, validation=0.0)
    which = dict(split="all", model=MODEL)
    return data, which, data.heldout(**which, say=quiet)

  _, _, first = opened("1")
  data, which, other = opened("2")
  assert other.fingerprint == first.fingerprint
  assert other.texts_fingerprint != first.texts_fingerprint
  assert texts_fingerprint(data.texts("all")) == other.texts_fingerprint
  known = functools.partial(
    data.known, **which, batches=None, tokenizer=other.tokenizer,
    fingerprints=[first.fingerprint],
  )  # fmt: skip
  assert known(texts=[other.texts_fingerprint]) is not None
  assert known(texts=[first.texts_fingerprint]) is None
  assert known() is not None  # noted before there was such a fingerprint


@pytest.mark.parametrize("act", ["write", "replace", "add"])
def test_pairs_that_are_touched_while_they_are_read_are_refused(tmp_path, act):
  line = json.dumps({"en": "a", "de": "b"}) + "\n"
  for name in "ab":
    (tmp_path / f"{name}.jsonl").write_text(line * 2)
  spec = dict(kind="json", path=str(tmp_path), source="en", target="de")
  pairs = read_pairs(spec)
  next(pairs)
  if act == "replace":
    (tmp_path / "new").write_text(line)
    (tmp_path / "new").rename(tmp_path / "b.jsonl")
  else:
    name = {"write": "a", "add": "c"}[act]
    with open(tmp_path / f"{name}.jsonl", "a") as file:
      file.write(line)
  with pytest.raises(BadData, match="changed while it was read"):
    list(pairs)
  assert len(list(read_pairs(spec))) in (3, 5)


def test_nothing_that_fits_is_an_error_with_a_way_out(tmp_path):
  data = pairs_of(
    tmp_path, [("x" * 30, "lang")], long="left_out", validation=0.0
  )
  with pytest.raises(BadData, match="source_length=16.*long='cut'"):
    data.stream(seed=0, model=MODEL, say=quiet)


@pytest.mark.parametrize(
  ("change", "word"),
  [
    (dict(long="skip"), "left_out"),
    (dict(batch=0), "batch"),
    (dict(validation=1.0), "validation"),
    (dict(sources=[dict(kind="csv", path="x")]), "json"),
    (dict(sources=[dict(kind="json", path="x", source="a")]), "target"),
    (dict(sources=[dict(kind="gettext", path="x", fields="a")]), "fields"),
    (dict(sources=[dict(kind="gettext", path="gs://x/y")]), "gs"),
  ],
)
def test_what_no_pairs_could_be_is_refused(tmp_path, change, word):
  with pytest.raises(BadConfig, match=word):
    pairs_of(tmp_path, **change)


@pytest.mark.parametrize(
  ("line", "word"),
  [
    ("{", "line 1: not JSON"),
    ("[1]", "an object"),
    ('{"en": "a"}', "no field 'de'"),
    ('{"en": "a", "de": 3}', "holds int"),
  ],
)
def test_a_damaged_row_is_named(tmp_path, line, word):
  path = tmp_path / "a.jsonl"
  path.write_text(line + "\n")
  spec = dict(kind="json", path=str(path), source="en", target="de")
  with pytest.raises(BadData, match=word):
    list(read_pairs(spec))


def test_rows_of_parquet_are_pairs_as_well(tmp_path):
  pyarrow = pytest.importorskip("pyarrow")
  from pyarrow import parquet

  path = tmp_path / "a.parquet"
  table = pyarrow.table({"en": ["a", None], "de": ["b", "c"]})
  parquet.write_table(table, path)
  spec = dict(kind="parquet", path=str(path), source="en", target="de")
  assert list(read_pairs(spec)) == [("a", "b"), ("", "c")]
  with pytest.raises(BadData, match="no field 'fr'"):
    list(read_pairs(spec | dict(target="fr")))


def test_a_tokenizer_is_trained_on_both_sides(tmp_path):
  rows = [(f"the house number {i}", f"das Haus Nummer {i}") for i in range(99)]
  data = pairs_of(
    tmp_path, rows, tokenizer="sentencepiece", tokenizer_vocab=300,
    source_length=32,
  )  # fmt: skip
  said = []
  tokenizer = data.find_tokenizer(said.append)
  assert "300 pieces on the pairs of " in said[0] and ".jsonl'" in said[0]
  for word in ("the house", "das Haus"):
    assert len(tokenizer.encode(word)) < len(word) // 2
  assert data.find_tokenizer(quiet).fingerprint == tokenizer.fingerprint
