"""A preset means what it meant: its file is what the code says today."""

import pytest

from tests.golden import written
from tests.sweep import sweep


def test_every_preset_has_a_file_and_every_file_a_preset():
  found = {path.name for path in written.FOLDER.iterdir()}
  assert found == {written.path_of(name).name for name in written.names()}


CONFIGS = ("gpt2", "llama", "bert", "t5", "vit", "vq", "dit", "ctc")


def smallest_of_some() -> list[str]:
  """The presets whose files are shortest: fewest parameters are traced."""
  smallest = {}
  by_length = sorted(
    written.names(), key=lambda n: written.path_of(n).stat().st_size
  )
  for name in by_length:
    smallest.setdefault(name.partition(":")[0], name)
  return [smallest[config] for config in CONFIGS]


@pytest.mark.parametrize("name", sweep(written.names(), *smallest_of_some()))
def test_a_preset_means_what_its_file_says(name):
  """Where it is to mean something else, write it anew and read the diff."""
  assert written.text_of(name) == written.path_of(name).read_text()
