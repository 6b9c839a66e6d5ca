"""Texts, stores and a tokenizer that the tests of this folder share."""

import pytest

from aigc_jax import data
from aigc_jax.data import sentences
from tests.data.texts import ORDER, SHAPE, prose, settings


@pytest.fixture(scope="session")
def book(tmp_path_factory):
  """One text file of some 40 kB."""
  path = tmp_path_factory.mktemp("book") / "book.txt"
  path.write_text(prose(0, 1500))
  return path


@pytest.fixture(scope="session")
def shelf(tmp_path_factory):
  """A folder of 30 files of all-different sizes, one empty, one large."""
  folder = tmp_path_factory.mktemp("shelf")
  for i in range(30):
    part = folder / f"part{i % 3}"
    part.mkdir(exist_ok=True)
    lines = 400 if i == 7 else 3 * i
    (part / f"{i}.txt").write_text(prose(i, lines) if lines else "")
  return folder


@pytest.fixture(scope="session")
def root(tmp_path_factory):
  return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="session")
def trained():
  """A SentencePiece tokenizer of 500 ids."""
  texts = [prose(seed, 400) for seed in range(8)]
  return sentences.train(texts, 500, "prose")


@pytest.fixture(scope="session")
def stream(shelf, root):
  """A training stream over the shelf, in bytes."""
  return data.build(**settings(shelf, root), **SHAPE, **ORDER)
