"""Laws of captioned images as data: sources, batches, held-out sets."""

import dataclasses
import json
import re

import numpy as np
import pytest

pytest.importorskip("PIL", reason="needs aigc_jax[images]")

from aigc_jax.data.captions import Captions  # noqa: E402
from aigc_jax.data.captions.kind import captions_of as captions_in  # noqa: E402
from aigc_jax.data.images.augmenting import Augment  # noqa: E402
from aigc_jax.data.images.sources import netpbm  # noqa: E402
from aigc_jax.data.tokenizers import load_tokenizer  # noqa: E402
from aigc_jax.errors import BadConfig, BadData  # noqa: E402

SIZE, LENGTH = 8, 12
MODEL = dict(
  vocab=259, image_size=SIZE, channels=3, text_length=LENGTH, text_end=256
)
BYTES = load_tokenizer("bytes")


def silent(text) -> None:
  """Says nothing."""


def shade(i: int) -> bytes:
  """An image of one grey, which tells its number."""
  return netpbm(np.full((SIZE, SIZE, 3), i, np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Thirty images with a caption or two beside each, and a table of them."""
  top = tmp_path_factory.mktemp("seen")
  (top / "more").mkdir()
  rows = []
  for i in range(30):
    name = f"more/{i}.ppm" if i % 3 == 0 else f"{i}.ppm"
    some = [f"shade {i}", f"grey {i}"][: 1 + i % 2]
    (top / name).write_bytes(shade(i))
    (top / name).with_suffix(".txt").write_text("\n".join(some) + "\n\n")
    rows.append(dict(image=name, caption=some if i % 2 else some[0]))
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  (top / "table.jsonl").write_text(lines)
  first = [r["caption"] if i % 2 == 0 else r["caption"][0]
           for i, r in enumerate(rows)]  # fmt: skip
  text = "image\tcaption\n" + "".join(
    f"{row['image']}\t{caption}\n"
    for row, caption in zip(rows, first, strict=True)
  )
  (top / "table.tsv").write_text(text)
  return top


def captions_of(source, root, **change) -> Captions:
  keys = dict(
    sources=[dict(split="train") | source], batch=5, image_size=SIZE,
    channels=3, crop=1.0, mean=(0.0,) * 3, std=(1 / 255,) * 3,
    augment=dataclasses.asdict(Augment()), shuffle=True, validation=0.25,
    most_damaged=0.01, root=str(root), skip_steps=(), tokenizer="bytes",
    tokenizer_vocab=300, length=LENGTH, start=None, pad=None,
  )  # fmt: skip
  return Captions(**keys | change)


def table(path) -> dict:
  return dict(kind="table", path=str(path), image="image", caption="caption")


def words(tokens: np.ndarray) -> list[str]:
  return [BYTES.decode(row[row < 256]) for row in tokens]


def seen(batch: dict) -> list[tuple[int, str]]:
  """(shade, caption) of the rows that count."""
  real = batch["weights"] > 0
  greys = np.round(batch["images"][real].mean((1, 2, 3))).astype(int)
  return list(zip(greys.tolist(), words(batch["tokens"][real]), strict=True))


def all_of(found) -> list[tuple[int, str]]:
  rows = [found.rows(i, slice(None)) for i in range(found.batches)]
  return [pair for batch in rows for pair in seen(batch)]


@pytest.mark.parametrize("kind", ["folder", "table.jsonl", "table.tsv"])
def test_every_image_comes_with_a_caption_of_its_own(folder, tmp_path, kind):
  source = dict(kind="folder", path=str(folder))
  if kind != "folder":
    source = table(folder / kind)
  data = captions_of(source, tmp_path)
  stream = data.stream(seed=0, model=MODEL, say=silent)
  assert {k: (x.shape, x.dtype) for k, x in stream.rows(0, slice(None)).items()}
  for name, array in data.spec.items():
    found = stream.rows(0, slice(None))[name]
    assert found.shape == array.shape and found.dtype == array.dtype
  trained = {pair for n in range(40) for pair in seen(stream.rows(n, slice(9)))}
  held = all_of(data.heldout(split="validation", model=MODEL, say=silent))
  for grey, text in trained | set(held):
    assert text.split()[1] == str(grey)
  numbers = {grey for grey, _ in trained}, {grey for grey, _ in held}
  assert not numbers[0] & numbers[1] and numbers[0] | numbers[1] == {*range(30)}
  assert len(held) == len(numbers[1]) > 2
  # Held out, the first of several counts; in training each is drawn.
  assert all(text.startswith("shade") for _, text in held)
  several = any(text.startswith("grey") for _, text in trained)
  assert several == (kind != "table.tsv")


def test_a_row_is_the_same_whoever_asks_for_it(folder, tmp_path):
  data = captions_of(
    table(folder / "table.jsonl"), tmp_path,
    augment=dataclasses.asdict(Augment(crop=0.3, flip=True)),
  )  # fmt: skip
  a, b = (data.stream(seed=1, model=MODEL, say=silent) for _ in range(2))
  whole = a.rows(7, slice(None))
  for row in range(5):
    for key, x in b.rows(7, [row]).items():
      np.testing.assert_array_equal(x[0], whole[key][row])


def test_a_text_ends_then_pads_and_keeps_its_end_where_it_is_cut(tmp_path):
  source = dict(kind="package", name="digits")
  data = captions_of(source, tmp_path)
  row = data.tokens_of(BYTES, ["ab", "a text that is too long"])
  assert row.tolist() == [[97, 98] + [256] * 10, [*b"a text that"] + [256]]
  data = captions_of(source, tmp_path, start=257, pad=258)
  row = data.tokens_of(BYTES, ["ab", "a text that is too long"])
  assert row[0].tolist() == [257, 97, 98, 256] + [258] * 8
  assert row[1].tolist() == [257, *b"a text tha"] + [256]
  assert data.tokens_of(BYTES, [""])[0, :3].tolist() == [257, 256, 258]


def test_captions_that_are_cut_are_told(folder, tmp_path):
  told = []
  data = captions_of(table(folder / "table.tsv"), tmp_path, length=8)
  data.stream(seed=0, model=MODEL | dict(text_length=8), say=told.append)
  assert any("longer than data.length=8 tokens and are cut" in t for t in told)


def test_held_out_captions_are_found_again_by_their_fingerprint(
  folder, tmp_path
):
  data = captions_of(table(folder / "table.jsonl"), tmp_path)
  found = data.heldout(split="validation", model=MODEL, say=silent)
  known = data.known(
    split="validation", batches=None, model=MODEL, tokenizer=BYTES,
    fingerprints=[found.fingerprint],
  )  # fmt: skip
  assert all_of(known) == all_of(found)
  longer = captions_of(table(folder / "table.jsonl"), tmp_path, length=11)
  other = longer.heldout(split="validation", model=MODEL, say=silent)
  assert other.fingerprint != found.fingerprint


def test_rows_of_parquet_have_images_and_captions(tmp_path):
  pa = pytest.importorskip("pyarrow")
  from pyarrow import parquet

  images = [{"bytes": shade(i), "path": f"{i}"} for i in range(12)]
  lists = [[f"shade {i}", f"grey {i}"] for i in range(12)]
  path = tmp_path / "x.parquet"
  parquet.write_table(pa.table({"image": images, "text": lists}), path)
  source = dict(kind="parquet", path=str(path), image="image", caption="text")
  data = captions_of(source, tmp_path, validation=0.4)
  held = all_of(data.heldout(split="all", model=MODEL, say=silent))
  assert sorted(held) == [(i, f"shade {i}") for i in range(12)]
  lists[3], lists[7] = [], None
  parquet.write_table(pa.table({"image": images, "text": lists}), path)
  with pytest.raises(BadData, match=r"2 row.*row 3, x.parquet row 7"):
    data.heldout(split="all", model=MODEL, say=silent)


def test_captions_train_their_tokenizer(tmp_path):
  pytest.importorskip("sklearn", reason="needs scikit-learn, for its digits")
  data = captions_of(
    dict(kind="package", name="digits"), tmp_path, channels=1, mean=(0.5,),
    std=(0.5,), tokenizer="sentencepiece", length=40,
  )  # fmt: skip
  model = dict(vocab=310, image_size=SIZE, channels=1, text_length=40)
  stream = data.stream(seed=0, model=model, say=silent)
  tokenizer = stream.tokenizer
  batch = stream.rows(0, slice(None))
  texts = [tokenizer.decode(r[r != tokenizer.eot]) for r in batch["tokens"]]
  starts = ("a ", "the digit ", "a handwritten ", "somebody wrote a ")
  assert all(text.startswith(starts) for text in texts)
  with pytest.raises(BadConfig, match=f"text_end={tokenizer.eot}"):
    data.stream(seed=0, model=model | dict(text_end=9), say=silent)


def broken(folder, tmp_path, name: str):
  """A source that lacks something, below a folder of its own."""
  top = tmp_path / "broken"
  top.mkdir()
  for i in range(8):
    (top / f"{i}.ppm").write_bytes(shade(i))
    (top / f"{i}.txt").write_text(f"shade {i}")
  if name == "folder":
    (top / "2.txt").unlink()
    (top / "5.txt").write_text("  \n")
    return dict(kind="folder", path=str(top))
  rows = [dict(image=f"{i}.ppm", caption=f"shade {i}") for i in range(8)]
  if name == "empty":
    rows[2]["caption"], rows[5]["caption"] = "", None
  if name == "gone":
    rows[4]["image"] = "nowhere.ppm"
  if name == "number":
    rows[4]["caption"] = 4
  if name == "twice":
    rows[4]["image"] = "./3.ppm"
  if name == "key":
    rows = [{"file": r["image"], "caption": r["caption"]} for r in rows]
  path = top / "t.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return table(path)


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("folder", r"2 images without a caption: 2.ppm, 5.ppm; write"),
    ("empty", r"2 rows without a caption: row 3 \(2.ppm\), row 6 \(5.ppm"),
    ("gone", r"1 row of an image that is not there: row 5 \(nowhere.ppm\)"),
    ("twice", r"row 5: './3.ppm' and '3.ppm' are one file"),
    ("number", "row 5: a caption is int, expected a text"),
    ("key", "row 1: no 'image'.*it has: file, caption.*image=NAME"),
  ],
)
def test_what_is_missing_is_refused_by_name(folder, tmp_path, name, words):
  data = captions_of(broken(folder, tmp_path, name), tmp_path)
  with pytest.raises(BadData, match=words):
    data.stream(seed=0, model=MODEL, say=silent)
  assert not list(tmp_path.glob("captions/*"))


def test_a_damaged_image_is_left_out_counted_and_told(folder, tmp_path):
  source = broken(folder, tmp_path, "")
  (tmp_path / "broken/3.ppm").write_bytes(b"P6 8 8 255\n123")
  with pytest.raises(BadData, match="1 of 8 images.*3.ppm.*most_damaged=0.125"):
    captions_of(source, tmp_path).heldout(split="all", model=MODEL, say=silent)
  told = []
  data = captions_of(source, tmp_path, most_damaged=0.2)
  found = data.heldout(split="all", model=MODEL, say=told.append)
  assert len(found) == 7 and any("3.ppm" in text for text in told)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (dict(length=1, start=257), "data.length=1 has no room"),
    (dict(pad=-1), "data.pad=-1"),
    (dict(augment=dataclasses.asdict(Augment(mixup=0.2))), "mixup and cutmix"),
    (dict(sources=[dict(kind="folder", path="x", split="train", label="y")]),
     "unknown key 'label'"),
    (dict(sources=[dict(kind="tabel", path="x", split="train")]), "table"),
  ],
)  # fmt: skip
def test_what_no_captions_could_mend_is_refused(tmp_path, change, words):
  with pytest.raises(BadConfig, match=words):
    captions_of(dict(kind="package", name="digits"), tmp_path, **change)


@pytest.mark.parametrize(
  ("model", "words"),
  [
    (dict(text_length=5), "--config.data.length=5"),
    (dict(image_size=16), "--config.model.image_size=8"),
    (dict(text_end=3), "--config.model.text_end=256"),
    (dict(vocab=100), "--config.model.vocab=257"),
  ],
)
def test_a_model_of_other_sizes_is_refused(tmp_path, model, words):
  data = captions_of(dict(kind="package", name="digits"), tmp_path)
  with pytest.raises(BadConfig, match=words):
    data.check_model(MODEL | model)


def test_a_caption_is_whole_whatever_characters_are_in_it(tmp_path):
  (tmp_path / "in").mkdir()
  (tmp_path / "in/1.ppm").write_bytes(shade(1))
  (tmp_path / "in/1.txt").write_text("so\u2028it\x85goes\nand on\r\n")
  source = dict(kind="folder", path=str(tmp_path / "in"))
  held = captions_of(source, tmp_path).heldout(
    split="all", model=MODEL, say=silent
  )
  assert captions_in(held.views[0]) == [["so\u2028it\x85goes", "and on"]]


@pytest.mark.parametrize(("share", "split"), [(1e-9, "validation"),
                                              (1 - 1e-9, "train")])  # fmt: skip
@pytest.mark.parametrize("of", ["folder", "table"])
def test_where_a_share_divides_nothing_one_that_does_is_told(
  folder, tmp_path, of, share, split
):
  source = table(folder / "table.jsonl")
  if of == "folder":
    source = dict(kind="folder", path=str(folder))
  few = captions_of(source, tmp_path, validation=share)
  way = rf"of the split '{split}': .*--config.data.validation=([\d.]+) "
  with pytest.raises(BadData, match=way) as refusal:
    few.heldout(split=split, model=MODEL, say=silent)
  told = float(re.search(way, str(refusal.value))[1])
  mended = captions_of(source, tmp_path, validation=told)
  assert len(mended.heldout(split=split, model=MODEL, say=silent)) > 0
