"""Damaged images, sounds, captions, pairs, and their stores.

As of text in test_hostile_files.py: each is read or refused.
"""

import dataclasses
import io
import json
import os
import shutil
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from aigc_jax.data import pair_sources
from aigc_jax.data.captions import sources as captioned
from aigc_jax.data.columns import Columns, write
from aigc_jax.data.documents import Job
from aigc_jax.data.images import decoding as seen
from aigc_jax.data.images import sources as pictured
from aigc_jax.data.sound import decoding as heard
from aigc_jax.data.sound import sources as spoken
from aigc_jax.errors import BadConfig, BadData
from tests.data import test_captions, test_image_data, test_sound_data
from tests.hostile import Format, laws, unheard

pytest.importorskip("PIL", reason="needs aigc_jax[images]")
pytest.importorskip("soundfile", reason="needs aigc_jax[sound]")


def silent(*_) -> None:
  """Says nothing."""


# Images and sounds as bytes.


def image(kind: str, mode: str = "RGB", **how) -> bytes:
  return test_image_data.encoded(
    test_image_data.pixels_of(1, 9, 7), kind, mode, **how
  )


def file_of(name: str, content: bytes, look) -> Format:
  def read(folder: Path) -> None:
    try:
      look((folder / name).read_bytes())
    except (seen.Unusable, heard.Unusable) as e:
      raise BadData(str(e) or "") from e

  return Format(lambda f: (f / name).write_bytes(content), name, read)


def look(data: bytes) -> None:
  seen.checked(data)
  for channels in (1, 3):
    assert seen.pixels(seen.decoded(data, channels)).shape[2] == channels


def listen(data: bytes) -> None:
  samples, _ = heard.decoded(data, "mix")
  assert samples.dtype == np.int16 and samples.ndim == 1 and len(samples)


def flac() -> bytes:
  import soundfile

  file = io.BytesIO()
  soundfile.write(
    file, test_sound_data.tone(900, 3, 2), 8000, "PCM_16", format="FLAC"
  )
  return file.getvalue()


def wav(tag: int, bits: int, channels: int) -> bytes:
  body = np.linspace(-0.9, 0.9, 60 * channels).astype("<f4").tobytes()
  return test_sound_data.file_of(body, tag, bits, channels, 8000)


# Tables, folders and lists, and what a source makes of them.


def records_of(source) -> None:
  for split in ("train", "validation"):
    left_out: dict = {}
    for job in source.jobs(split):
      for record in source.read(job, split, lambda why, name: None):
        assert record.keys() == source.columns.keys()
    source.check(split, 1, left_out)
  assert len(source.fingerprint) == 64 and source.unchanged() in (True, False)
  json.dumps(source.about("train"))


def captions(name: str, text: str) -> Format:
  def good(folder: Path) -> None:
    for i in range(3):
      (folder / f"{i}.ppm").write_bytes(test_captions.shade(i))
      (folder / f"{i}.txt").write_text(f"shade {i}")
    (folder / name).write_text(text)

  def read(folder: Path) -> None:
    spec = test_captions.table(folder / name) | {"split": "train"}
    if name == "0.txt":
      spec = dict(kind="folder", path=str(folder), split="train")
    records_of(pictured.open_source(spec, 0.3, 0.5, captioned.SOURCES))

  return Format(good, name, read)


def speech(name: str, text: str, kind: str) -> Format:
  def good(folder: Path) -> None:
    for i in range(3):
      data = heard.wav(test_sound_data.tone(300, i)[:, 0])
      (folder / f"{i}.wav").write_bytes(data)
      (folder / f"{i}.txt").write_text(f"word {i}")
    (folder / name).write_text(text)

  def read(folder: Path) -> None:
    spec = dict(kind=kind, path=str(folder), audio="path", text="sentence")
    if kind == "table":
      spec["path"] = str(folder / name)
    records_of(spoken.open_source(spec, spoken.How(0.3, "file", 0.9, "mix")))

  return Format(good, name, read)


def rows_of(name: str, head: tuple[str, str], ends: str) -> str:
  rows = [(f"{i}.{ends}", f"word {i} é") for i in range(3)]
  if name.endswith("jsonl"):
    return "".join(
      json.dumps(dict(zip(head, row, strict=True))) + "\n" for row in rows
    )
  mark = "\t" if name.endswith("tsv") else ","
  return "".join(f"{mark.join(row)}\n" for row in (head, *rows))


