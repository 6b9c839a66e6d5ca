"""Laws of labelled images that TFDS has prepared."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds

PIL = pytest.importorskip("PIL", reason="needs aigc_jax[images]")
from PIL import Image  # noqa: E402

from aigc_jax.data.columns import write  # noqa: E402
from aigc_jax.data.images.sources import open_source  # noqa: E402
from aigc_jax.errors import BadConfig, BadData  # noqa: E402

LABELS = ("cat", "dog", "emu")
COUNT = 24


def picture(i: int) -> np.ndarray:
  """Pixels (9, 7, 3) of image i."""
  return np.random.default_rng(i).integers(0, 256, (9, 7, 3), np.uint8)


def as_file(i: int, kind: str = "PNG") -> bytes:
  file = io.BytesIO()
  Image.fromarray(picture(i)).save(file, kind)
  return file.getvalue()


class Pets(tfds.core.GeneratorBasedBuilder):
  """Twenty-four images with a label and a count of legs, and a test split."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    features = tfds.features.FeaturesDict(
      {
        "picture": tfds.features.Image(shape=(None, None, 3)),
        "kind": tfds.features.ClassLabel(names=LABELS),
        "legs": tfds.features.Scalar(np.int32),
      }
    )
    return tfds.core.DatasetInfo(builder=self, features=features)

  def _split_generators(self, dl_manager):
    return {
      "train": self._generate_examples(0, COUNT),
      "test": self._generate_examples(COUNT, 5),
    }

  def _generate_examples(self, first, count):
    for i in range(first, first + count):
      image = io.BytesIO(as_file(i))
      yield i, {"picture": image, "kind": LABELS[i % 3], "legs": 4}


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
  """The folder of the prepared dataset."""
  builder = Pets(
    data_dir=str(tmp_path_factory.mktemp("tfds")), file_format="array_record"
  )
  builder.download_and_prepare()
  return builder.data_dir


def source_of(pets, split="train", **change):
  spec = dict(
    kind="tfds", name=str(pets), split=split, image="picture", label="kind"
  )
  return open_source(spec | change, 0.3, 0.0)


def stored(tmp_path, source, split):
  store = write(tmp_path / split, source, split, say=lambda text: None)
  return store, store.gather(np.arange(len(store)))


def test_each_image_of_a_dataset_is_in_one_split_with_its_label(pets, tmp_path):
  source = source_of(pets)
  found = {}
  for split in ("train", "validation"):
    store, rows = stored(tmp_path, source, split)
    assert store.about["labels"] == list(LABELS) and len(store)
    for data, label in zip(rows["image"], rows["label"], strict=True):
      assert bytes(data) not in found
      found[bytes(data)] = label
  assert found == {as_file(i): i % 3 for i in range(COUNT)}
  _, rows = stored(tmp_path, source, "test")
  assert {bytes(data) for data in rows["image"]} == {
    as_file(i) for i in range(COUNT, COUNT + 5)
  }


def test_a_slice_of_a_dataset_of_images_is_a_split(pets, tmp_path):
  source = source_of(pets, split="train[:50%]")
  parts = [
    len(stored(tmp_path, source, split)[0])
    for split in ("train[:50%]", "validation")
  ]
  assert sum(parts) == COUNT // 2 and all(parts)


def test_a_wrong_feature_of_a_dataset_of_images_is_named(pets, tmp_path):
  with pytest.raises(BadData, match="no feature 'image'.*image= of the source"):
    source_of(pets, image="image").jobs("train")
  with pytest.raises(BadData, match="'legs' is no label with names"):
    source_of(pets, label="legs").labels  # noqa: B018
  with pytest.raises(BadConfig, match="no split 'tset'; did you mean 'test'"):
    source_of(pets).jobs("tset")


class Arrays(tfds.core.GeneratorBasedBuilder):
  """Six images that are stored as numbers, grey, without a file's head."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    features = tfds.features.FeaturesDict(
      {
        "image": tfds.features.Tensor(shape=(9, 7, 1), dtype=np.uint8),
        "label": tfds.features.ClassLabel(names=LABELS),
      }
    )
    return tfds.core.DatasetInfo(builder=self, features=features)

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for i in range(6):
      yield i, {"image": picture(i)[..., :1], "label": LABELS[i % 3]}


def test_images_that_are_stored_as_numbers_keep_them(tmp_path):
  builder = Arrays(data_dir=str(tmp_path / "a"), file_format="array_record")
  builder.download_and_prepare()
  source = source_of(builder.data_dir, image="image", label="label")
  found = {}
  for split in ("train", "validation"):
    _, rows = stored(tmp_path, source, split)
    for data, label in zip(rows["image"], rows["label"], strict=True):
      image = np.asarray(Image.open(io.BytesIO(bytes(data))))
      found[image.tobytes()] = label
  assert found == {picture(i)[..., 0].tobytes(): i % 3 for i in range(6)}
