"""A preset means what it meant: its file is what the code says today."""

import pytest

from tests.golden import written


def test_every_preset_has_a_file_and_every_file_a_preset():
  found = {path.name for path in written.FOLDER.iterdir()}
  assert found == {written.path_of(name).name for name in written.names()}


@pytest.mark.parametrize("name", written.names())
def test_a_preset_means_what_its_file_says(name):
  """Where it is to mean something else, write it anew and read the diff."""
  assert written.text_of(name) == written.path_of(name).read_text()