def packed(kind: str, column: str, values) -> Format:
  """Rows of Parquet with an image each."""

  def good(folder: Path) -> None:
    from pyarrow import Table, parquet

    rows = [
      {"image": {"bytes": test_captions.shade(i)}, column: x}
      for i, x in enumerate(values)
    ]
    parquet.write_table(Table.from_pylist(rows), folder / "x.parquet")

  def read(folder: Path) -> None:
    made = captioned.SOURCES if kind == "captions" else pictured.SOURCES
    key = "caption" if kind == "captions" else "label"
    spec = {"kind": "parquet", "path": str(folder), "split": "train",
            "image": "image", key: column}  # fmt: skip
    records_of(pictured.open_source(spec, 0.3, 0.5, made))

  return Format(good, "x.parquet", read)


def pairs(name: str, content: bytes, **keys) -> Format:
  def read(folder: Path) -> None:
    spec = dict(path=str(folder / name), **keys)
    for pair in pair_sources.read_pairs(spec):
      assert all(isinstance(side, str) for side in pair)
      pair_sources.held_out(pair[0], 0.3)

  return Format(lambda f: (f / name).write_bytes(content), name, read)


def rows_parquet() -> bytes:
  from pyarrow import Table, parquet

  file = io.BytesIO()
  rows = [{"en": f"word {i}", "de": f"Wört {i}"} for i in range(3)]
  parquet.write_table(Table.from_pylist(rows), file)
  return file.getvalue()


PO = (
  'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\n"\n\n'
  + "".join(f'msgid "word {i}"\nmsgstr "Wört {i}"\n\n' for i in range(3))
).encode()


def compiled() -> bytes:
  """A .mo file of three messages."""
  texts = [(f"word {i}".encode(), f"Wört {i}".encode()) for i in range(3)]
  head = struct.pack("<7I", 0x950412DE, 0, 3, 28, 52, 0, 0)
  at, tables, body = 76, [b"", b""], b""
  for side in range(2):
    for text in texts:
      tables[side] += struct.pack("<2I", len(text[side]), at + len(body))
      body += text[side] + b"\0"
  return head + tables[0] + tables[1] + body


# Stores: the data kinds that read them.


def pictures_kind(folder: Path):
  return test_image_data.kind_of(folder / "pets", folder / "root", batch=2)


def captions_kind(folder: Path):
  spec = dict(kind="folder", path=str(folder / "pets"))
  return test_captions.captions_of(spec, folder / "root", batch=2)


def sound_kind(folder: Path):
  return test_sound_data.kind_of(folder / "pets", folder / "root", batch=2)


STORED = {
  "images": (pictures_kind, test_image_data.MODEL | {"classes": 2}),
  "captions": (captions_kind, test_captions.MODEL),
  "sound": (sound_kind, test_sound_data.MODEL),
}


def store(kind: str, file: str) -> Format:
  make, model = STORED[kind]

  def good(folder: Path) -> None:
    for i in range(10):
      place = folder / "pets" / "ab"[i % 2]
      place.mkdir(parents=True, exist_ok=True)
      if kind == "sound":
        data = heard.wav(test_sound_data.tone(300, i)[:, 0])
        (place / f"{i}.wav").write_bytes(data)
      else:
        (place / f"{i}.ppm").write_bytes(test_captions.shade(i))
      if kind != "images":
        (place / f"{i}.txt").write_text(f"w {i}")
    make(folder).stream(seed=0, model=model, say=silent)

  def read(folder: Path) -> None:
    found = make(folder).stream(seed=0, model=model, say=silent)
    found.rows(0, slice(None))
    json.dumps(found.about)

  return Format(good, f"root/{kind}/*/{file}", read)


FORMATS = {
  "png": file_of("x", image("PNG"), look),
  "png with a palette": file_of("x", image("PNG", "P"), look),
  "png with alpha": file_of("x", image("PNG", "RGBA"), look),
  "jpeg": file_of("x", image("JPEG"), look),
  "jpeg in CMYK": file_of("x", image("JPEG", "CMYK"), look),
  "webp": file_of("x", image("WEBP"), look),
  "gif": file_of("x", image("GIF", "P"), look),
  "bmp": file_of("x", image("BMP"), look),
  "ppm": file_of("x", image("PPM"), look),
  "wav": file_of("x", heard.wav(test_sound_data.tone(90)[:, 0]), listen),
  "wav of fractions": file_of("x", wav(3, 32, 2), listen),
  "wav of 24 bits": file_of("x", wav(1, 24, 1), listen),
  "flac": file_of("x", flac(), listen),
  "captions of a folder": captions("0.txt", "one\ntwo\n"),
  "speech of a folder": speech("0.txt", "word", "folder"),
  "speech as LibriSpeech": speech(
    "a.trans.txt", "0 WORD\n1 WORD\n", "librispeech"
  ),
  "captions parquet": packed("captions", "text", [["a", "b"], ["c"], ["d"]]),
  "images parquet": packed("images", "label", [0, 1, 1]),
  "words parquet": packed("images", "label", ["cat", "dog", "dog"]),
  "pairs jsonl": pairs(
    "x.jsonl", b'{"en": "a", "de": "b"}\n{"en": "c", "de": null}\n',
    kind="json", source="en", target="de",
  ),
  "pairs po": pairs("x.po", PO, kind="gettext"),
  "pairs parquet": pairs(
    "x.parquet", rows_parquet(), kind="parquet", source="en", target="de"
  ),
  "pairs mo": pairs("x.mo", compiled(), kind="gettext"),
}  # fmt: skip
for ends in ("jsonl", "tsv", "csv"):
  FORMATS |= {
    f"captions {ends}": captions(
      f"x.{ends}", rows_of(ends, ("image", "caption"), "ppm")
    ),
    f"speech {ends}": speech(
      f"x.{ends}", rows_of(ends, ("path", "sentence"), "wav"), "table"
    ),
  }
