"""Laws of images as data: stores, decoding, augmentation, held-out sets."""

import dataclasses
import io
import json
import os
import struct
import zlib

import numpy as np
import pytest

PIL = pytest.importorskip("PIL", reason="needs aigc_jax[images]")
from PIL import Image  # noqa: E402

from aigc_jax.data.columns import Columns, write  # noqa: E402
from aigc_jax.data.draw import Draw  # noqa: E402
from aigc_jax.data.images import Images, augmenting, decoding  # noqa: E402
from aigc_jax.data.images.augmenting import Augment  # noqa: E402
from aigc_jax.data.images.decoding import Unusable, decoded, pixels  # noqa: E402
from aigc_jax.data.images.sources import netpbm, open_source  # noqa: E402
from aigc_jax.errors import BadConfig, BadData  # noqa: E402
from aigc_jax.signature import call  # noqa: E402

SIZE = 12
PLAIN = dataclasses.asdict(Augment())
MODEL = dict(classes=3, image_size=SIZE, channels=3)


def silent(text) -> None:
  """Says nothing."""


def pixels_of(seed: int, Y: int = 20, X: int = 14) -> np.ndarray:
  draw = np.random.default_rng(seed)
  return draw.integers(0, 256, (Y, X, 3), np.uint8)


def encoded(array, kind: str = "PNG", mode: str | None = None, **how) -> bytes:
  image = Image.fromarray(array)
  image = image if mode is None else image.convert(mode)
  file = io.BytesIO()
  image.save(file, kind, **how)
  return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Three labels of ten images each, of mixed sizes."""
  top = tmp_path_factory.mktemp("pets")
  for k, label in enumerate(("cat", "dog", "emu")):
    (top / label).mkdir()
    for i in range(10):
      kind = ("PNG", "JPEG")[i % 2]
      data = encoded(pixels_of(10 * k + i, 20 + i, 14), kind)
      (top / label / f"{i}.{kind.lower()}").write_bytes(data)
  (top / "notes.txt").write_text("not an image")
  return top


def keys_of(folder, root) -> dict:
  return dict(
    sources=[dict(kind="folder", path=str(folder), split="train")],
    batch=6, image_size=SIZE, channels=3, crop=1.0, mean=(0.5,) * 3,
    std=(0.25,) * 3, augment=PLAIN, shuffle=True, validation=0.2,
    most_damaged=0.01, root=str(root), skip_steps=(),
  )  # fmt: skip


def kind_of(folder, root, **change) -> Images:
  return Images(**keys_of(folder, root) | change)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  return tmp_path_factory.mktemp("root")


def streamed(images: Images, **model):
  return images.stream(seed=3, model=MODEL | model, say=silent)


def equal(a: dict, b: dict) -> bool:
  return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_every_image_is_in_one_split_with_its_label(folder, root):
  images = kind_of(folder, root)
  train, held = (
    images._store(images.sources[0], split, silent, None)
    for split in ("train", "validation")
  )
  assert train.about == {"labels": ["cat", "dog", "emu"]}
  assert len(train) + len(held) == 30 and len(held) > 0
  records = [s.gather(np.arange(len(s))) for s in (train, held)]
  files = {p.read_bytes(): p.parent.name for p in folder.glob("*/*")}
  found = {
    data: ("cat", "dog", "emu")[label]
    for r in records
    for data, label in zip(r["image"], r["label"], strict=True)
  }
  assert found == files


AUGMENTS = {
  "none": {},
  "crop": dict(crop=0.3, flip=True),
  "randaugment": dict(operations=3, magnitude=20, shift=2),
  "mixed": dict(crop=0.5, mixup=0.4, cutmix=1.0),
}


@pytest.mark.parametrize("name", AUGMENTS)
def test_a_row_is_the_same_whoever_asks_for_it(folder, root, name):
  images = kind_of(folder, root, augment=PLAIN | AUGMENTS[name])
  stream = streamed(images)
  whole = stream.rows(5, slice(None))
  assert {k: x.shape for k, x in whole.items()} == {
    k: a.shape for k, a in images.spec.items()
  }
  assert all(whole[k].dtype == a.dtype for k, a in images.spec.items())
  for rows in ([1], [4, 0], [2, 3, 5]):
    part = streamed(images).rows(5, np.array(rows))
    assert equal(part, {k: x[rows] for k, x in whole.items()})
  assert not np.array_equal(
    whole["images"], stream.rows(6, slice(None))["images"]
  )


def test_held_out_images_come_once_and_are_found_again(folder, root):
  images = kind_of(folder, root, augment=PLAIN | AUGMENTS["mixed"])
  how = dict(split="validation", model=MODEL)
  held = images.heldout(**how, say=silent)
  batches = [held.rows(i, slice(None)) for i in range(held.batches)]
  assert sum(b["weights"].sum() for b in batches) == held.targets
  assert set(batches[0]) == {"images", "labels", "weights"}
  last = batches[-1]
  padding = last["weights"] == 0
  assert not padding.any() or not last["images"][padding].any()
  again = images.known(
    **how, batches=None, fingerprints=["x", held.fingerprint]
  )
  assert again.fingerprint == held.fingerprint
  other = dataclasses.replace(images, crop=0.5)
  assert (
    other.known(**how, batches=None, fingerprints=[held.fingerprint]) is None
  )


def test_what_decides_a_batch_is_in_its_fingerprint(folder, root):
  images = kind_of(folder, root)
  changes = (
    dict(crop=0.5), dict(mean=(0.4,) * 3), dict(shuffle=False),
    dict(augment=PLAIN | dict(flip=True)), dict(batch=4),
  )  # fmt: skip
  prints = {
    streamed(dataclasses.replace(images, **change)).fingerprint
    for change in ({}, *changes)
  }
  assert len(prints) == 1 + len(changes)


def test_images_are_normalised_and_keep_their_values(tmp_path):
  """One of the model's own size is seen as it is."""
  array = pixels_of(0, SIZE, SIZE)
  (tmp_path / "in" / "a").mkdir(parents=True)
  (tmp_path / "in" / "a" / "0.png").write_bytes(encoded(array))
  images = kind_of(tmp_path / "in", tmp_path, batch=1, validation=0.0)
  seen = streamed(images).rows(0, slice(None))["images"][0]
  np.testing.assert_allclose(seen, (array / 255 - 0.5) / 0.25, atol=1e-6)


