"""A preset means what it meant: its file is what the code says today."""

import pytest

from tests.golden import written


def test_every_preset_has_a_file_and_every_file_a_preset():
  found = {path.name for path in written.FOLDER.iterdir()}
  assert found == {written.path_of(name).name for name in written.names()}


def one_of_each_config():
  """One preset of each config; the others are among the slow tests."""
  seen = set()
  for name in written.names():
    config = name.partition(":")[0]
    marks = [pytest.mark.slow] if config in seen else []
    seen.add(config)
    yield pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", list(one_of_each_config()))
def test_a_preset_means_what_its_file_says(name):
  """Where it is to mean something else, write it anew and read the diff."""
  assert written.text_of(name) == written.path_of(name).read_text()