for kind in STORED:
  FORMATS[f"store of {kind}"] = store(kind, "manifest.json")
for file in ("image", "image_ends", "label"):
  FORMATS[f"{file} of images"] = store("images", f"{file}-00000.npy")


@pytest.mark.parametrize("kind", STORED)
def test_a_name_that_is_no_text_is_a_name_all_the_same(kind, tmp_path):
  make, model = STORED[kind]
  store(kind, "").good(tmp_path)
  shutil.rmtree(tmp_path / "root")
  place = os.fsencode(tmp_path / "pets/a")
  ends = b".wav" if kind == "sound" else b".ppm"
  for i in range(2):  # one that is whole, and one that is not
    for end in (ends, *([b".txt"] if kind != "images" else [])):
      old = place + b"/%d" % (2 * i) + end
      os.rename(old, place + b"/%d\xff" % i + end)
  Path(os.fsdecode(place + b"/1\xff" + ends)).write_bytes(b"damaged")
  found = []
  for _ in range(2):  # made, and read again
    data = dataclasses.replace(make(tmp_path), most_damaged=0.5, validation=0.0)
    stream = data.stream(seed=0, model=model, say=found.append)
    stream.rows(0, slice(None))
  assert any("a/1\\udcff" in text for text in found), found


def test_a_label_that_is_no_text_is_refused_by_name(tmp_path):
  store("images", "").good(tmp_path)
  folder = os.fsencode(tmp_path / "pets")
  os.rename(folder + b"/a", folder + b"/a\xff")
  with pytest.raises(BadConfig, match="the label 'a.udcff' is not UTF-8"):
    make, model = STORED["images"]
    make(tmp_path).stream(seed=0, model=model, say=silent)


def test_a_gif_that_is_damaged_behind_its_first_frame_is_named():
  whole = image("GIF", "P")
  cut = whole[: whole.rindex(b";")] + b","  # the head of a frame is missing
  with pytest.raises(seen.Unusable, match="damaged"):
    seen.checked(cut)


NAMES = ("a" * 5000, "x\0y", "loop.ppm", "pipe.ppm", "folder", "\x1b[2J", "~/x")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["captions", "speech"])
def test_a_name_that_leads_to_no_file_is_told(kind, name, tmp_path):
  keys = {"captions": ("image", "caption"), "speech": ("path", "sentence")}
  make = {
    "captions": captions("x.jsonl", ""),
    "speech": speech("x.jsonl", "", "table"),
  }[kind]
  make.good(tmp_path)
  os.mkfifo(tmp_path / "pipe.ppm")
  (tmp_path / "folder").mkdir()
  (tmp_path / "loop.ppm").symlink_to(tmp_path / "loop.ppm")
  first = {"captions": "0.ppm", "speech": "0.wav"}[kind]
  rows = [(first, "a"), (name, "b")]
  (tmp_path / "x.jsonl").write_text(
    "".join(
      json.dumps(dict(zip(keys[kind], row, strict=True))) + "\n" for row in rows
    )
  )
  if kind == "captions":
    with pytest.raises(BadData, match="an image that is not there: row 2"):
      make.read(tmp_path)
    return
  spec = dict(kind="table", path=str(tmp_path / "x.jsonl"), audio="path",
              text="sentence")  # fmt: skip
  source = spoken.open_source(spec, spoken.How(0.0, "file", 0.9, "mix"))
  told = []
  for job in source.jobs("all"):
    list(source.read(job, "all", lambda *why: told.append(why)))
  assert told == [("with a transcript and no sound", name)]