def test_digits_are_those_of_scikit_learn(tmp_path):
  sets = pytest.importorskip("sklearn.datasets")
  images = kind_of(
    "", tmp_path, sources=[dict(kind="package", name="digits", split="train")],
    channels=1, image_size=8, mean=(0.0,), std=(1.0,), batch=360,
  )  # fmt: skip
  model = dict(classes=10)
  held = images.heldout(split="validation", model=model, say=silent)
  digits = sets.load_digits()
  batch = held.rows(0, slice(None))
  np.testing.assert_array_equal(batch["labels"], digits.target[::5])
  np.testing.assert_allclose(
    batch["images"][..., 0], digits.images[::5] / 16, atol=2e-3
  )
  assert len(images.stream(seed=0, model=model, say=silent).views[0]) == 1437


def test_rows_of_parquet_have_images_and_labels(tmp_path):
  pa = pytest.importorskip("pyarrow")
  from pyarrow import parquet

  def written(labels, images=None):
    data = images or [encoded(pixels_of(i)) for i in range(len(labels))]
    as_dicts = [{"bytes": d, "path": None} for d in data]
    table = pa.table({"image": as_dicts, "label": labels})
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=2)
    spec = dict(
      kind="parquet", path=str(tmp_path / "x.parquet"), split="all",
      image="image", label="label",
    )  # fmt: skip
    return open_source(spec, 0.0, 0.3)

  words = written(["b", "a", "b", "c", "a"])
  store = write(tmp_path / "words", words, "all", say=silent)
  assert store.about["labels"] == ["a", "b", "c"]
  assert store.gather(np.arange(5))["label"].tolist() == [1, 0, 1, 2, 0]
  numbers = written([0, 3, 1])
  assert numbers.labels == ("0", "1", "2", "3")
  for labels, word in (
    ([0, None, 1], "row 1: label None"),
    ([0, -1, 1], "row 1: label -1"),
  ):
    with pytest.raises(BadData, match=word):
      write(tmp_path / "bad", written(labels), "all", say=silent)
  with pytest.raises(BadData, match=r"no column 'lable'.*'label'"):
    spec = dict(kind="parquet", path=str(tmp_path), split="all", image="image")
    open_source(spec | dict(label="lable"), 0.0, 0.0).labels  # noqa: B018
  one_empty = written([0, 1, 0, 1], [b"", *[encoded(pixels_of(0))] * 3])
  store = write(tmp_path / "empty", one_empty, "all", say=silent)
  assert len(store) == 3
  assert [v["count"] for v in store.manifest["left_out"].values()] == [1]


