"""Laws of pairs of texts that TFDS has prepared."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from aigc_jax.data.pair_sources import check_source, read_pairs
from aigc_jax.errors import BadConfig, BadData

PAIRS = [(f"tree {i} is green", f"Baum {i} ist grün") for i in range(20)]


class Trees(tfds.core.GeneratorBasedBuilder):
  """Twenty sentences in two languages, as TFDS' own translations have them."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    features = tfds.features.Translation(languages=("de", "en"))
    return tfds.core.DatasetInfo(builder=self, features=features)

  def _split_generators(self, dl_manager):
    return {
      "train": self._generate_examples(PAIRS[:17]),
      "test": self._generate_examples(PAIRS[17:]),
    }

  def _generate_examples(self, pairs):
    for i, (en, de) in enumerate(pairs):
      yield i, {"en": en, "de": de}


class Scores(Trees):
  """One of whose texts is a number."""

  def _info(self):
    features = tfds.features.FeaturesDict(
      {"en": tfds.features.Text(), "de": tfds.features.Scalar(np.int32)}
    )
    return tfds.core.DatasetInfo(builder=self, features=features)

  def _generate_examples(self, pairs):
    yield 0, {"en": "one", "de": 1}


def prepared(builder, folder):
  made = builder(data_dir=str(folder), file_format="array_record")
  made.download_and_prepare()
  return made.data_dir


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
  """The folder of the prepared dataset."""
  return prepared(Trees, tmp_path_factory.mktemp("tfds"))


def source_of(folder, **change):
  spec = dict(
    kind="tfds", path=str(folder), split="train", source="en", target="de"
  )
  return spec | change


def test_every_record_of_a_split_is_a_pair(trees):
  source = source_of(trees)
  check_source("data.sources[0]", source)
  assert sorted(read_pairs(source)) == sorted(PAIRS[:17])
  assert sorted(read_pairs(source_of(trees, split="test"))) == PAIRS[17:]
  part = list(read_pairs(source_of(trees, split="train[:5]")))
  assert len(part) == 5 and set(part) < set(PAIRS)
  assert list(read_pairs(source)) == list(read_pairs(source))


def test_what_is_wrong_with_a_dataset_of_pairs_is_named(trees, tmp_path):
  with pytest.raises(BadData, match="no field 'fr'.*de, en.*target=NAME"):
    list(read_pairs(source_of(trees, target="fr")))
  with pytest.raises(BadConfig, match="no split 'tset'; did you mean 'test'"):
    list(read_pairs(source_of(trees, split="tset")))
  with pytest.raises(BadData, match="no prepared dataset of TFDS"):
    list(read_pairs(source_of(tmp_path)))
  with pytest.raises(BadConfig, match=r"sources\[0\].split=None"):
    check_source("data.sources[0]", source_of(trees, split=None))
  numbers = prepared(Scores, tmp_path / "numbers")
  with pytest.raises(BadData, match="'de' holds int.*expected text"):
    list(read_pairs(source_of(numbers)))