def test_a_link_in_a_circle_among_captioned_images_is_named(tmp_path):
  (tmp_path / "x.ppm").symlink_to(tmp_path / "x.ppm")
  (tmp_path / "x.txt").write_text("a circle")
  spec = dict(kind="folder", path=str(tmp_path), split="train")
  source = pictured.open_source(spec, 0.0, 0.5, captioned.SOURCES)
  with pytest.raises(BadData, match="x.ppm is a link"):
    source.jobs("train")


def flac_that_says(rate: int, frames: int) -> bytes:
  """A FLAC file with another rate and length in its head."""
  data = bytearray(flac())
  said = int.from_bytes(data[18:26], "big") & ((1 << 44) - 1) >> 36 << 36
  data[18:26] = (rate << 44 | said | frames).to_bytes(8, "big")
  return bytes(data)


@pytest.mark.parametrize(
  "data, words",
  [
    (flac_that_says(655_350, 2_300_000_000), "more than 268,435,456 samples"),
    (flac_that_says(8_000, 1 << 35), "longer than 3600 seconds"),
    (flac_that_says(8_000, 0), "never written, as of a stream"),
    (flac_that_says(655_351, 900), "at an odd rate, 655351 Hz"),
    (test_sound_data.file_of(bytes(60), 1, 16, 1, 767_999), "767999 Hz"),
  ],
)
def test_what_a_head_claims_takes_no_memory_and_no_time(data, words):
  with pytest.raises(heard.Unusable, match=words):
    heard.decoded(data, "mix")


class Forged(NamedTuple):
  """A source of records that no source here gives."""

  columns: dict
  meaning: dict
  records: list
  name: str = "forged"
  fingerprint: str = "0" * 64
  state: str = ""

  def about(self, split: str) -> dict:
    return self.meaning

  def jobs(self, split: str) -> list[Job]:
    return [Job((0,), 1)]

  def read(self, job, split, drop):
    return iter(self.records)

  def check(self, split, kept, left_out) -> None:
    """All is well."""

  def unchanged(self) -> bool:
    return True


PICTURE = test_captions.shade(3)
LABELS = {"labels": ["a", "b"]}
SAID, HEARD = captioned.COLUMNS, spoken.COLUMNS
FORGERIES = {
  "a label beyond": ("images", pictured.COLUMNS, LABELS,
    dict(image=PICTURE, label=2), "labels from 2 to 2"),
  "a label below": ("images", pictured.COLUMNS, LABELS,
    dict(image=PICTURE, label=-1), "labels from -1 to -1"),
  "no labels": ("images", pictured.COLUMNS, {},
    dict(image=PICTURE, label=0), "no 'labels' in it"),
  "numbers for labels": ("images", pictured.COLUMNS, {"labels": [1, 2]},
    dict(image=PICTURE, label=0), "expected a text"),
  "no image": ("images", pictured.COLUMNS, LABELS,
    dict(image=b"no image", label=0), "cannot be decoded"),
  "captions among images": ("images", SAID, {},
    dict(image=PICTURE, captions=b'["a"]'), "records have image, captions"),
  "no JSON": ("captions", SAID, {},
    dict(image=PICTURE, captions=b"a"), "has no captions"),
  "a text for a list": ("captions", SAID, {},
    dict(image=PICTURE, captions=b'"ab"'), "has no captions"),
  "no caption": ("captions", SAID, {},
    dict(image=PICTURE, captions=b"[]"), "has no captions"),
  "a number for a caption": ("captions", SAID, {},
    dict(image=PICTURE, captions=b"[1]"), "has no captions"),
  "deep captions": ("captions", SAID, {},
    dict(image=PICTURE, captions=b"[" * 99_999), "has no captions"),
  "no text": ("sound", HEARD, {},
    dict(audio=bytes(400), samples=200, text=b"\xff"), "not UTF-8"),
  "longer than it says": ("sound", HEARD, {},
    dict(audio=bytes(40_000), samples=200, text=b"a"), "40000 bytes of 200"),
  "half a sample": ("sound", HEARD, {},
    dict(audio=bytes(401), samples=200, text=b"a"), "401 bytes of 200"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGERIES)
def test_a_store_that_was_forged_whole_is_refused(name, tmp_path):
  """Its manifest, seal and hashes are right: what it holds is not."""
  kind, columns, meaning, record, words = FORGERIES[name]
  store(kind, "").good(tmp_path)
  make, model = STORED[kind]
  (place,) = (tmp_path / "root" / kind).glob("*-train-????????????????")
  shutil.rmtree(place)
  write(place, Forged(columns, meaning, [record] * 4), "train", say=silent)
  with pytest.raises(BadData, match=words):
    make(tmp_path).stream(seed=0, model=model, say=silent).rows(0, slice(None))


(
  test_a_damaged_file_is_read_or_refused,
  test_ten_thousand_damaged_files_are_read_or_refused,
) = laws(FORMATS)