def bomb() -> bytes:
  """A PNG that claims 50,000 x 50,000 pixels in a few bytes."""

  def chunk(kind, data):
    crc = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

  head = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
  body = zlib.compress(bytes(1000))
  return (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", head)
    + chunk(b"IDAT", body)
    + chunk(b"IEND", b"")
  )


BAD = {
  "damaged": lambda: encoded(pixels_of(0), "PNG")[:-400],
  "damaged jpeg": lambda: encoded(pixels_of(0, 200, 200), "JPEG")[:-3000],
  "pixels": bomb,
  "no image": lambda: b"this is a text",
  "no image at all": lambda: b"",
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_named(name):
  with pytest.raises(Unusable, match=name.split()[0]):
    decoding.checked(BAD[name]())


def test_more_pixels_than_the_limit_are_not_made(monkeypatch):
  monkeypatch.setattr(decoding, "LARGEST", 100)
  with pytest.raises(Unusable, match="more than 100 pixels"):
    decoding.checked(encoded(pixels_of(0)))


def test_few_damaged_images_are_left_out_counted_and_told(folder, tmp_path):
  said = []
  top = tmp_path / "in"
  (top / "a").mkdir(parents=True)
  for i in range(20):
    data = encoded(pixels_of(i))
    (top / "a" / f"{i:02d}.png").write_bytes(data[:-400] if i == 7 else data)
  images = kind_of(top, tmp_path, validation=0.0, most_damaged=0.1)
  stream = images.stream(seed=0, model={}, say=said.append)
  assert len(stream.views[0]) == 19
  assert any("1 damaged" in text and "07.png" in text for text in said)
  with pytest.raises(BadData, match=r"1 of 20 images.*most_damaged=0.05"):
    streamed(dataclasses.replace(images, most_damaged=0.0))
  # What the refusal names is enough.
  assert streamed(dataclasses.replace(images, most_damaged=0.05))


def animated() -> bytes:
  file = io.BytesIO()
  frames = [Image.fromarray(pixels_of(i)) for i in range(3)]
  frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
  return file.getvalue()


def test_animated_and_transparent_images_are_read_as_stated_and_told():
  assert decoding.checked(animated()) == ["animated (its first frame counts)"]
  clear = np.zeros((4, 4, 4), np.uint8)
  clear[:2] = (10, 20, 30, 255)
  data = encoded(clear)
  assert decoding.checked(data) == ["transparent (laid on white)"]
  seen = pixels(decoded(data, 3))
  assert (seen[:2] == (10, 20, 30)).all() and (seen[2:] == 255).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "RGBA", "LA"])
def test_any_mode_becomes_the_channels_that_are_asked_for(mode):
  grey = np.repeat(pixels_of(0)[..., :1], 3, axis=2)
  kind = "JPEG" if mode == "CMYK" else "PNG"
  data = encoded(grey, kind, mode)
  assert pixels(decoded(data, 3)).shape == (20, 14, 3)
  found = pixels(decoded(data, 1))
  assert found.shape == (20, 14, 1)
  if mode in ("L", "RGBA", "LA"):
    assert np.abs(found.astype(int) - grey[..., :1]).max() <= 1


def test_sixteen_bits_keep_their_upper_eight():
  deep = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
  found = pixels(decoded(encoded(deep), 1))[..., 0]
  np.testing.assert_array_equal(found.reshape(-1), np.arange(256))


def test_a_store_with_other_bytes_is_refused(folder, root, tmp_path):
  images = kind_of(folder, tmp_path)
  store = streamed(images).views[0]
  path = store.folder / "image-00000.npy"
  data = bytearray(path.read_bytes())
  data[200] ^= 1
  path.write_bytes(data)
  with pytest.raises(BadData, match="not the bytes"):
    streamed(images)
  os.truncate(path, 150)
  with pytest.raises(BadData, match="150 bytes"):
    Columns(store.folder)
  said = store.folder / "manifest.json"
  said.write_text(said.read_text().replace('"emu"', '"gnu"'))
  with pytest.raises(BadData, match="seal"):
    Columns(store.folder)


def test_a_store_that_was_begun_is_finished_to_the_same_bytes(folder, tmp_path):
  def source():
    spec = dict(kind="folder", path=str(folder), split="train")
    return open_source(spec, 0.0, 0.0)

  whole = write(tmp_path / "whole", source(), "all", say=silent)

  class Killed(Exception):
    pass

  def stopped(done, total):
    raise Killed

  with pytest.raises(Killed):
    write(tmp_path / "part", source(), "all", say=silent, progress=stopped)
  assert (tmp_path / "part.building" / "shard-00000.json").exists()
  again = write(tmp_path / "part", source(), "all", say=silent)
  assert again.manifest == whole.manifest


def parquet_at(path, images) -> dict:
  parquet = pytest.importorskip("pyarrow.parquet")
  rows = [dict(image=data, label=i % 2) for i, data in enumerate(images)]
  parquet.write_table(pyarrow_table(rows), path)
  return dict(
    kind="parquet", path=str(path), split="all", image="image", label="label"
  )


def pyarrow_table(rows):
  from pyarrow import Table

  return Table.from_pylist(rows)


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_images_that_change_while_they_are_read_are_no_store(kind, tmp_path):
  images = [netpbm(np.full((4, 4, 3), i, np.uint8)) for i in range(4)]
  if kind == "folder":
    path, spec = (
      tmp_path / "top/a/0.ppm",
      dict(kind="folder", path=str(tmp_path / "top"), split="all"),
    )
    path.parent.mkdir(parents=True)
    for i, data in enumerate(images):
      (path.parent / f"{i}.ppm").write_bytes(data)
  else:
    path = tmp_path / "x.parquet"
    spec = parquet_at(path, images)

  def changing(done, total):
    if kind == "folder":
      path.write_bytes(images[1] + b" ")
    else:
      parquet_at(path, images[::-1])

  with pytest.raises(BadData, match="changed while it was read; run again"):
    write(
      tmp_path / "store", open_source(spec, 0.0, 0.0), "all", say=silent,
      progress=changing,
    )  # fmt: skip
  assert not (tmp_path / "store").exists()
  again = open_source(spec, 0.0, 0.0)
  assert len(write(tmp_path / "store", again, "all", say=silent)) == 4


@pytest.mark.parametrize(
  ("change", "word"),
  [
    (dict(channels=2), "1 or 3"),
    (dict(mean=(0.5,)), "expected 3 numbers"),
    (dict(std=(0.0,) * 3), "above 0"),
    (dict(crop=0.0), "data.crop"),
    (dict(augment=PLAIN | dict(magnitude=31)), "magnitude"),
    (dict(augment=PLAIN | dict(flipp=True)), "flip"),
    (dict(sources=[]), "at least one"),
    (dict(sources=[dict(kind="folders", path="x")]), "folder"),
    (dict(sources=[dict(kind="folder", split="train")]), "no 'path'"),
    (dict(sources=[dict(kind="package", name="mnist", split="train")]), None),
  ],
)  # fmt: skip
def test_what_no_images_could_mend_is_refused(folder, root, change, word):
  with pytest.raises(BadConfig, match=word or "digits"):
    images = kind_of(folder, root, **change)
    streamed(images)


def test_mean_and_deviation_of_other_channels_are_refused_at_once(folder, root):
  with pytest.raises(BadConfig) as refusal:
    kind_of(folder, root, channels=1)
  for way in ("--config.data.mean='(0.5,)'", "--config.data.std='(0.25,)'"):
    assert way in str(refusal.value)


def test_all_values_of_another_type_are_refused_at_once(folder, root):
  with pytest.raises(BadConfig, match="data.mean=0.5: .*data.std=0.5: "):
    call(Images, "data", keys_of(folder, root) | dict(mean=0.5, std=0.5))


def test_labels_beyond_the_parts_of_a_model_are_refused_with_all_keys(
  folder, root
):
  parts = dict(vq=dict(codes=12), prior=dict(vocab=12 + 2 + 1))
  model = dict(MODEL, kind="image_tokens", classes=2, parts=parts)
  images = kind_of(folder, root)
  with pytest.raises(BadConfig, match="prior.vocab=16"):
    images.stream(seed=0, model=model, say=silent)
  model |= dict(classes=9, parts=parts | dict(prior=dict(vocab=22)))
  told = []
  images.stream(seed=0, model=model, say=told.append)
  (note,) = [line for line in told if "never trained" in line]
  assert "--config.model.classes=3 --config.model.parts.prior.vocab=16" in note


def test_labels_beyond_the_model_are_refused_by_number(folder, root):
  with pytest.raises(BadConfig, match="model.classes=2.* 3 labels"):
    streamed(kind_of(folder, root), classes=2)
  with pytest.raises(BadConfig, match="config.model.image_size=12"):
    kind_of(folder, root).check_model(MODEL | dict(image_size=16))


def test_labels_that_the_data_lacks_are_said_by_number(folder, root):
  images, said = kind_of(folder, root), []
  for classes in (3, 5):
    model = MODEL | dict(classes=classes)
    images.stream(seed=0, model=model, say=said.append)
  (note,) = [text for text in said if "classes" in text]
  assert "model.classes=5, and the data has 3 labels" in note


def test_a_folder_without_labels_is_told_what_is_expected(tmp_path):
  (tmp_path / "in").mkdir()
  with pytest.raises(BadData, match="for each label"):
    streamed(kind_of(tmp_path / "in", tmp_path))
  (tmp_path / "in" / "cat").mkdir()
  with pytest.raises(BadData, match="no image of the split 'train'"):
    streamed(kind_of(tmp_path / "in", tmp_path))
  with pytest.raises(BadData, match="no such folder"):
    streamed(kind_of(tmp_path / "nowhere", tmp_path))


def test_mixing_keeps_the_shares_that_it_tells():
  n, S = 64, 16
  first = dict(images=np.zeros((n, S, S, 1), "f4"), labels=np.zeros(n, "i4"))
  second = dict(images=np.ones((n, S, S, 1), "f4"), labels=np.ones(n, "i4"))
  places = np.arange(n)
  drawn = {"mix": Draw(0, places, places).uniform("mix", 4)}
  for keys in (dict(mixup=0.3), dict(cutmix=1.0), dict(mixup=0.3, cutmix=1.0)):
    made = augmenting.mixed(first, second, drawn, Augment(**keys))
    of_second = made["images"].mean((1, 2, 3))
    np.testing.assert_allclose(made["share"], 1 - of_second, atol=1e-6)
    assert (made["other_labels"] == 1).all() and np.ptp(made["share"]) > 0.5


def test_manifests_are_plain_json(folder, root):
  store = streamed(kind_of(folder, root)).views[0]
  assert json.loads((store.folder / "manifest.json").read_text())
  assert netpbm(np.zeros((1, 2, 3), np.uint8)) == b"P6\n2 1\n255\n" + bytes(6)


def test_keys_for_noise_belong_to_an_image_and_the_time_it_comes(
  folder, tmp_path
):
  plain, keyed = (
    kind_of(folder, tmp_path, draw=draw) for draw in (False, True)
  )
  assert "draw" not in plain.spec
  letters, shape, dtype = keyed.spec["draw"]
  assert letters == "B." and dtype == np.uint32
  stream = keyed.stream(seed=3, model=MODEL, say=silent)
  batch = stream.rows(5, slice(None))
  assert batch["draw"].shape == shape and batch["draw"].dtype == dtype
  np.testing.assert_array_equal(
    stream.rows(5, [1])["draw"][0], batch["draw"][1]
  )
  assert len(np.unique(batch["draw"], axis=0)) == shape[0]
  assert (stream.rows(6, slice(None))["draw"] != batch["draw"]).any(1).all()
  sets = [
    kind.heldout(split="validation", model=MODEL, say=silent)
    for kind in (plain, keyed)
  ]
  assert sets[1].rows(0, slice(None))["draw"].shape == shape
  assert sets[0].fingerprint != sets[1].fingerprint
